"""What counts as sent when the connection is dropped while the kernel does not take it."""

import asyncio
from datetime import UTC, datetime
from ipaddress import ip_address

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async.smtp.base import Target
from mailstrom_async.smtp.envelope import Envelope, Offers
from mailstrom_async.smtp.transaction import Transaction
from mailstrom_async.smtp.transcript import Transcript
from mailstrom_async.smtp.wire import Wire

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class FullTransport(asyncio.Transport):
    """Takes an envelope, and of what follows a hundred bytes; the server answers the rest unseen, and says good-bye."""

    def __init__(self) -> None:
        super().__init__()
        self._protocol: asyncio.Protocol
        self._left = 0
        self._closing = False
        self._written = 0

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def set_protocol(self, protocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return self._left

    def abort(self) -> None:
        self._closing, self._left = True, 0

    def write(self, data) -> None:
        self._written += 1
        answer = b"250 a\r\n250 b\r\n354 go\r\n"
        if self._written > 1:
            self._left = len(data) - 100
            self._protocol.pause_writing()
            answer = b"250 2.0.0 ok\r\n421 4.3.2 bye\r\n"
        asyncio.get_running_loop().call_soon(self._protocol.data_received, answer)


async def test_what_the_kernel_did_not_take_is_not_delivered_whatever_the_server_says():
    """Row A49: a yes before the server has the whole message delivers nothing, though nothing is left in the buffer."""
    message = QueuedMessage(1, "1@x", "s@example.org", b"S: x\r\n\r\n" + b"y" * 900 + b"\r\n", False, False, NOW, NOW)
    envelope = Envelope.write(message, ["r@example.net"], Offers(pipelining=True))
    target = Target("mx.example.net", ip_address("127.0.0.1"), 25, "none")
    wire = Wire(FullTransport(), Transcript())
    transaction = Transaction(wire, target, Timeouts(), message, envelope, pipelining=True, write_next=lambda: None)

    result = await transaction.run(reset=False, reused=False)

    assert result.decided == {}
    assert result.breakdown is not None
