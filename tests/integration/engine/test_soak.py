"""Many messages, servers that do whatever comes to their mind, and a mailer that is started and stopped all the time.

Chance decides what each server does at each moment, and when something is cancelled, hastened, paused or restarted.
Now and then the weather clears, and everything comes to its end; at last set arithmetic shows whether the promises were
kept.
"""

import asyncio
import os
import re
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random

import pytest

from mailstrom_async import (
    Config,
    Email,
    Lane,
    Limits,
    LimitsFor,
    MailerStateError,
    Mailstrom,
    MemoryStorage,
    Rate,
    RetryPolicy,
    SQLiteStorage,
    StorageError,
    Timeouts,
)
from mailstrom_async.testing import (
    Close,
    Context,
    FakeInternet,
    Fault,
    ManualClock,
    Reply,
    Reset,
    SMTPServer,
    Take,
    TakeThenClose,
)

from .conftest import DAY, MINUTE, SECOND, email

SEEDS = range(int(os.environ.get("MAILSTROM_TEST_SOAK_SEEDS", "2")))
STORMS = 3
ROUNDS = 3
BATCH = 12
LEASE = 10 * MINUTE
DOMAINS = {"one.example": 1, "two.example": 1, "three.example": 2, "four.example": 3, "five.example": 4}
"""Each with the number of its exchanger; the first two are one site."""

LANES: list[Lane] = ["auth", "default", "bulk"]

EXTENSIONS = {1: ("PIPELINING", "8BITMIME"), 2: ("PIPELINING", "CHUNKING"), 3: ("PIPELINING", "CHUNKING"), 4: ()}

RANK = {"queued": 0, "deferred": 1, "delivered": 2, "failed": 2}
TRANSACTION = ("MAIL", "RCPT", "DATA", "end of data")
SENDER = re.compile(r"MAIL FROM:<(.*?)>")

Recipient = tuple[str, str]
"""The sender, of which each message has its own, and an address."""


@dataclass
class Weather:
    """What the servers do. Every reply names whom it concerns, so that none can be taken for another's."""

    chance: Random
    world: "World"
    bad: bool = True

    def script(self, server: SMTPServer) -> None:
        for moment in ("greeting", "EHLO", *TRANSACTION):
            server.script[moment] = self.act

    def dns(self, internet: FakeInternet) -> None:
        """Some names can't be looked up for a while."""
        for server in internet.exchangers.values():
            fails = self.bad and self.chance.random() < 0.3
            internet.dns.records[server.name] = Fault.SERVFAIL if fails else {"A": [server.host]}

    def act(self, context: Context) -> object:
        sender = context.sender or next(iter(SENDER.findall(context.command)), "nobody")
        if context.moment == "RCPT" and context.sender is not None:
            self.world.tried(context, sender)
        who = context.recipient if context.moment == "RCPT" else sender
        usual = f"250 2.0.0 {who} taken" if context.moment == "end of data" else None
        if not self.bad or self.chance.random() > 0.12:
            return usual
        choices = [f"450 4.3.0 {who} later", f"452 4.5.3 {who} full", Close(), Reset()]
        choices.append(Reply(f"421 4.3.2 {sender} bye", then=Close()))
        if context.moment in TRANSACTION:
            choices.append(f"550 5.1.1 {who} no")
        if context.moment == "end of data":
            acknowledged = f"250 2.0.0 {who} taken"
            choices += [
                TakeThenClose(),
                Take(Reset()),
                Reply(acknowledged, then=Close()),
                Reply(acknowledged, then=Reset()),
            ]
        return self.chance.choice(choices)


@dataclass
class World:
    """What was seen, by the servers and by whoever asked the mailer."""

    sent: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)  # by Message-ID: sender and recipients
    unsure: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)  # the same, of callers who gave up
    cancelled: set[str] = field(default_factory=set)
    known: dict[Recipient, tuple[str, int]] = field(default_factory=dict)  # state and attempts, as seen last
    under_way: dict[Recipient, Context] = field(default_factory=dict)
    latest: dict[object, str] = field(default_factory=dict)  # by session: the sender of its transaction
    messages: dict[object, int] = field(default_factory=dict)  # by session: how many were taken before
    broken: list[str] = field(default_factory=list)
    overlaps: list[tuple[Recipient, Context, int]] = field(default_factory=list)

    def check_overlaps(self) -> None:
        """I15. A server may not have seen yet that we dropped its connection before we went elsewhere; but if it took
        anything more over it, we had not."""
        for recipient, other, taken in self.overlaps:
            if other.session.messages > taken:
                self.broken.append(f"I15: {recipient} in two transactions at once")

    def tried(self, context: Context, sender: str) -> None:
        """A server was told a recipient (I10, I15, I16)."""
        assert context.recipient is not None
        recipient = sender, context.recipient
        self.latest[context.session] = sender
        self.messages[context.session] = context.session.messages
        other = self.under_way.get(recipient)
        if other is not None and other.session is not context.session and self.goes_on(other, sender):
            self.overlaps.append((recipient, other, other.session.messages))
        self.under_way[recipient] = context
        state, _ = self.known.get(recipient, ("queued", 0))
        if RANK[state] == 2 and sender not in self.cancelled:
            self.broken.append(f"I16: {recipient} was tried after it was {state}")
        if context.recipient in context.recipients:
            self.broken.append(f"I10: {recipient} twice in one transaction")

    def goes_on(self, context: Context, sender: str) -> bool:
        """Whether the transaction that this was said in is still that of its session."""
        session = context.session
        return not session.closed and self.latest[session] == sender and session.messages == self.messages[session]

    async def look(self, mailer: Mailstrom, clock: ManualClock) -> bool:
        """Read all statuses (I1, I2, I11, I18); whether all are completed."""
        expected = dict(self.sent)
        statuses = {s.message_id: s for s in await mailer.query_recent(since=clock.now() - 999 * DAY, limit=10**6)}
        for message_id in statuses.keys() & self.unsure.keys():
            self.sent[message_id] = expected[message_id] = self.unsure.pop(message_id)
        if missing := expected.keys() - statuses.keys():
            self.broken.append(f"I1, I18: {missing} are not known any more")
        for message_id, (sender, recipients) in expected.items():
            status = statuses[message_id]
            if Counter(r.address for r in status.recipients) != Counter(recipients):
                self.broken.append(f"I2: {message_id} has other recipients")
            for seen in status.recipients:
                before = self.known.get((sender, seen.address), ("queued", 0))
                now = seen.result.state, seen.attempts
                if RANK[now[0]] < RANK[before[0]] or now[1] < before[1] or (RANK[before[0]] == 2 and now != before):
                    self.broken.append(f"I11: {sender} {seen.address} went from {before} to {now}")
                self.known[sender, seen.address] = now
        return all(status.completed for status in statuses.values())


class Soak:
    """One run."""

    def __init__(self, seed: int, internet: FakeInternet, storage: MemoryStorage | SQLiteStorage) -> None:
        self.chance = Random(seed)
        self.clock = ManualClock()
        self.world = World()
        self.weather = Weather(self.chance, self.world)
        self.internet = internet
        self.storage = storage
        self.number = 0
        self.calls: list[tuple[asyncio.Task[str], str]] = []
        self.was_closed = False  # since they began
        self.mailer = self.build()

    def build(self) -> Mailstrom:
        config = Config(
            helo_name="app.example.org",
            delivery=self.internet.delivery,
            tls="none",
            retry=RetryPolicy(base_delay=SECOND, max_delay=MINUTE),
            limits=self.limits(),
            timeouts=Timeouts(idle=timedelta(milliseconds=50)),
            lease=LEASE,
        )
        return Mailstrom(config, self.storage, clock=self.clock)

    def limits(self) -> Limits:
        """Others after each restart."""
        chance = self.chance
        return Limits(
            connections=chance.randint(1, 6),
            connections_per_host=chance.randint(1, 3),
            messages_per_connection=chance.choice([1, 2, 7, 100]),
            recipients_per_transaction=chance.randint(1, 3),
            bdat_window=chance.choice([0, 0, 3]),
            rate=chance.choice([None, None, Rate(messages=3, per=timedelta(milliseconds=10))]),
            overrides=chance.choice([(), (LimitsFor(domain="two.example", connections_per_host=1),)]),
            hosts_per_attempt=chance.randint(1, 3),
            bytes_in_flight=chance.choice([1, 200_000, 64 * 1024 * 1024]),
        )

    def compose(self) -> tuple[Email, tuple[str, frozenset[str]]]:
        self.number += 1
        sender = f"s{self.number}@app.example.org"
        domains = self.chance.sample(sorted(DOMAINS), self.chance.choice([1, 1, 2, 3]))
        names = "abc"[: self.chance.randint(1, 3)]
        to = [f"{name}{self.number}@{domain}" for domain in domains for name in names]
        text = f"{self.number} " * self.chance.choice([1, 500, 50_000])
        message_id = f"{self.number}@id.example"
        return email(to, from_=sender, text=text, message_id=message_id), (sender, frozenset(to))

    async def send(self) -> None:
        """Many at once, or each for itself, of which some callers do not wait for the end."""
        composed = [self.compose() for _ in range(BATCH)]
        if self.chance.random() < 0.3:
            await self.mailer.send_emails([one for one, _ in composed], lane=self.chance.choice(LANES))
            self.world.sent.update({one.message_id: meant for one, meant in composed})
            return
        for one, meant in composed:
            self.world.unsure[one.message_id] = meant
            later = self.clock.now() + self.chance.choice([-1, 0, 1]) * SECOND
            not_before, lane = self.chance.choice([None, None, later]), self.chance.choice(LANES)
            call = asyncio.create_task(self.mailer.send_email(one, lane=lane, not_before=not_before))
            self.calls.append((call, one.message_id))
        for call, _ in self.chance.sample(self.calls, self.chance.randrange(4)):
            await self.turns(10)
            call.cancel()

    async def turns(self, most: int) -> None:
        for _ in range(self.chance.randrange(most)):
            await asyncio.sleep(0)

    async def hear(self) -> None:
        """What became of the calls. One that was cancelled, or whose mailer was closed, may have sent or not; no other
        one fails."""
        for call, message_id in self.calls:
            try:
                await call
            except asyncio.CancelledError:
                assert call.cancelling()
            except (MailerStateError, StorageError):
                assert self.was_closed
            else:
                if message_id in self.world.unsure:
                    self.world.sent[message_id] = self.world.unsure.pop(message_id)
        self.calls.clear()
        self.was_closed = False

    async def interfere(self) -> None:
        """Do something that an operator, or the machine, might do."""
        known = sorted(self.world.sent)
        message_id = self.chance.choice(known) if known else ""
        match self.chance.randrange(0 if known else 2, 7):
            case 0:
                self.world.cancelled.add(self.world.sent[message_id][0])
                await self.mailer.cancel(message_id)
            case 1:
                await self.mailer.retry_now(message_id)
            case 2:
                await self.mailer.pause()
                await self.mailer.start()
            case 3:
                await self.mailer.aclose(self.chance.choice([timedelta(0), timedelta(milliseconds=5), MINUTE]))
                self.was_closed = True
                self.mailer = self.build()
                await self.mailer.__aenter__()
            case 4:
                self.clock.advance(self.chance.choice([SECOND, MINUTE]))
            case 5:
                self.weather.dns(self.internet)
            case _:
                await self.turns(200)

    async def run(self) -> None:
        await self.mailer.__aenter__()
        try:
            for _ in range(STORMS):
                self.weather.bad = True
                for _ in range(ROUNDS):
                    await self.send()
                    for _ in range(6):
                        await self.interfere()
                        await self.world.look(self.mailer, self.clock)
                    await self.hear()
                self.weather.bad = False
                self.weather.dns(self.internet)
                await self.send()
                await self.hear()
                await self.finish()
        finally:
            await self.mailer.aclose()

    async def finish(self) -> None:
        """Wait for the end of everything. The clock goes on while nothing moves, but not to the end of a lease: nothing
        is to wait for that while its mailer lives."""
        until = self.clock.now() + LEASE - SECOND
        seen: dict[Recipient, tuple[str, int]] = {}
        async with asyncio.timeout(60):
            while not await self.world.look(self.mailer, self.clock):
                if seen == self.world.known:
                    self.clock.advance(SECOND)
                    assert self.clock.now() < until, [who for who, (state, _) in seen.items() if RANK[state] < 2]
                seen = dict(self.world.known)
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_whatever_happens_the_promises_are_kept(tmp_path, kind, seed):
    """I1, I2, I4, I5, I6, I7, I9, I10, I11, I15, I16 and I18, and nothing is left behind."""
    storage = MemoryStorage() if kind == "memory" else SQLiteStorage(tmp_path / "mail.db")
    async with FakeInternet(ttl=30) as internet:
        for number in set(DOMAINS.values()):
            await internet.exchanger(f"mx{number}.example", extensions=EXTENSIONS[number])
        for domain, number in DOMAINS.items():
            internet.domain(domain, mx=[f"mx{number}.example"] + (["mx1.example"] if number == 3 else []))
        others = asyncio.all_tasks()
        soak = Soak(seed, internet, storage)
        for server in internet.exchangers.values():
            soak.weather.script(server)
        await soak.run()
        await until_closed(internet)

        assert [task for task in asyncio.all_tasks() - others if not task.done()] == []
        copies = [message for server in internet.exchangers.values() for message in server.messages]
        assert [violation for server in internet.exchangers.values() for violation in server.violations] == []
        await judge(soak, copies)
    soak.world.check_overlaps()
    assert soak.world.broken == []
    assert claims_left(storage, tmp_path) == 0


async def until_closed(internet: FakeInternet) -> None:
    """No connection is left open."""
    async with asyncio.timeout(5):
        for session in [session for server in internet.exchangers.values() for session in server.sessions]:
            while not session.closed:  # noqa: ASYNC110 - what a server sees has no event
                await asyncio.sleep(0.001)


def claims_left(storage, tmp_path) -> int:
    if isinstance(storage, MemoryStorage):
        return len(storage._claimed)
    with closing(sqlite3.connect(tmp_path / "mail.db")) as database:
        return database.execute("SELECT count(*) FROM deliveries WHERE owner IS NOT NULL").fetchone()[0]


def may_fail(result, *, cancelled: bool) -> bool:
    if result.state != "failed":
        return True
    return cancelled if result.cause == "cancelled" else result.cause == "smtp" and result.reply.code >= 500


def doubts_in(attempts, sender: str, broken: list[str]) -> Counter[str]:
    """How often it was said of each recipient that he may have got it. Each reply must be his own."""
    doubts: Counter[str] = Counter()
    for attempt in attempts:
        for address, outcome in attempt.outcome.items():
            doubts[address] += outcome.cause == "outcome_unknown"
            reply = outcome.reply
            if reply is not None and reply.command in TRANSACTION and not {sender, address} & set(reply.text.split()):
                broken.append(f"{sender} {address} has the reply of another: {reply}")
    return doubts


async def judge(soak: Soak, messages) -> None:
    """Compare what the store says with what the servers took."""
    copies = Counter((message.sender, recipient) for message in messages for recipient in message.recipients)
    contents: dict[str, set[bytes]] = {}
    for message in messages:
        contents.setdefault(message.sender, set()).add(message.content)
    broken = soak.world.broken
    async with soak.build() as mailer:
        for message_id, (sender, recipients) in soak.world.sent.items():
            status = await mailer.query_status(message_id)
            doubts = doubts_in(await mailer.query_attempts(message_id), sender, broken)
            for recipient in status.recipients:
                who = sender, recipient.address
                delivered = recipient.result.state == "delivered"
                if delivered and not copies[who]:
                    broken.append(f"I4: {who} is delivered, and nobody has it")
                if not may_fail(recipient.result, cancelled=sender in soak.world.cancelled):
                    broken.append(f"I5: {who} has {recipient.result}")
                if copies[who] > delivered + doubts[recipient.address]:
                    broken.append(f"I6, I7: {who} got {copies[who]} copies, {recipient.result.state}, after {doubts}")
            if len(contents.get(sender, ())) > 1:
                broken.append(f"I9: {sender} has sent different contents")
            if extra := {address for who, address in copies if who == sender} - recipients:
                broken.append(f"I10: {sender} went to {extra}, too")
    for sender, _ in soak.world.unsure.values():
        if sender in contents:
            broken.append(f"I1: {sender} has sent what nobody knows")
