"""The content of a message: what comes between DATA or BDAT and its reply (RFC 5321 section 4.1.1.4, RFC 3030)."""

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

LONGEST_LINE = 1000  # RFC 5321 section 4.5.3.1.6, with CRLF

_ARGUMENT = re.compile(r"([0-9]{1,18})( LAST)?", re.IGNORECASE)


class Chunk(NamedTuple):
    """A piece of a content that is announced by its length."""

    size: int
    last: bool

    @classmethod
    def parse(cls, argument: str) -> "Chunk | None":
        """What BDAT's argument announces (RFC 3030 section 2); None: nobody can tell."""
        match = _ARGUMENT.fullmatch(argument)
        return None if match is None else cls(int(match[1]), match[2] is not None)


class Came(Enum):
    """What has come of a content that is not whole yet."""

    START = "its first octets"
    PART = "all octets of a chunk that is not the last"


class Whole(NamedTuple):
    """A content that has come to its end.

    Attributes:
        content: Without dot-stuffing and without the final dot; empty if so much came that it was dropped.
        too_big: It is longer than the server allows.
    """

    content: bytes
    too_big: bool


class Content:
    """What has come of the content of one transaction. It is told what was announced, and takes it from the buffer."""

    def __init__(self) -> None:
        self._until_dot = False
        self._chunk: Chunk | None = None  # its octets come next
        self._chunks = bytearray()
        self._started = False
        self._searched = 0
        self._dropped = False

    def begin(self) -> None:
        """DATA was answered with 354: all up to the final dot is content."""
        self._until_dot = True

    def announce(self, chunk: Chunk) -> None:
        """BDAT came: so many octets are content."""
        self._chunk = chunk

    @property
    def pending(self) -> bool:
        """What comes next is content, and no command."""
        return self._until_dot or self._chunk is not None

    @property
    def awaits_nothing(self) -> bool:
        """A chunk of no octets was announced: it can be taken from an empty buffer."""
        return self._chunk is not None and not self._chunk.size

    def take(self, buffer: bytearray, limit: int | None) -> Came | Whole | None:
        """Take what is `pending` out of the buffer; None: more has to come.

        Args:
            buffer: What was received. What stands behind the content, or behind its chunk, is left there.
            limit: A content of more octets is too big.
        """
        if not self._started:
            self._started = True
            return Came.START
        if self._chunk is None:
            return self._take_until_dot(buffer, limit)
        return self._take_chunk(buffer, self._chunk, limit)

    def _take_until_dot(self, buffer: bytearray, limit: int | None) -> Whole | None:
        if buffer.startswith(b".\r\n") and not self._searched:
            stuffed, length = b"", 3
        else:
            dot = buffer.find(b"\r\n.\r\n", max(0, self._searched - 4))
            if dot < 0:
                if limit is not None and len(buffer) > 2 * limit:
                    self._dropped = True
                    del buffer[:-4]
                self._searched = len(buffer)
                return None
            stuffed, length = bytes(buffer[: dot + 2]), dot + 5
        del buffer[:length]
        self._until_dot = False
        if self._dropped:
            return Whole(b"", too_big=True)
        return _whole(stuffed.removeprefix(b".").replace(b"\r\n.", b"\r\n"), limit)

    def _take_chunk(self, buffer: bytearray, chunk: Chunk, limit: int | None) -> Came | Whole | None:
        if len(buffer) < chunk.size:
            return None
        self._chunk = None
        self._chunks += buffer[: chunk.size]
        del buffer[: chunk.size]
        return _whole(bytes(self._chunks), limit) if chunk.last else Came.PART


def _whole(content: bytes, limit: int | None) -> Whole:
    return Whole(content, limit is not None and len(content) > limit)


def faults(content: bytes, mail_options: Iterable[str]) -> Iterator[str]:
    """What a client must not send in a content, given the parameters of its MAIL."""
    line_ends = content.count(b"\r\n")
    if content.count(b"\r") != line_ends:
        yield "bare CR in the content"
    if content.count(b"\n") != line_ends:
        yield "bare LF in the content"
    if b"\0" in content:
        yield "NUL in the content"
    if _has_long_line(content):
        yield "line longer than 998 octets in the content"
    if not content.isascii() and "BODY=8BITMIME" not in map(str.upper, mail_options):
        yield "8-bit content without BODY=8BITMIME"


def _has_long_line(content: bytes) -> bool:
    # Jumps from one of the last line ends within reach to the next: long messages have many short lines.
    start = 0
    while len(content) - start > LONGEST_LINE:
        end = content.rfind(b"\n", start, start + LONGEST_LINE)
        if end < 0:
            return True
        start = end + 1
    return False
