"""What goes between DATA and its reply."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._envelope import QueuedMessage

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def message(content: bytes) -> QueuedMessage:
    return QueuedMessage(1, "1@example.org", "app@example.org", content, False, False, NOW, NOW)


def unstuffed(wire: bytes) -> bytes:
    """What a server makes of it (RFC 5321 section 4.5.2)."""
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    lines = wire.removesuffix(b".\r\n").split(b"\r\n")
    assert b"." not in lines
    return b"\r\n".join(line.removeprefix(b".") for line in lines)


@given(st.lists(st.sampled_from([b".", b"..", b"a", b"\r\n", b"\r\n", b"xyz", b". "])).map(b"".join), st.integers(1, 9))
def test_pieces_of_any_size_give_the_same_content(content, size):
    """However it is cut, each dot at the begin of a line is doubled, no other, and one lone dot ends it."""
    content = content + b"\r\n"
    wire = b"".join(message(content).on_the_wire(size))

    assert wire == b"".join(message(content).on_the_wire(10_000))
    assert unstuffed(wire) == content


def test_a_large_message_is_not_copied_whole():
    """Row C19, D22: no piece is much larger than asked for."""
    content = (b"." * 70 + b"\r\n") * 10_000

    assert max(len(piece) for piece in message(content).on_the_wire(64 * 1024)) < 66 * 1024


@pytest.mark.parametrize("content", [b"a", b"a\r\n"])
def test_a_content_without_a_line_end_gets_one(content):
    """Or the dot would not stand alone."""
    assert b"".join(message(content).on_the_wire(10)) == b"a\r\n.\r\n"
