"""The reply reader, against everything that a stranger may send."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._policy.replies import MAX_REPLY_BYTES, MAX_TEXT, Answer, NotSMTP, ReplyReader

TEXTS = st.text("ab 250.1-\t\r\0\x1bé✓\u202e\u2028\U0001f600", max_size=80)


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """A valid reply, with whatever text."""
    code = draw(st.integers(200, 599))
    lines = draw(st.lists(TEXTS, min_size=1, max_size=5))
    end = draw(st.sampled_from(["\r\n", "\n"]))
    marks = ["-"] * (len(lines) - 1) + [" "]
    return "".join(f"{code}{mark}{text}{end}" for mark, text in zip(marks, lines, strict=True)).encode()


def read_all(pieces: list[bytes]) -> list[Answer | str]:
    """All replies in these pieces, and what ended them, if anything did."""
    reader = ReplyReader()
    found: list[Answer | str] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (answer := reader.next()) is not None:
                found.append(answer)
    except NotSMTP as error:
        found.append(str(error))
    return found


def cut(content: bytes, borders: list[int]) -> list[bytes]:
    places = sorted({0, len(content), *(border % (len(content) + 1) for border in borders)})
    return [content[start:end] for start, end in pairwise(places)]


@given(st.lists(replies(), max_size=4), st.lists(st.integers(0, 10_000), max_size=20))
def test_chunk_borders_do_not_matter(many: list[bytes], borders: list[int]):
    """TCP may cut anywhere."""
    content = b"".join(many)
    whole = read_all([content])

    assert read_all(cut(content, borders)) == whole
    assert len(whole) == len(many)


@given(st.lists(st.one_of(replies(), st.binary(max_size=60), st.just(b"250-"), st.just(b"2500 x\r\n"))))
def test_only_replies_are_read_as_replies(pieces: list[bytes]):
    """Whatever comes, what is found has a code of three digits that stood at the begin of a line, and a safe text."""
    content = b"".join(pieces)
    starts = {match[0] for match in re.finditer(rb"^[2-5][0-9]{2}(?=[ \r\n])", content, re.MULTILINE)}

    for answer in read_all(pieces):
        if isinstance(answer, Answer):
            assert b"%d" % answer.code in starts
            assert len(answer.text) <= MAX_TEXT
            assert answer.text.replace("\n", "").isprintable()
            assert answer.enhanced is None or answer.enhanced[0] == str(answer.code)[0]


@given(st.lists(st.binary(min_size=1, max_size=4096), max_size=60))
def test_memory_is_bounded(pieces: list[bytes]):
    """Never more than the limit and the last piece is held."""
    reader = ReplyReader()
    held = 0
    try:
        for piece in pieces:
            reader.feed(piece)
            held += len(piece)
            while reader.next() is not None:
                held = 0
            assert held <= MAX_REPLY_BYTES + len(piece)
    except NotSMTP:
        pass
