"""What the scripted server takes from its buffer as content, and what it finds wrong with it."""

import pytest

from mailstrom_async.testing._content import Came, Chunk, Content, Whole, faults


def take_all(content: Content, *pieces: bytes, limit: int | None = None) -> tuple[list[Came | Whole | None], bytes]:
    """What is said after each piece, and what is left in the buffer."""
    buffer = bytearray()
    said: list[Came | Whole | None] = []
    for piece in pieces:
        buffer += piece
        said.append(content.take(buffer, limit))
    return said, bytes(buffer)


@pytest.fixture
def dotted():
    """A content behind DATA, whose start has been told."""
    content = Content()
    content.begin()
    assert content.take(bytearray(b"x"), None) is Came.START
    return content


def test_nothing_is_pending_before_it_is_announced():
    """Then lines are commands."""
    content = Content()

    assert not content.pending
    assert not content.awaits_nothing


def test_content_ends_at_a_dot_on_a_line_by_itself(dotted):
    """However it is cut; what stands behind it is left (RFC 5321 section 4.1.1.4)."""
    text = b"Subject: x\r\n\r\n..two\r\n...three\r\n. \r\nend\r\n.\r\n"
    *early, last = [bytes([octet]) for octet in text]
    said, left = take_all(dotted, *early, last + b"RSET\r\n")

    assert said == [None] * len(early) + [Whole(b"Subject: x\r\n\r\n.two\r\n..three\r\n \r\nend\r\n", False)]
    assert left == b"RSET\r\n"
    assert not dotted.pending


def test_content_may_be_empty(dotted):
    """The final dot is its first line."""
    assert take_all(dotted, b".\r\nQUIT\r\n") == ([Whole(b"", False)], b"QUIT\r\n")


@pytest.mark.parametrize("size", [8, 9])
def test_a_dot_that_was_stuffed_counts_for_nothing(dotted, size):
    """The limit is one for what is kept."""
    said, _ = take_all(dotted, b"..%b\r\n.\r\n" % (b"x" * (size - 3)), limit=8)

    assert said == [Whole(b".%b\r\n" % (b"x" * (size - 3)), too_big=size > 8)]


def test_what_is_far_too_big_is_dropped_as_it_comes(dotted):
    """And its end is found all the same, where the cut goes through it, too."""
    said, left = take_all(dotted, *[b"x" * 99] * 50, b"x\r\n.", b"\r\nRSET\r\n", limit=100)

    assert said == [None] * 51 + [Whole(b"", too_big=True)]
    assert left == b"RSET\r\n"


def test_chunks_are_put_together():
    """The start is told once, though the first one has no octets (RFC 3030 section 2)."""
    content = Content()
    buffer = bytearray(b"")
    content.announce(Chunk(0, last=False))

    assert content.awaits_nothing
    assert content.take(buffer, None) is Came.START
    assert content.take(buffer, None) is Came.PART
    assert not content.pending

    content.announce(Chunk(3, last=False))

    assert content.pending
    assert not content.awaits_nothing
    assert take_all(content, b".\r", b"\nBDAT") == ([None, Came.PART], b"BDAT")

    content.announce(Chunk(4, last=True))

    assert take_all(content, b".\r\n.\r\n") == ([Whole(b".\r\n.\r\n.", False)], b"\r\n")


def test_chunks_are_too_big_together():
    """Each of them would not be."""
    content = Content()
    content.announce(Chunk(5, last=False))
    take_all(content, b"", b"12345", limit=8)
    content.announce(Chunk(4, last=True))

    assert take_all(content, b"6789", limit=8) == ([Whole(b"123456789", True)], b"")


@pytest.mark.parametrize(
    ("argument", "chunk"),
    [
        ("12", Chunk(12, False)),
        ("0 last", Chunk(0, True)),
        ("", None),
        ("-1", None),
        ("5 FIRST", None),
        ("5  LAST", None),
        ("1" * 19, None),
    ],
)
def test_chunks_are_announced_by_their_length(argument, chunk):
    """And nobody can tell how long one is whose argument is none."""
    assert Chunk.parse(argument) == chunk


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", []),
        (b"plain\r\n" * 1000, []),
        (b"x" * 998 + b"\r\n", []),
        (b"x\r\n" + b"x" * 999 + b"\r\n", ["line longer than 998 octets in the content"]),
        (b"x" * 998 + b"\r\n" + b"x" * 1001, ["line longer than 998 octets in the content"]),
        (b"a\rb\r\n", ["bare CR in the content"]),
        (b"a\nb\r\n", ["bare LF in the content"]),
        (b"a\0b\r\n", ["NUL in the content"]),
        (b"\n\r", ["bare CR in the content", "bare LF in the content"]),
        ("é\r\n".encode(), ["8-bit content without BODY=8BITMIME"]),
    ],
)
def test_what_is_wrong_with_a_content_is_told(content, found):
    """All of it."""
    assert list(faults(content, ["SIZE=5"])) == found


def test_eight_bits_may_be_declared():
    """Letter case does not count (RFC 6152 section 2)."""
    assert list(faults("é\r\n".encode(), ["SIZE=5", "body=8bitmime"])) == []
