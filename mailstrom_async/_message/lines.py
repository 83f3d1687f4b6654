"""Lines: how they end, and how long they may be."""

import io
from collections.abc import Iterator, Sequence
from typing import Protocol

LINE_LIMIT = 998
"""Octets of a line without its CRLF (RFC 5322 section 2.1.1)."""
BLOCK = 256 * 1024
"""Octets that are looked at in one go: about what the interpreter's lock may be held for."""


def text_to_crlf(text: str) -> bytes:
    """Text in UTF-8 with all its line ends, CR, LF or CRLF, made CRLF, and one at its end.

    Raises:
        UnicodeEncodeError: A lone surrogate in the text.
    """
    octets = text.encode()  # first, as bytes are replaced in a third of the time that a str takes
    if b"\r" in octets:
        octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if octets and not octets.endswith(b"\n"):
        octets += b"\n"
    return octets.replace(b"\n", b"\r\n")


class Piece(Protocol):
    """**Protocol:** octets that are made only while they are written: what is large should not be there twice."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


def join(pieces: Sequence[bytes | Piece]) -> bytes:
    """The pieces as one. What is large is written in blocks, so that the event loop has its turn in between."""
    size = sum(map(len, pieces))
    if size <= BLOCK:
        return b"".join([piece if isinstance(piece, bytes) else b"".join(piece) for piece in pieces])
    # Zeros that nobody has touched take no memory yet; and at its full size from the start, it is not moved about.
    written = io.BytesIO(bytes(size))
    for piece in pieces:
        written.writelines(_blocks(piece) if isinstance(piece, bytes) else piece)
    return written.getvalue()


def _blocks(content: bytes) -> Iterator[bytes | memoryview]:
    if len(content) <= BLOCK:
        yield content
    else:
        view = memoryview(content)
        yield from (view[start : start + BLOCK] for start in range(0, len(view), BLOCK))


class WithCRLF:
    """Content from `start` on, with all its line ends made CRLF, and one at its end.

    Attributes:
        unchanged: It is so already.
    """

    def __init__(self, content: bytes, start: int = 0) -> None:
        self._content = content
        self._start = start
        # In blocks: one call over a large message would keep the interpreter's lock, and so the event loop waiting.
        pairs = single = 0
        for begin in range(start, len(content), BLOCK):
            end = begin + BLOCK
            pairs += content.count(b"\r\n", begin, end + 1)
            single += content.count(b"\r", begin, end) + content.count(b"\n", begin, end)
        self._whole = single == 2 * pairs
        self._ended = start >= len(content) or content.endswith((b"\r", b"\n"))
        self._size = len(content) - start + single - 2 * pairs + (0 if self._ended else 2)

    @property
    def unchanged(self) -> bool:
        return self._whole and self._ended

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        content, start = self._content, self._start
        while start < len(content):
            end = start + BLOCK
            end += content[end - 1 : end + 1] == b"\r\n"  # it is not cut in two
            block = content[start:end]
            if not self._whole:
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
            yield block
            start = end
        if not self._ended:
            yield b"\r\n"


def is_in_crlf(content: bytes) -> bool:
    """Whether all its line ends are CRLF, and one is at its end."""
    if len(content) > BLOCK:
        return WithCRLF(content).unchanged
    if not content.endswith(b"\r\n"):
        return not content
    # It notes which line ends it saw, in one pass; to count each of them, or to split into lines, takes thrice as long.
    ends = io.IncrementalNewlineDecoder(None, translate=False)
    ends.decode(content.decode("latin-1"), final=True)
    return ends.newlines == "\r\n"


def bytes_to_crlf(content: bytes) -> bytes:
    """Content with all its line ends made CRLF, and one at its end. The same object if it was so already."""
    return content if is_in_crlf(content) else join([WithCRLF(content)])


def blocks_of_lines(content: bytes, start: int = 0) -> Iterator[bytes]:
    """The content from there, in pieces of about BLOCK octets that end where a line does."""
    while start < len(content):
        end = content.rfind(b"\n", start, start + BLOCK) + 1
        if not end:
            end = content.find(b"\n", start) + 1 or len(content)
        yield content[start:end]
        start = end


def long_line(content: bytes) -> int | None:
    """Where the first stretch begins that has no line end for more than LINE_LIMIT octets; None: nowhere.

    Args:
        content: With CRLF line ends.
    """
    # One jump covers all lines that end within a thousand octets, so this costs far less than splitting into lines.
    position, last, reach = 0, len(content) - LINE_LIMIT, LINE_LIMIT + len(b"\r\n")
    while position < last:
        end = content.rfind(b"\n", position, position + reach)
        if end < 0:
            return position
        position = end + 1
    return None


def is_seven_bit(content: bytes) -> bool:
    """Whether content with CRLF line ends may travel as it is (RFC 2045 section 2.7)."""
    return content.isascii() and b"\0" not in content and long_line(content) is None
