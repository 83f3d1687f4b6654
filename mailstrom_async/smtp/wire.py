"""A connection during mail transactions: bytes out, with flow control; replies in, each with a deadline."""

import asyncio
import math
import socket
from collections.abc import Sequence
from typing import Literal, NoReturn

from mailstrom_async._policy.replies import Answer, ReplyQueue
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Breakdown, Target
from mailstrom_async.smtp.transcript import Transcript

CHUNK = 64 * 1024
# Linux would take megabytes off our hands and hide from us whether the server reads them.
UNSENT_IN_KERNEL = 128 * 1024
DROPPED = "was dropped by us"
# Of the event loop, after a deadline: after a stall, what arrived meanwhile may be read only in the next one.
ROUNDS = 3


class Broken(Exception):
    """The conversation can't go on.

    Attributes:
        cause: Whether the line broke, or the server does not speak SMTP.
        reason: What the server did; continues its name.
        answer: The 421 that announced it.
    """

    def __init__(self, cause: Literal["network", "protocol"], reason: str, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.cause: Literal["network", "protocol"] = cause
        self.reason = reason
        self.answer = answer

    def at(self, phase: Phase, target: Target, *, in_doubt: bool) -> Breakdown:
        """What it means for a message.

        Args:
            phase: What of it was to be answered.
            target: Whose conversation it is.
            in_doubt: The server may have the whole message.
        """
        reason = f"{target} {self.reason}, at {phase}"
        if self.answer is not None:
            return Breakdown(phase, self.cause, reason, self.answer.to(phase, target.host))
        if in_doubt:
            reason += "; it had the whole message and may have taken it, so that it may arrive twice"
            return Breakdown(Phase.END_OF_DATA, "outcome_unknown", reason)
        return Breakdown(phase, self.cause, reason)


class Wire(asyncio.Protocol):
    """Takes a connection over from the protocol that opened it. One coroutine at a time uses it.

    Timeouts are timers beside the awaited future rather than `asyncio.timeout`, which after a stall of the event loop
    would cancel us although the reply has arrived.

    Attributes:
        unsent: Bytes wait here that the kernel has not taken; stays True if the connection is lost with them.
        encrypted: Bytes are not what they were any more when they are written: nobody can tell which of them the kernel
            has.
    """

    def __init__(self, transport: asyncio.Transport, transcript: Transcript) -> None:
        self.transcript = transcript
        self.unsent = False
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._replies = ReplyQueue()
        self._lost: str | None = "closed the connection" if transport.is_closing() else None
        self._waiter: asyncio.Future[bool] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ends = math.inf
        self.encrypted = transport.get_extra_info("ssl_object") is not None
        # Writing pauses as soon as the kernel takes no more, and goes on once it has taken all: so "not paused" means
        # sent. (1, not 0: asyncio's TLS transport pauses for ever at a high-water mark of 0.)
        transport.set_write_buffer_limits(high=1, low=0)
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_IN_KERNEL)
        transport.set_protocol(self)

    # What the event loop tells us.

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        if not self._replies.in_step:
            # Nothing that is still to be sent may get out. What was answered before stays in `_replies.ready`.
            self._transport.abort()
        self._wake()

    def eof_received(self) -> None:
        # Not close(), which asyncio would do: that flushes, and could still deliver what we report as not delivered.
        self._lose("closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("reset the connection" if isinstance(exc, ConnectionResetError) else "closed the connection")

    def pause_writing(self) -> None:
        self.unsent = True

    def resume_writing(self) -> None:
        self.unsent = False
        self._wake()

    # What the transaction asks.

    @property
    def usable(self) -> bool:
        """It stands, it is in step, and nothing came unasked."""
        return self._lost is None and self._replies.in_step and not self._transport.is_closing()

    @property
    def buffered(self) -> int:
        """Bytes that the kernel has not taken."""
        return self._transport.get_write_buffer_size()

    @property
    def answered(self) -> bool:
        """A reply is here that was not taken."""
        return bool(self._replies.ready)

    def send(self, command: bytes) -> None:
        """Send a command, which will be answered."""
        self.expect()
        self.write(command)

    @property
    def closed(self) -> bool:
        """It was closed, by either side, and no reply was under way."""
        return self._lost is not None and not self._replies.partial

    @property
    def broke_off(self) -> bool:
        """The server closed without a word, or said what is no SMTP."""
        return self._replies.fault is not None or (self._lost not in (None, DROPPED) and self._replies.farewell is None)

    def expect(self, replies: int = 1) -> None:
        """So many replies more may come."""
        self._replies.expect(replies)

    def write(self, data: bytes | memoryview) -> bool:
        """Send bytes, without waiting. False: the connection is broken; `answer` and `drain` tell how."""
        if not self.usable:
            return False
        self._transport.write(data)
        return not self._transport.is_closing()

    def take(self) -> Answer | None:
        """The reply to the oldest command that has none yet, if it is here; None: `answer` waits for it, or tells why
        there will be none."""
        if not self._replies.ready or self._replies.fault is not None:
            return None
        answer = self._replies.ready.popleft()
        self.transcript.theirs(answer)
        return answer

    def take_all(self, count: int) -> Sequence[Answer]:
        """The replies to so many commands, if they are what is here; empty: they are not, and `answer` waits for them
        one by one. They are not noted yet."""
        replies = self._replies
        if len(replies.ready) != count or replies.fault is not None:
            return ()
        answers = tuple(replies.ready)
        replies.ready.clear()
        return answers

    async def answer(self, seconds: float, until: float = math.inf) -> Answer:
        """The reply to the oldest command that has none yet, within so many seconds for all of its lines.

        Args:
            seconds: From now.
            until: And not after this time of the event loop, when more than this reply is overdue.

        Raises:
            Broken: There is none, or there is one too many. Replies that came before the connection broke are given
                first.
        """
        deadline = min(self._loop.time() + seconds, until)
        while (answer := self.take()) is None:
            self._check()
            if not await self._change(deadline):
                raise Broken(
                    "network",
                    f"gave no answer within {seconds:g} s" if deadline < until else "draws its answers out too long",
                )
        return answer

    def give_up(self) -> NoReturn:
        """Drop the connection, and raise why there is no reply (Broken)."""
        self.abort()
        self._check()
        raise AssertionError("a reply is here")

    async def drain(self, seconds: float) -> None:
        """Wait until the kernel took what was written, or a reply is here; let others run in any case.

        Args:
            seconds: How long to wait without any progress. However slow, what moves is not cut off.

        Raises:
            Broken: It was not taken.
        """
        await asyncio.sleep(0)
        left = self._transport.get_write_buffer_size()
        while self.unsent and not self._replies.ready:
            self._check()
            if not await self._change(self._loop.time() + seconds):
                before, left = left, self._transport.get_write_buffer_size()
                if left >= before:
                    raise Broken("network", f"took nothing of the message for {seconds:g} s")
        self._check()

    def abort(self) -> None:
        """Drop the connection, with what is still to be sent."""
        # A write that failed has ended it before we are told so.
        self._lose("closed the connection" if self._transport.is_closing() else DROPPED)

    def _check(self) -> None:
        if self._replies.fault is not None:
            raise Broken("protocol", self._replies.fault)
        if self._replies.ready:
            return
        if self._replies.farewell is not None:
            self.transcript.theirs(self._replies.farewell)
            raise Broken("network", "ended the session", self._replies.farewell)
        if self._lost is not None:
            raise Broken("network", self._lost)

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        self._transport.abort()
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_ends = None, -math.inf  # none any more: nothing is waited for on a lost connection

    def _change(self, deadline: float) -> asyncio.Future[bool]:
        """Done when something happened; False: nothing did until the deadline."""
        self._waiter = waiter = self._loop.create_future()
        self._deadline = deadline
        if self._timer_ends > deadline:
            self._set_timer(deadline)
        return waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    # One timer serves all that is waited for, one after another: where an answer comes in time it is left to run on,
    # and when it ends it is set to what is waited for then. To set one for each answer would cost more than to read it.

    def _set_timer(self, ends: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_ends = ends
        self._timer = self._loop.call_at(ends, self._timer_ended)

    def _timer_ended(self) -> None:
        ended, self._timer, self._timer_ends = self._timer_ends, None, math.inf
        if self._waiter is None or self._waiter.done():
            return
        if ended < self._deadline:
            self._set_timer(self._deadline)
        else:
            self._expire(self._waiter, ROUNDS)

    def _expire(self, waiter: asyncio.Future[bool], rounds: int) -> None:
        if rounds:
            self._loop.call_soon(self._expire, waiter, rounds - 1)
        elif not waiter.done():
            waiter.set_result(False)
