"""One connection of the scripted SMTP server: bytes in and out, TLS, and the actions that take time or end it."""

import asyncio
import socket
import ssl
import struct
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import cast
from weakref import WeakKeyDictionary

from mailstrom_async.testing import _actions as act
from mailstrom_async.testing._actions import Action, Context, as_reply
from mailstrom_async.testing._records import Ledger

READ_AHEAD = 1024 * 1024  # what is held of a client that talks while an action takes its time

_requested_names: WeakKeyDictionary[ssl.SSLObject | ssl.SSLSocket, str] = WeakKeyDictionary()

Settle = Callable[[bytes, bool], None]
"""Told the reply that was sent (b"": none) and whether another action comes in place of what usually follows."""


def note_requested_names(context: ssl.SSLContext) -> None:
    """Have the server names that clients ask for (SNI) remembered, unless the context has its own use for them."""

    def remember(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        if name is not None:
            _requested_names[connection] = name

    if context.sni_callback is None:
        context.sni_callback = remember


def settle_nothing(reply: bytes, replaced: bool) -> None:
    """For moments after which nothing changes."""


class Connection(asyncio.Protocol):
    """Reads into a buffer, has it consumed by `pump`, and carries out actions.

    While an action takes time the connection is `busy`: what comes in waits in the buffer.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.buffer = bytearray()
        self.busy = False
        self.stands = False
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self._replies: list[bytes] = []
        self._deaf = False
        self._pause = 0.0
        self._slow: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # What the session above adds

    @abstractmethod
    def begin(self) -> None:
        """The connection stands."""

    @abstractmethod
    def pump(self) -> None:
        """Consume the buffer as far as it goes and while not `busy`."""

    @abstractmethod
    def take(self) -> None:
        """Keep the message that has come, if there is one."""

    @abstractmethod
    def finish(self, error: Exception | None) -> None:
        """The connection is over."""

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        if self.lost.done():
            self.transport.abort()  # the server closed while it was being accepted
            return
        self.stands = True
        self._guard(self.begin)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self.buffer += data
        if self.busy:
            if len(self.buffer) > READ_AHEAD:
                self.transport.pause_reading()
            return
        if self._pause:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self._pause, self._read_on)
        self._guard(self.pump)
        self.flush()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost.done():
            return
        if self._slow is not None:
            self._slow.cancel()
        self._deaf = True
        self.finish(exc)
        self.lost.set_result(None)

    # Writing and closing

    def write(self, content: bytes) -> None:
        """Add to what `flush` sends, so that the replies to a group of commands go out as one segment."""
        self._replies.append(content)

    def flush(self) -> None:
        if self._replies:
            content = b"".join(self._replies)
            self._replies.clear()
            if content and not self.transport.is_closing():
                self.transport.write(content)

    def close(self) -> None:
        """Close in order: what was written goes out, then FIN."""
        self._fall_silent()
        self.flush()
        self.transport.close()

    def reset(self) -> None:
        """Drop the connection so that the client sees RST."""
        self._fall_silent()
        self.flush()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def abort(self) -> None:
        """Drop the connection because the server closes."""
        if not self.stands:
            if not self.lost.done():
                self.lost.set_result(None)  # it may never come to stand
            return
        self._fall_silent()
        self.transport.abort()

    def _fall_silent(self) -> None:
        self._deaf = self.busy = True
        self.buffer.clear()

    # Actions

    def carry_out(self, action: Action | None, context: Context, usual: bytes, settle: Settle = settle_nothing) -> None:
        """Do what the script says, or with None reply with `usual`; then tell `settle` which reply was sent."""
        if callable(action):
            action = action(context)
        match action:
            case None:
                self.write(usual)
                settle(usual, False)
            case str():
                reply = as_reply(action)
                self.write(reply)
                settle(reply, False)
            case act.Raw(content):
                self.write(content)
                settle(content, False)
            case act.Reply(text, then):
                reply = as_reply(text)
                self.write(reply)
                settle(reply, then is not None)
                if then is not None and not self.transport.is_closing():
                    self.carry_out(then, context, b"")
            case act.Take(then):
                self.take()
                self.carry_out(then, context, usual, settle)
            case act.ReadSlowly(interval):
                self._pause = interval.total_seconds()
                self.carry_out(None, context, usual, settle)
            case act.Close() | act.HalfClose() | act.Reset() | act.Hang() | act.StopReading(None):
                self._end(action)
            case act.Delay() | act.StopReading() | act.Gate() | act.Drip() | act.Flood():
                self.take_time(self._carry_out_slowly(action, context, usual, settle))
            case _:
                # A callable that returned a callable.
                self.carry_out(action, context, usual, settle)

    def _end(self, action: Action) -> None:
        match action:
            case act.Close():
                self.close()
            case act.Reset():
                self.reset()
            case act.HalfClose():
                self._fall_silent()
                self.flush()
                self.transport.write_eof()
            case act.StopReading():
                self._fall_silent()
                self.flush()
                self.transport.pause_reading()
            case _:
                self._fall_silent()
                self.flush()

    async def _carry_out_slowly(self, action: Action, context: Context, usual: bytes, settle: Settle) -> None:
        then: Action | None = None
        match action:
            case act.Delay(span, then):
                await asyncio.sleep(span.total_seconds())
            case act.StopReading(span) if span is not None:
                self.transport.pause_reading()
                await asyncio.sleep(span.total_seconds())
            case act.Gate():
                then = action.then
                await action.pass_through()
            case act.Drip(content, interval):
                reply = as_reply(content) if isinstance(content, str) else content
                for byte in reply:
                    self.transport.write(bytes([byte]))
                    await asyncio.sleep(interval.total_seconds())
                self.busy = False
                settle(reply, False)
                return
            case act.Flood(content, interval):
                while True:
                    await self._writable.wait()
                    self.transport.write(content)
                    await asyncio.sleep(interval.total_seconds())
            case _:
                raise AssertionError(action)
        self.busy = False
        self.carry_out(then, context, usual, settle)

    def take_time(self, doing: Coroutine[None, None, None]) -> None:
        """Be busy until this has been done; then go on with what has come meanwhile."""
        self.busy = True
        self.flush()
        previous = self._slow
        self._slow = asyncio.get_running_loop().create_task(self._until_done(doing))
        assert previous is None or previous.done() or previous is asyncio.current_task()

    async def _until_done(self, doing: Coroutine[None, None, None]) -> None:
        try:
            await doing
        except Exception as failure:  # noqa: BLE001 - kept for the end of the `async with`
            self._fail(failure)
        self._read_on()
        if not self.busy:
            self._guard(self.pump)
        self.flush()

    def _read_on(self) -> None:
        if not self._deaf and not self.busy and not self.transport.is_closing():
            self.transport.resume_reading()

    def _guard(self, step: Callable[[], None]) -> None:
        # A script may call the test's own code. What that raises must come out of the test, not only into a log.
        try:
            step()
        except Exception as failure:  # noqa: BLE001
            self._fail(failure)

    def _fail(self, failure: Exception) -> None:
        self.ledger.failures.append(failure)
        self.abort()

    # TLS

    def upgrade(self, context: ssl.SSLContext, done: Callable[[ssl.SSLObject], None]) -> None:
        """Send what was written, and begin TLS. A failed handshake ends the connection."""
        # Not a byte of the client's hello may be read before the handshake begins.
        self.transport.pause_reading()
        self.take_time(self._shake_hands(context, done))

    async def _shake_hands(self, context: ssl.SSLContext, done: Callable[[ssl.SSLObject], None]) -> None:
        note_requested_names(context)
        plain = self.transport
        loop = asyncio.get_running_loop()
        # With implicit TLS the client's hello may be here already: uvloop begins to read right after `connection_made`.
        early = bytes(self.buffer)
        self.buffer.clear()
        if early:
            # Two rounds of the loop from now: `start_tls` takes one to connect its protocol.
            loop.call_soon(loop.call_soon, _pass_on, early, plain)
        try:
            secure = await loop.start_tls(plain, self, context, server_side=True)
        except (OSError, EOFError) as failure:  # ssl.SSLError is an OSError
            self.tls_failed(failure)
            plain.abort()
            self.connection_lost(None)
            return
        if secure is None or secure.get_extra_info("ssl_object") is None:
            # uvloop's way to say that the connection was lost meanwhile.
            plain.abort()
            self.connection_lost(None)
            return
        self.transport = secure
        self.busy = False
        done(secure.get_extra_info("ssl_object"))

    @abstractmethod
    def tls_failed(self, failure: Exception) -> None:
        """A handshake failed."""


def _pass_on(content: bytes, transport: asyncio.Transport) -> None:
    """Give bytes that were read too early to the protocol that the transport has now."""
    protocol = cast(asyncio.BufferedProtocol, transport.get_protocol())
    if not transport.is_closing():
        memoryview(protocol.get_buffer(len(content)))[: len(content)] = content
        protocol.buffer_updated(len(content))


def requested_name(connection: ssl.SSLObject) -> str | None:
    """The server name that the client asked for, if it did."""
    return _requested_names.get(connection)
