"""Reading an SMTP server's replies, strictly.

A server is a stranger. Whatever is not a reply by RFC 5321 section 4.2 ends the conversation, as nothing that follows
could be paired with our commands any more; and what a reply says is made safe to store, show and log before it gets
any further.
"""

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, cast

from mailstrom_async._model import trusted
from mailstrom_async._reply import Phase, Reply

MAX_REPLY_BYTES = 64 * 1024
MAX_TEXT = 2_000
USUAL = 500
"""Bytes that arrive together above which nothing is remembered of their lines."""

CLOSING = 421

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
# RFC 3463 section 2: class, subject and detail.
_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?= |$)")
_UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


class NotSMTP(Exception):
    """What arrived can't be a reply, or not the reply to what we said. Its text continues "the server ..."."""


class Answer(NamedTuple):
    """A reply, before anybody knows what it answers."""

    code: int
    enhanced: str | None
    text: str

    @property
    def positive(self) -> bool:
        return 200 <= self.code <= 299

    @property
    def negative(self) -> bool:
        return self.code >= 400

    def to(self, phase: Phase, host: str) -> Reply:
        """This answer as the reply of `host` to `phase`."""
        return trusted(Reply, code=self.code, enhanced=self.enhanced, text=self.text, command=phase._value_, host=host)

    def __str__(self) -> str:
        return " ".join(str(word) for word in (self.code, self.enhanced, self.text.replace("\n", " ")) if word)


def printable(text: str) -> str:
    """One line of text in printable characters only: no controls, escapes, NULs, bidirectional overrides, surrogates.

    A reply's text ends up in stores, JSON, logs and terminals, each of which breaks on, or obeys, some of these.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else " " if character.isspace() else _UNPRINTABLE for character in text
    )


@lru_cache(maxsize=256)
def _one_line(line: bytes) -> Answer | None:
    """The reply that is this line alone, without its LF; None: it is not whole, or none at all.

    Servers say the same few things again and again.
    """
    match = _LINE.fullmatch(line.rstrip(b"\r"))
    return None if match is None or match[2] == b"-" else _answer(match[1], [match[3] or b""])


def _one_line_each(data: bytes) -> list[Answer]:
    """The replies in what arrived, as it mostly does: whole ones, of one line each. Empty: it is not so."""
    *lines, rest = data.split(b"\n")
    answers = [] if rest or len(data) > USUAL else list(map(_one_line, lines))
    return [] if None in answers else cast("list[Answer]", answers)


def _answer(code_digits: bytes, lines: Sequence[bytes]) -> Answer:
    code = int(code_digits)
    enhanced = None
    texts: list[str] = []
    for raw in lines:
        text = printable(raw[: 4 * MAX_TEXT].decode("utf-8", "replace").strip())
        match = _ENHANCED.match(text)
        # A status of another class contradicts the code, and the code decides; it stays in the text as a curiosity.
        if match is not None and int(match[1]) == code // 100:
            enhanced = enhanced or match[0]
            text = text[match.end() :].lstrip()
        texts.append(text)
    return Answer(code, enhanced, "\n".join(texts)[:MAX_TEXT])


class ReplyReader:
    """Takes bytes as they arrive, and gives the replies in them one by one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._code: bytes | None = None
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def pending(self) -> bool:
        """Bytes are here that no reply was made of."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        self._buffer += data

    def next(self) -> Answer | None:
        """The next reply; None: it is not whole yet.

        Raises:
            NotSMTP: What is here is not the begin of a reply, or more than any reply needs.
        """
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            # Lines that end with a bare LF are lines, too (Postfix reads them so): old servers send them.
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            self._searched = 0
            self._size += end + 1
            self._check_size(0)
            if self._take(line):
                return self._finish()
        self._searched = len(self._buffer)
        self._check_size(len(self._buffer))
        return None

    def _check_size(self, more: int) -> None:
        if self._size + more > MAX_REPLY_BYTES:
            raise NotSMTP(f"sent a reply of more than {MAX_REPLY_BYTES} bytes")

    def _take(self, line: bytes) -> bool:
        """Add a line to the reply, and tell whether it is its last one."""
        match = _LINE.fullmatch(line)
        if match is None:
            raise NotSMTP(f"sent what is no SMTP reply: {printable(line[:80].decode('utf-8', 'replace'))!r}")
        code, mark, text = match.groups()
        if self._code is not None and code != self._code:
            raise NotSMTP(f"changed its mind within one reply, from {self._code.decode()} to {code.decode()}")
        self._code = code
        self._lines.append(text or b"")
        return bool(mark != b"-")

    def _finish(self) -> Answer:
        answer = _answer(self._code or b"", self._lines)
        self._code = None
        self._lines = []
        self._size = 0
        return answer


class ReplyQueue:
    """Pairs replies with commands: no reply counts that no command waits for.

    Else a second reply in one segment answers the next command, and a later recipient gets an earlier one's refusal, or
    a message its delivery. One reply may come unasked: 421, by which a server says that it goes (RFC 5321 section 3.8).

    Attributes:
        ready: Replies not yet taken, oldest first.
        fault: Why the conversation can't go on; continues "the server ...".
        farewell: The 421 that came unasked.
        in_step: There is neither of these two.
    """

    def __init__(self) -> None:
        self.ready: deque[Answer] = deque()
        self.fault: str | None = None
        self.farewell: Answer | None = None
        self.in_step = True
        self._reader = ReplyReader()
        self._expected = 0

    @property
    def partial(self) -> bool:
        """A reply has begun and is not whole."""
        return self._reader.pending

    def expect(self, count: int = 1) -> None:
        """So many commands more are sent."""
        self._expected += count

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        if not self.in_step:
            return
        if not self._reader.pending and 0 < len(answers := _one_line_each(data)) <= self._expected:
            self._expected -= len(answers)
            self.ready += answers
            return
        self._reader.feed(data)
        try:
            self._sort()
        except NotSMTP as error:
            self.fault = str(error)
        self.in_step = self.fault is None and self.farewell is None

    def _sort(self) -> None:
        while self._expected:
            answer = self._reader.next()
            if answer is None:
                return
            self._expected -= 1
            self.ready.append(answer)
        if self._reader.pending:
            extra = self._reader.next()
            if extra is None or extra.code != CLOSING or self._reader.pending:
                raise NotSMTP("sent more replies than we sent commands")
            self.farewell = extra
