"""Lines: how they end, and how long they may be."""

import io
from collections.abc import Iterator

LINE_LIMIT = 998
"""Octets of a line without its CRLF (RFC 5322 section 2.1.1)."""
BLOCK = 256 * 1024
"""Octets that are looked at in one go: about what the interpreter's lock may be held for."""


def text_to_crlf(text: str) -> str:
    """Text with all its line ends, CR, LF or CRLF, made CRLF, and one at its end."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and not text.endswith("\n"):
        text += "\n"
    return text.replace("\n", "\r\n")


def bytes_to_crlf(content: bytes) -> bytes:
    """Content with all its line ends made CRLF, and one at its end. The same object if it was so already."""
    # In blocks: one call over a large message would keep the interpreter's lock, and so the event loop waiting.
    pairs = single = 0
    for start in range(0, len(content), BLOCK):
        end = start + BLOCK
        pairs += content.count(b"\r\n", start, end + 1)
        single += content.count(b"\r", start, end) + content.count(b"\n", start, end)
    if single != 2 * pairs:
        content = _mended(content, len(content) + single - 2 * pairs)
    return content if not content or content.endswith(b"\r\n") else content + b"\r\n"


def _mended(content: bytes, size: int) -> bytes:
    """The same with CRLF line ends; it will have this size."""
    written = io.BytesIO(bytes(size))
    start = 0
    while start < len(content):
        end = start + BLOCK
        end += content[end - 1 : end + 1] == b"\r\n"  # it is not cut in two
        written.write(content[start:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n"))
        start = end
    return written.getvalue()


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
    position = 0
    while len(content) - position > LINE_LIMIT:
        end = content.rfind(b"\n", position, position + LINE_LIMIT + 2)
        if end < 0:
            return position
        position = end + 1
    return None


def is_seven_bit(content: bytes) -> bool:
    """Whether content with CRLF line ends may travel as it is (RFC 2045 section 2.7)."""
    return content.isascii() and b"\0" not in content and long_line(content) is None
