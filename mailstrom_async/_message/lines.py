"""Lines: how they end, and how long they may be."""

LINE_LIMIT = 998
"""Octets of a line without its CRLF (RFC 5322 section 2.1.1)."""


def text_to_crlf(text: str) -> str:
    """Text with all its line ends, CR, LF or CRLF, made CRLF, and one at its end."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and not text.endswith("\n"):
        text += "\n"
    return text.replace("\n", "\r\n")


def bytes_to_crlf(content: bytes) -> bytes:
    """Content with all its line ends made CRLF, and one at its end. The same object if it was so already."""
    line_ends = content.count(b"\r\n")
    if line_ends != content.count(b"\n") or line_ends != content.count(b"\r"):
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return content if not content or content.endswith(b"\r\n") else content + b"\r\n"


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
