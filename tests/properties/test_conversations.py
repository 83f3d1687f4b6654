"""Transactions against a server that says anything, in any pieces, at any time."""

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from typing import NamedTuple

import pytest
import uvloop
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
from mailstrom_async.smtp.wire import Broken, Wire

from .line import Line
from .replies import Decided, outcome

PATIENCE = 10
RECIPIENTS = ("a@example.net", "b@example.net", "c@example.net")
TARGET = Target("mx.example.net", ip_address("192.0.2.1"), 25, "none")
NOW = datetime(2030, 1, 1, tzinfo=UTC)
SHORT = timedelta(seconds=0.05)
TIMEOUTS = Timeouts(command=SHORT, data=SHORT, block=SHORT, end_of_data=SHORT)


class Step(NamedTuple):
    """What the server does: waits for some rounds of the event loop, or until that much is written, and sends."""

    rounds: int
    data: bytes


LINES = (
    b"250 ok\r\n", b"250-2.1.0 a\r\n250 b\r\n", b"251 x\r\n", b"354 go\r\n", b"450 4.2.1 busy\r\n",
    b"452 4.5.3 many\r\n", b"550 5.1.1 no\r\n", b"552 5.3.4 big\r\n", b"421 4.3.2 bye\r\n", b"250-", b"25",
    b"0 ok\r\n", b"2500 x\r\n", b"\r\n", b"-", b" ", b"999 x\r\n", b"250\n", b"220 hello\r\n", b"\x00\xff",
    b"550-a\r\n250 b\r\n",
)  # fmt: skip
CONVERSATION = [b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 taken\r\n"]


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """A conversation that begins well or not at all, with something wrong in it, cut into pieces."""
    good = draw(st.integers(0, 2 * len(CONVERSATION)))
    pieces = [
        *(2 * CONVERSATION)[:good],
        *draw(st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=20)), max_size=8)),
    ]
    for _ in range(draw(st.integers(0, 2))):
        if pieces:
            pieces.insert(draw(st.integers(0, len(pieces))), draw(st.sampled_from(LINES)))
    content = b"".join(pieces)
    if draw(st.booleans()):
        borders = sorted(draw(st.sets(st.integers(0, len(content)), max_size=12)) | {0, len(content)})
        pieces = [content[start:end] for start, end in pairwise(borders)]
    return [Step(draw(st.integers(0, 4)), piece) for piece in pieces]


class Conversation:
    """Two messages over one session, the second one's envelope perhaps behind the first one's content."""

    def __init__(self, line: Line, offers: Offers, content: bytes) -> None:
        self.line = line
        self.session = SMTPSession(Wire(line, Transcript()), TARGET, TLSFacts(), offers, TIMEOUTS)
        self.messages = [QueuedMessage(key, "1@x", "s@example.org", content, False, False, NOW, NOW) for key in (1, 2)]
        self.results: list[TransactionResult] = []
        self.yeses: list[int] = []  # for each message: lines of 2yz that ended after all of it was sent
        self._text = b""

    async def client(self) -> None:
        first, second = self.messages
        self.results.append(await self.session.transact(first, RECIPIENTS, lambda: (second, RECIPIENTS)))
        self.results.append(await self.session.transact(second, RECIPIENTS))

    async def server(self, steps: list[Step]) -> None:
        for step in steps:
            for _ in range(step.rounds):
                await asyncio.sleep(0)
            self._note(step.data)
            self.line.arrive(step.data)
        for _ in range(5):
            await asyncio.sleep(0)
        self.line.end()

    def _note(self, data: bytes) -> None:
        self._text += data
        *whole, self._text = self._text.split(b"\n")
        yes = sum(re.match(rb"2\d\d( |\r|$)", line) is not None for line in whole)
        for index in range(self.line.dots):
            self.yeses[index : index + 1] = [(self.yeses[index] if index < len(self.yeses) else 0) + yes]


async def talk(steps: list[Step], offers: Offers, content: bytes, takes: int | None) -> Conversation:
    conversation = Conversation(Line(takes), offers, content)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(conversation.client(), conversation.server(steps))
    return conversation


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
@given(
    steps(),
    st.sampled_from([Offers(), Offers(pipelining=True), Offers(pipelining=True, size=0)]),
    st.sampled_from([b"Subject: x\r\n\r\nHello\r\n", b"x" * 70_000 + b"\r\n"]),
    st.sampled_from([None, None, None, 20, 60_000]),
)
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_yes_to_the_dot_delivers(new_loop, steps, offers, content, takes):
    """Whatever a server sends: no crash, no hang, an outcome for everybody, and no delivery that it did not confirm."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        conversation = runner.run(talk(steps, offers, content, takes))

    for index, result in enumerate(conversation.results):
        told = result.decided.keys() | set(result.postponed)
        assert told == set(RECIPIENTS) or result.breakdown is not None
        assert not result.untouched or not result.decided
        taken = [r for r, (phase, reply) in result.decided.items() if phase == Phase.END_OF_DATA and reply.code < 300]
        if taken:
            assert sum(conversation.yeses[index : index + 1]) > 0, "there was no yes after the whole message was sent"
        for phase, reply in result.decided.values():
            assert reply.code >= 400 or phase == Phase.END_OF_DATA
            assert reply.text.replace("\n", "").isprintable()
    assert conversation.line.closing or conversation.session.usable


class Replies(NamedTuple):
    """What an honest server answers to one message: a code for MAIL, for each RCPT, for DATA and for the dot."""

    mail: int
    rcpt: tuple[int, ...]
    data: int
    dot: int

    @property
    def outcome(self) -> tuple[dict[str, Decided], set[str]]:
        """What has to be decided for whom, and who is postponed."""
        final = (Phase.DATA, self.data) if self.data >= 400 else (Phase.END_OF_DATA, self.dot)
        return outcome(RECIPIENTS, self.mail, self.rcpt, final)


codes = st.builds(
    Replies,
    st.sampled_from([250, 250, 250, 250, 451, 550]),
    st.tuples(*[st.sampled_from([250, 251, 450, 452, 550])] * len(RECIPIENTS)),
    st.sampled_from([354, 354, 354, 354, 451, 554]),
    st.sampled_from([250, 250, 252, 451, 554]),
)


async def honest_server(line: Line, messages: tuple[Replies, Replies], size: int) -> None:
    """Answer each command as it comes, in pieces of `size` bytes."""
    read, number, rcpt, in_content, begun = 0, -1, 0, False, False
    outgoing = bytearray()
    while not line.closing:
        heard = bytes(line.written)
        end = b"\r\n.\r\n" if in_content and not heard.startswith(b".\r\n", read) else b"\r\n"
        while (found := heard.find(end, read)) >= 0:
            command, read = heard[read:found], found + len(end)
            code = 250
            if in_content:
                code, in_content, begun = messages[number].dot, False, False
            elif command.startswith(b"MAIL"):
                number, rcpt = number + 1, 0
                code = 503 if begun else messages[number].mail  # one at a time: RSET ends what was not sent
                begun = begun or code < 400
            elif command == b"RSET":
                begun = False
            elif command.startswith(b"RCPT"):
                code, rcpt = messages[number].rcpt[rcpt], rcpt + 1
            elif command == b"DATA":
                code = messages[number].data
                in_content = code == 354
            outgoing += b"%d-one\r\n%d two\r\n" % (code, code)
            end = b"\r\n.\r\n" if in_content and not heard.startswith(b".\r\n", read) else b"\r\n"
        if outgoing:
            piece, outgoing = bytes(outgoing[:size]), outgoing[size:]
            line.arrive(piece)
        await asyncio.sleep(0)


async def talk_honestly(messages: tuple[Replies, Replies], offers: Offers, size: int) -> Conversation:
    conversation = Conversation(Line(None), offers, b"Subject: x\r\n\r\nHello\r\n")
    conversation.session = SMTPSession(conversation.session._wire, TARGET, TLSFacts(), offers, Timeouts())
    serving = asyncio.create_task(honest_server(conversation.line, messages, size))
    async with asyncio.timeout(PATIENCE):
        await conversation.client()
    serving.cancel()
    return conversation


@given(st.tuples(codes, codes), st.sampled_from([Offers(), Offers(pipelining=True)]), st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_every_reply_decides_for_whom_it_answers(messages, offers, size):
    """An honest server, any mixture of replies, in any pieces: each recipient of both messages gets its own."""
    with asyncio.Runner() as runner:
        conversation = runner.run(talk_honestly(messages, offers, size))

    for result, replies in zip(conversation.results, messages, strict=True):
        decided = {recipient: (phase, reply.code) for recipient, (phase, reply) in result.decided.items()}
        assert (decided, set(result.postponed)) == replies.outcome
        assert result.breakdown is None
    assert conversation.session.usable


async def test_what_moves_is_not_cut_off():
    """Row A40: each step comes in time, all of them take four times as long as nothing may move."""
    line = Line(takes=0)
    wire = Wire(line, Transcript())
    wire.write(bytes(1000))
    loop = asyncio.get_running_loop()
    for step in range(1, 11):
        loop.call_later(0.02 * step, line.take, 100)
    async with asyncio.timeout(PATIENCE):
        await wire.drain(0.05)

    assert not wire.unsent


async def test_what_does_not_move_is_cut_off():
    """Row A40: nothing was taken for the whole time."""
    line = Line(takes=0)
    wire = Wire(line, Transcript())
    wire.write(bytes(1000))
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(Broken, match="took nothing of the message"):
            await wire.drain(0.05)


async def test_a_half_closed_line_is_dropped_at_once():
    """Row A64: what waits to be sent must not get out any more, as it will be reported as not delivered."""
    line = Line(takes=0)
    wire = Wire(line, Transcript())
    wire.write(b"end of the content\r\n.\r\n")
    line.end()

    assert line.closing
    assert not wire.usable


async def test_a_wait_is_not_cut_short_by_the_one_before_it():
    """They share a timer: that of the first ends while the second, longer one is waited for."""
    line = Line(takes=None)
    wire = Wire(line, Transcript())
    loop = asyncio.get_running_loop()
    wire.expect(2)
    line.arrive(b"250 first\r\n250-sec")
    assert (await wire.answer(0.05)).text == "first"
    waiting = asyncio.create_task(wire.answer(0.04))
    await asyncio.sleep(0)
    line.arrive(b"ond\r\n250 end\r\n")
    assert (await waiting).text == "second\nend"

    wire.expect()
    ended = loop.create_future()
    loop.call_later(0.06, ended.set_result, None)
    waiting = asyncio.create_task(wire.answer(PATIENCE))
    await ended  # the first one's time is over
    assert not waiting.done()
    line.arrive(b"250 third\r\n")

    assert (await waiting).text == "third"


async def test_a_wait_does_not_last_as_long_as_the_one_before_it_might_have():
    """They share a timer: that of the first, longer one is still running."""
    line = Line(takes=None)
    wire = Wire(line, Transcript())
    wire.expect(2)
    waiting = asyncio.create_task(wire.answer(1000))
    await asyncio.sleep(0)
    line.arrive(b"250 first\r\n")
    await waiting
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(Broken, match=r"gave no answer within 0\.05 s"):
            await wire.answer(0.05)
