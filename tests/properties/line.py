"""A connection without a network."""

import asyncio
from typing import Any


class Line(asyncio.Transport):
    """A transport without a network: keeps what is written, and takes it at once, or only so much of it."""

    def __init__(self, takes: int | None) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = False
        self._takes = takes
        self._protocol: Any = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0 if self._takes is None else max(0, len(self.written) - self._takes)

    def write(self, data: Any) -> None:
        assert not self.closing, "nothing is written to a connection that was dropped"
        self.written += data
        if self.get_write_buffer_size():
            self._protocol.pause_writing()

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def close(self) -> None:
        raise AssertionError("close() would flush what is reported as not delivered")

    # The server's side.

    def take(self, more: int) -> None:
        """Take so many bytes more of what is written."""
        if self._takes is not None:
            self._takes += more
            if not self.get_write_buffer_size():
                self._takes = None
                self._protocol.resume_writing()

    def arrive(self, data: bytes) -> None:
        if not self.closing:
            self._protocol.data_received(data)

    def end(self) -> None:
        if not self.closing:
            self._protocol.eof_received()

    @property
    def dots(self) -> int:
        """How many messages were sent whole."""
        sent = self.written if self._takes is None else self.written[: self._takes]
        return sent.count(b"\r\n.\r\n")
