"""A window of messages against servers that answer as they please, and connections that end anywhere."""

import asyncio
from collections import deque
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom_async._config import Timeouts
from mailstrom_async._envelope import QueuedMessage
from mailstrom_async._reply import Phase
from mailstrom_async._status import TLSFacts
from mailstrom_async.smtp import Target, TransactionResult
from mailstrom_async.smtp.envelope import Offers
from mailstrom_async.smtp.session import SMTPSession
from mailstrom_async.smtp.transcript import Transcript
from mailstrom_async.smtp.wire import Wire

from .line import Line
from .replies import Decided, outcome

PATIENCE = 10
RECIPIENTS = ("a@example.net", "b@example.net")
TARGET = Target("mx.example.net", ip_address("192.0.2.1"), 25, "none")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
OFFERS = Offers(pipelining=True, chunking=True)


class Replies(NamedTuple):
    """What a server answers to one message: to MAIL, to each RCPT, and to all of the content."""

    mail: int
    rcpt: tuple[int, ...]
    content: int

    @property
    def outcome(self) -> tuple[dict[str, Decided], set[str]]:
        """What has to be decided for whom, and who is postponed."""
        return outcome(RECIPIENTS, self.mail, self.rcpt, (Phase.END_OF_DATA, self.content))


replies = st.builds(
    Replies,
    st.sampled_from([250, 250, 250, 250, 451, 550]),
    st.tuples(*[st.sampled_from([250, 250, 251, 450, 452, 550])] * len(RECIPIENTS)),
    st.sampled_from([250, 250, 250, 252, 451, 554]),
)
scripts = st.lists(replies, min_size=1, max_size=9)


class Server:
    """Reads what has come over a line, and answers each command by the script.

    Attributes:
        taken: The numbers of the messages that it has, and has said yes to (whether or not that was heard).
    """

    def __init__(self, line: Line, script: list[Replies], *, tidy: bool) -> None:
        self.taken: list[int] = []
        self._line = line
        self._script = script
        self._tidy = tidy  # a refused content ends the transaction, as in Postfix; else only RSET does, as in Exim
        self._read = 0
        self._number = -1
        self._rcpt = 0
        self._accepted = 0
        self._begun = False

    def answers(self, reach: int) -> bytes:
        """Replies to what came since the last call, of the first `reach` bytes that were sent."""
        heard = bytes(self._line.written[:reach])
        out = bytearray()
        while (end := heard.find(b"\r\n", self._read)) >= 0:
            command = heard[self._read : end]
            if command.startswith(b"BDAT"):
                size = int(command.split()[1])
                if len(heard) < end + 2 + size:
                    break
                end += size
            self._read = end + 2
            code, status = self._obey(command)
            out += b"%d %d%b one\r\n" % (code, code // 100, status)
        return bytes(out)

    def _obey(self, command: bytes) -> tuple[int, bytes]:
        if command == b"RSET":
            self._begun = False
            return 250, b".0.0"
        if command.startswith(b"MAIL"):
            if self._begun:
                return 503, b".5.1"  # one at a time
            self._number, self._rcpt, self._accepted = int(command[len("MAIL FROM:<s") :].split(b"@")[0]), 0, 0
            code = self._script[self._number].mail
            self._begun = code < 400
            return code, b".1.0"
        if command.startswith(b"RCPT"):
            if not self._begun:
                return 503, b".5.1"
            code, self._rcpt = self._script[self._number].rcpt[self._rcpt], self._rcpt + 1
            self._accepted += code < 400
            return code, b".1.5"
        assert command.startswith(b"BDAT")
        code = self._script[self._number].content if self._accepted else 554
        if code < 400:
            self.taken.append(self._number)
        if code < 400 or self._tidy:
            self._begun, self._accepted = False, 0
        return code, b".0.0"


class Sender:
    """Sends messages over one session, as many ahead as it asks for, and gives up what is left when it ends."""

    def __init__(self, line: Line, count: int, window: int, *, content: bytes = b"Subject: x\r\n\r\n.BDAT\r\n") -> None:
        self.session = SMTPSession(Wire(line, Transcript()), TARGET, TLSFacts(), OFFERS, Timeouts(), bdat_window=window)
        self.results: dict[int, TransactionResult] = {}
        self._left = deque(
            QueuedMessage(key, f"{key}@x", f"s{key}@example.org", content, False, False, NOW, NOW)
            for key in range(count)
        )
        self._named: deque[QueuedMessage] = deque()
        self.most = 0

    def _following(self):
        if not self._left:
            return None
        self._named.append(self._left.popleft())
        self.most = max(self.most, len(self._named))
        return self._named[-1], RECIPIENTS

    async def run(self) -> None:
        while (self._named or self._left) and self.session.usable:
            message = (self._named or self._left).popleft()
            self.results[message.key] = await self.session.transact(message, RECIPIENTS, self._following)
        for result in self.session.abandon():
            self.results[self._named.popleft().key] = result


async def talk(script, window, size, *, tidy=True, reach=10**9, hear=10**9, twist=None, content=None):
    """A conversation; the server reads `reach` bytes at most, and of what it says `hear` bytes arrive at most."""
    line = Line(reach if reach < 10**9 else None)
    sender = Sender(line, len(script), window, **({"content": content} if content else {}))
    server = Server(line, script, tidy=tidy)
    sending = asyncio.create_task(sender.run())
    outgoing = bytearray()
    said, quiet = 0, 0
    async with asyncio.timeout(PATIENCE):
        while not sending.done() and not line.closing:
            outgoing += server.answers(reach)
            if twist is not None and outgoing and said == 0:
                outgoing, twist = twist(outgoing), None
            piece = bytes(outgoing[: min(size, hear - said)])
            del outgoing[: len(piece)]
            said += len(piece)
            quiet = 0 if piece else quiet + 1
            if piece:
                line.arrive(piece)
            elif quiet > 8:
                server.answers(reach)
                line.end()
            await asyncio.sleep(0)
        await sending
    return sender, server


@given(scripts, st.integers(1, 6), st.integers(1, 300), st.booleans())
@settings(max_examples=400, deadline=None)
def test_every_reply_decides_for_whom_it_answers(script, window, size, tidy):
    """An honest server, any mixture of replies in any pieces, whether or not a refused content ends its transaction:
    each recipient of each message gets what is his."""
    with asyncio.Runner() as runner:
        sender, server = runner.run(talk(script, window, size, tidy=tidy))

    for number, expected in enumerate(script):
        result = sender.results[number]
        decided = {recipient: (phase, reply.code) for recipient, (phase, reply) in result.decided.items()}
        assert (decided, set(result.postponed)) == expected.outcome
        assert result.breakdown is None
    assert len(set(server.taken)) == len(server.taken)
    assert sender.most < window + 1


def fates(sender: Sender, count: int) -> list[str]:
    """For each message: "taken", "unknown", "refused", "broken" (an attempt that failed), or "unsent"."""
    out = []
    for number in range(count):
        result = sender.results.get(number)
        if result is None or result.untouched:
            out.append("unsent")
        elif any(phase is Phase.END_OF_DATA and reply.code < 300 for phase, reply in result.decided.values()):
            out.append("taken")
        elif result.breakdown is None:
            out.append("refused")
        else:
            out.append("unknown" if result.breakdown.cause == "outcome_unknown" else "broken")
    return out


@given(scripts, st.integers(1, 6), st.integers(1, 300), st.integers(0, 1500), st.integers(0, 700), st.booleans())
@settings(max_examples=1000, deadline=None)
def test_a_connection_that_ends_anywhere_leaves_no_message_with_a_wrong_fate(
    script, window, size, reach, hear, all_is_read
):
    """The server got so many bytes, and so many of its own arrived: what it took is taken, or unknown, here; and what
    is neither it did not take."""
    with asyncio.Runner() as runner:
        sender, server = runner.run(talk(script, window, size, reach=10**9 if all_is_read else reach, hear=hear))

    for number, fate in enumerate(fates(sender, len(script))):
        if number in server.taken:
            assert fate in ("taken", "unknown")
        else:
            assert fate != "taken"
    assert server.taken == sorted(set(server.taken))


EXTRA = [b"250 2.0.0 x\r\n", b"250 2.1.5 x\r\n", b"250 x\r\n", b"550 5.1.1 x\r\n", b"421 bye\r\n", b"354 go\r\n", b"25"]


@given(scripts, st.integers(1, 6), st.integers(1, 300), st.sampled_from(EXTRA), st.integers(0, 9), st.booleans())
@settings(max_examples=600, deadline=None)
def test_a_reply_too_many_or_too_few_hangs_and_crashes_nothing(script, window, size, extra, place, instead):
    """Replies are out of step with commands: each message still has an end."""

    def twist(said: bytearray) -> bytearray:
        lines = bytes(said).splitlines(keepends=True)
        lines[place : place + instead] = [extra]
        return bytearray(b"".join(lines))

    with asyncio.Runner() as runner:
        sender, _ = runner.run(talk(script, window, size, twist=twist))

    for result in sender.results.values():
        told = result.decided.keys() | set(result.postponed)
        assert told == set(RECIPIENTS) or result.breakdown is not None or result.untouched


@given(st.integers(1, 4), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_large_contents_wait_for_their_turn(window, size):
    """Above 64 KiB a content goes piece by piece, alone, and arrives whole."""
    script = [Replies(250, (250, 250), 250)] * 3
    content = b"Subject: x\r\n\r\n" + b"x" * 100_000
    with asyncio.Runner() as runner:
        sender, server = runner.run(talk(script, window, size, content=content))

    assert fates(sender, 3) == ["taken"] * 3
    assert server.taken == [0, 1, 2]


async def test_a_yes_before_the_content_is_sent_is_none():
    """The kernel did not take the end of the content; the server can't have it, whatever it says."""
    line = Line(takes=60)
    sender = Sender(line, 1, 4)
    sending = asyncio.create_task(sender.run())
    await asyncio.sleep(0)
    line.arrive(b"250 ok\r\n" * 3)
    for _ in range(3):
        await asyncio.sleep(0)
    line.arrive(b"250 ok\r\n")
    async with asyncio.timeout(PATIENCE):
        await sending

    assert fates(sender, 1) == ["broken"]
    assert sender.results[0].breakdown.cause == "protocol"
