"""What counts as a reply, and what is made of its text."""

import json

import pytest

from mailstrom_async._policy.replies import (
    MAX_REPLY_BYTES,
    MAX_TEXT,
    Answer,
    NotSMTP,
    ReplyQueue,
    ReplyReader,
    printable,
)
from mailstrom_async._reply import Phase, Reply


def read(content: bytes) -> Answer:
    """The one reply in these bytes."""
    reader = ReplyReader()
    reader.feed(content)
    answer = reader.next()
    assert answer is not None
    assert not reader.pending
    return answer


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"250 OK\r\n", Answer(250, None, "OK")),
        (b"250\r\n", Answer(250, None, "")),
        (b"250 \r\n", Answer(250, None, "")),
        (b"354 go on\r\n", Answer(354, None, "go on")),
        (b"250 2.1.5 fine\r\n", Answer(250, "2.1.5", "fine")),
        (b"550 5.1.1\r\n", Answer(550, "5.1.1", "")),
        (b"550 5.7.509 Access denied\r\n", Answer(550, "5.7.509", "Access denied")),
        (b"250-one\r\n250-two\r\n250 three\r\n", Answer(250, None, "one\ntwo\nthree")),
        (b"550-5.7.1 no\r\n550 5.7.1 really no\r\n", Answer(550, "5.7.1", "no\nreally no")),
        (b"550 5.1.1000 odd\r\n", Answer(550, None, "5.1.1000 odd")),
        (b"550 5.1.1x odd\r\n", Answer(550, None, "5.1.1x odd")),
    ],
)
def test_a_reply_is_read(content: bytes, expected: Answer):
    """Code, enhanced status and text, one line or several (RFC 5321 section 4.2, RFC 3463 section 2)."""
    assert read(content) == expected


def test_a_reply_with_bare_line_feeds_is_read():
    """Row A57: old servers end their lines so."""
    assert read(b"250-one\n250 two\n") == Answer(250, None, "one\ntwo")


@pytest.mark.parametrize(
    "line",
    ["999 x", "25", "+25 x", " 25 x", "2500 x", "abc", "099 x", "199 x", "600 x", "", "250_x", "-250 x", "２５０ x"],
)
def test_what_is_no_reply_is_refused(line: str):
    """Row A44: exactly three digits, 2yz to 5yz; aiosmtplib and int() take more than that."""
    reader = ReplyReader()
    reader.feed(line.encode() + b"\r\n")

    with pytest.raises(NotSMTP, match="no SMTP reply"):
        reader.next()


@pytest.mark.parametrize("codes", [(250, 550), (550, 250), (250, 251), (451, 550)])
def test_a_reply_whose_lines_differ_in_code_is_refused(codes: tuple[int, int]):
    """Row A45: neither its first nor its last line is the truth."""
    reader = ReplyReader()
    reader.feed(b"%d-one\r\n%d two\r\n" % codes)

    with pytest.raises(NotSMTP, match="changed its mind"):
        reader.next()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"550 2.1.5 no\r\n", Answer(550, None, "2.1.5 no")),
        (b"250 5.1.1 yes\r\n", Answer(250, None, "5.1.1 yes")),
        (b"451 5.3.0 later\r\n", Answer(451, None, "5.3.0 later")),
    ],
)
def test_a_status_that_contradicts_the_code_does_not_count(content: bytes, expected: Answer):
    """Row A46: the code decides. What the server wrote stays readable in the text."""
    assert read(content) == expected


@pytest.mark.parametrize("lines", [b"x" * 10, b"250-" + b"x" * 70 + b"\r\n"])
def test_a_reply_without_end_is_given_up(lines: bytes):
    """Rows A9 and A10: never more than 64 KiB are held, in one line or in many."""
    reader = ReplyReader()
    for _ in range(MAX_REPLY_BYTES // len(lines)):
        reader.feed(lines)
        assert reader.next() is None
    reader.feed(lines)

    with pytest.raises(NotSMTP, match="more than 65536 bytes"):
        reader.next()


def test_a_huge_reply_in_one_piece_is_refused_as_well():
    """Row A9: the limit does not depend on how the bytes arrive."""
    reader = ReplyReader()
    reader.feed(b"250 " + b"x" * MAX_REPLY_BYTES + b"\r\n")

    with pytest.raises(NotSMTP, match="more than 65536 bytes"):
        reader.next()


def test_a_long_text_is_cut():
    """What is stored for each recipient stays small."""
    assert read(b"250-" + b"x" * 30_000 + b"\r\n250 " + b"y" * 30_000 + b"\r\n") == Answer(250, None, "x" * MAX_TEXT)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"caf\xe9", "caf\ufffd"),
        ("café ✓".encode(), "café ✓"),
        (b"a\x00b", "a\ufffdb"),
        (b"a\x1b[31mb", "a\ufffd[31mb"),
        (b"a\tb", "a b"),
        (b"a\rb", "a b"),
        ("a\u202eb\u2066c".encode(), "a\ufffdb\ufffdc"),
        ("a\u2028b\x85c".encode(), "a b c"),
        (b"a\xed\xa0\x80b", "a\ufffd\ufffd\ufffdb"),
    ],
)
def test_the_text_is_made_printable(raw: bytes, expected: str):
    """Row A43: stores refuse surrogates and NUL, terminals obey escapes, and a log line can be forged by a line end."""
    answer = read(b"550 " + raw + b"\r\n")

    assert answer.text == expected
    assert answer.text.isprintable()
    json.dumps(answer.text).encode()


def test_a_lone_surrogate_is_printable_no_more():
    """Row A43: wherever it comes from."""
    assert printable("a\udc80b") == "a\ufffdb"


def test_an_answer_becomes_the_reply_to_a_phase():
    """The words that the rest of the library uses."""
    assert Answer(550, "5.1.1", "no").to(Phase.RCPT, "mx.example.test") == Reply(
        code=550, enhanced="5.1.1", text="no", command="RCPT", host="mx.example.test"
    )


def test_an_incomplete_reply_is_waited_for():
    """Only its last line ends it."""
    reader = ReplyReader()
    reader.feed(b"250-one\r\n25")

    assert reader.next() is None
    assert reader.pending
    reader.feed(b"0 two\r\n")
    assert reader.next() == Answer(250, None, "one\ntwo")
    assert not reader.pending


def test_replies_are_paired_with_commands_in_order():
    """A pipelined group is answered by as many replies, in one segment or several."""
    queue = ReplyQueue()
    queue.expect(3)
    queue.feed(b"250 a\r\n250 b\r\n35")
    queue.feed(b"4 c\r\n")

    assert [answer.text for answer in queue.ready] == ["a", "b", "c"]
    assert queue.in_step


@pytest.mark.parametrize(
    "data",
    [
        b"250 2.0.0 taken\r\n250 b\n250\r\n354 go\r\n",
        b"250-one\r\n250 two\r\n354 go\r\n",
        b"250 a\r\njunk\r\n",
        b"250 a\r\n421 4.3.2 bye\r\n",
        b"250 " + 600 * b"x" + b"\r\n250 b\r\n",
        b"250 a\r\n250 b\r\n250 c\r\n250 d\r\n250 one too many\r\n",
        b"\r\n",
    ],
)
def test_what_arrives_together_is_read_as_byte_by_byte(data: bytes):
    together, apart = ReplyQueue(), ReplyQueue()
    for queue, pieces in ((together, [data]), (apart, [data[at : at + 1] for at in range(len(data))])):
        queue.expect(4)
        for piece in pieces:
            queue.feed(piece)

    assert (list(together.ready), together.fault, together.in_step) == (list(apart.ready), apart.fault, apart.in_step)


@pytest.mark.parametrize("extra", [b"250 early\r\n", b"550 late\r\n", b"2", b"junk\r\n", b"421 x\r\n250 y\r\n"])
def test_a_reply_too_many_ends_the_conversation(extra: bytes):
    """Row A49: it would answer the next command."""
    queue = ReplyQueue()
    queue.expect()
    queue.feed(b"354 go\r\n" + extra)

    assert queue.fault is not None
    assert not queue.in_step


def test_a_farewell_may_come_unasked():
    """Row A50: a server that goes says 421 at any time (RFC 5321 section 3.8); what it answered before still counts."""
    queue = ReplyQueue()
    queue.expect()
    queue.feed(b"250 taken\r\n421 4.3.2 going down\r\n")

    assert list(queue.ready) == [Answer(250, None, "taken")]
    assert queue.farewell == Answer(421, "4.3.2", "going down")
    assert queue.fault is None
    assert not queue.in_step


def test_nothing_counts_after_the_conversation_went_wrong():
    """And nothing more is held in memory."""
    queue = ReplyQueue()
    queue.feed(b"250 unasked\r\n")
    queue.expect()
    queue.feed(b"250 x\r\n")

    assert not queue.ready
