"""PostgresStorage does what MemoryStorage does, whatever is asked of it in whatever order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from mailstrom_async import (
    AlreadyQueued,
    Attempt,
    Deferred,
    Delivered,
    Failed,
    MemoryStorage,
    PreparedEmail,
    QueueFull,
    Reply,
    Storage,
)
from mailstrom_async._envelope import LANES, Delivery, Due, Lane
from mailstrom_async._status import Outcome
from mailstrom_async.storage import Acceptance, Record, Recorded
from mailstrom_async.storage.postgres import PostgresStorage

START = datetime(2030, 1, 1, tzinfo=UTC)
DOMAINS = ["a.example", "b.example", "c.example"]
STEPS = 150


@dataclass
class Question:
    """What both are asked: which action, and all that any action may need."""

    action: str
    now: datetime
    new: list[Acceptance]
    queue_size: int | None
    excluding: set[str]
    lane: Lane | None
    due: list[tuple[str, str]]
    owner: str
    until: datetime
    held: list[tuple[str, str, str, int]]
    plans: dict[tuple[str, str, str, int], "Plan"]
    message_id: str


class Twin:
    """One of two stores that are asked the same. Its keys are its own, so deliveries go by message and destination."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.ids: dict[tuple[str, str], int] = {}
        self.names: dict[int, tuple[str, str]] = {}
        self.held: dict[tuple[str, str, str, int], Delivery] = {}

    async def answer(self, question: Question) -> object:
        match question.action:
            case "e":
                return await self.enqueue(question.new, question.queue_size)
            case "u":
                return await self.upcoming(5, question.excluding, question.lane)
            case "c":
                return await self.claim(question.due, question.owner, question.now, question.until)
            case "n":
                return await self.renew(question.held, question.until)
            case "l":
                return await self.release(question.held, question.until)
            case "r":
                return await self.record(question.plans)
            case "h":
                return await self.hasten(question.message_id, question.now)
            case "x":
                return await self.storage.cancel(question.message_id, question.now)
            case _:
                return await self.storage.purge(question.now - timedelta(minutes=10))

    async def enqueue(self, acceptances: Sequence[Acceptance], queue_size: int | None) -> object:
        try:
            dues = await self.storage.enqueue(acceptances, queue_size=queue_size)
        except (AlreadyQueued, QueueFull) as error:
            return str(error)
        wanted = [
            (acceptance.prepared.message_id, destination)
            for acceptance in acceptances
            for destination in dict.fromkeys(one.rpartition("@")[2] for one in acceptance.prepared.recipients)
        ]
        for name, due in zip(wanted, dues, strict=True):
            self.ids[name] = due.delivery_id
            self.names[due.delivery_id] = name
        return self.entries(dues)

    async def upcoming(self, limit: int, excluding: set[str], lane: Lane | None) -> object:
        dues = await self.storage.upcoming(limit + len(self.held), excluding=excluding, lane=lane)
        held = {delivery.id for delivery in self.held.values()}
        return self.entries([due for due in dues if due.delivery_id not in held][:limit])

    async def claim(self, names: Sequence[tuple[str, str]], owner: str, now: datetime, until: datetime) -> object:
        claims = await self.storage.claim([self.ids[name] for name in names], owner=owner, now=now, lease_until=until)
        for claim in claims:
            self.held = {key: old for key, old in self.held.items() if old.id != claim.id}
            self.held[(*self.names[claim.id], owner, claim.attempt)] = claim
        return [
            (
                self.names[claim.id],
                claim.attempt,
                claim.recipients,
                claim.message.content,
                claim.message.expires_at,
                claim.message.lane,
            )
            for claim in claims
        ]

    async def renew(self, held: Sequence[tuple[str, str, str, int]], until: datetime) -> object:
        return [self.names[lost.id] for lost in await self.storage.renew([self.held[one] for one in held], until)]

    async def release(self, held: Sequence[tuple[str, str, str, int]], due_at: datetime) -> object:
        return self.entries(await self.storage.release([self.held.pop(one) for one in held], due_at))

    async def record(self, plans: Mapping[tuple[str, str, str, int], "Plan"]) -> object:
        records = [plan.record(self.held.pop(one)) for one, plan in plans.items()]
        return [self.recorded(one) for one in await self.storage.record(records)]

    async def hasten(self, message_id: str, now: datetime) -> object:
        dues = await self.storage.hasten(message_id, now)
        return None if dues is None else sorted(self.entries(dues))

    def entries(self, dues: Sequence[Due]) -> list[object]:
        return [(due.due_at, self.names[due.delivery_id], due.destination, due.size, due.lane) for due in dues]

    def recorded(self, one: Recorded) -> object:
        return (one.accepted, dict(one.results), self.entries([one.due]) if one.due else None, one.completed)


class Plan:
    """What becomes of a claim, decided once for both twins."""

    def __init__(self, chance: Random, now: datetime) -> None:
        self.now = now
        self.due_at = now + timedelta(seconds=chance.randint(0, 300))
        self.seed = chance.random()

    def record(self, claim: Delivery) -> Record:
        chance = Random(self.seed)
        results: dict[str, Deferred | Delivered | Failed] = {}
        for recipient in claim.recipients:
            reply = Reply(code=250, enhanced=None, text="fine", command="end of data", host="mx")
            results[recipient.address] = chance.choice(
                [
                    Delivered(reply=reply, host="mx", tls=None, delivered_at=self.now),
                    Failed(cause="smtp", enhanced="5.0.0", reason="no", failed_at=self.now),
                    Deferred(cause="smtp", enhanced="4.0.0", reason="wait", next_attempt_at=self.due_at),
                ]
            )
        outcome = Outcome(state="deferred", cause="smtp", enhanced="4.0.0", reason="as told")
        attempt = Attempt(
            started_at=self.now - timedelta(seconds=1),
            duration=timedelta(seconds=1),
            recipients=tuple(results),
            destination=claim.destination,
            outcome=dict.fromkeys(results, outcome),
        )
        deferred = any(result.state == "deferred" for result in results.values())
        return Record(claim, results, self.due_at if deferred else None, attempt if self.seed < 0.9 else None)


def acceptance(chance: Random, message_id: str, now: datetime) -> Acceptance:
    recipients = tuple(f"r{number}@{chance.choice(DOMAINS)}" for number in range(chance.randint(1, 5)))
    prepared = PreparedEmail(message_id, "s@example.org", recipients, b"x" * chance.randint(1, 50))
    due_at = now + timedelta(seconds=chance.randint(0, 60))
    return Acceptance(prepared, now, due_at, now + timedelta(days=5), chance.choice(LANES))


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_questions_get_the_same_answers(storage: PostgresStorage, seed: int) -> None:
    """Rows I1, I2, I11, I18: accepting, claiming, recording, losing leases, cancelling, purging, in any order."""
    chance = Random(seed)
    now = START
    twins = [Twin(MemoryStorage()), Twin(storage)]
    for twin in twins:
        await twin.storage.open(now)
    try:
        message_ids: list[str] = []
        for step in range(STEPS):
            now += timedelta(seconds=chance.randint(0, 30))
            model = twins[0]
            known = chance.choice(message_ids) if message_ids else "none@example.org"
            held = chance.sample(sorted(model.held), min(len(model.held), chance.randint(0, 4)))
            new = [acceptance(chance, f"{step}-{n}@example.org", now) for n in range(chance.randint(1, 3))]
            if chance.random() < 0.2:
                new.append(acceptance(chance, known, now))
            question = Question(
                action=chance.choice("eeucccnlrrrrhxp"),
                now=now,
                new=new,
                queue_size=chance.choice([None, None, 20]),
                lane=chance.choice([None, *LANES]),
                excluding=set(chance.sample(DOMAINS, chance.randint(0, 3))),
                due=chance.sample(sorted(model.ids), min(len(model.ids), chance.randint(0, 6))),
                owner=chance.choice(["we", "they"]),
                until=now + timedelta(seconds=chance.randint(1, 90)),
                held=held,
                plans={one: Plan(chance, now) for one in held},
                message_id=known,
            )
            answers = [await twin.answer(question) for twin in twins]
            message_ids += [one.prepared.message_id for one in new]

            assert answers[0] == answers[1], (step, question.action)
            for message_id in [known, message_ids[-1]]:
                assert await twins[0].storage.status(message_id) == await storage.status(message_id), (step, question)
                assert await twins[0].storage.attempts(message_id) == await storage.attempts(message_id)
                assert await twins[0].storage.prepared(message_id) == await storage.prepared(message_id)
        assert await twins[0].storage.recent(START, 1000) == await storage.recent(START, 1000)
        assert len(twins[0].names) > STEPS / 10
    finally:
        await storage.aclose()
