"""MemoryStorage and SQLiteStorage give the same answers, whatever is done to them, one by one or all at once."""

import asyncio
import tempfile
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailstrom_async._envelope import LANES, Delivery, Lane
from mailstrom_async._errors import MailstromError
from mailstrom_async.storage import MemoryStorage, SQLiteStorage, Storage
from mailstrom_async.storage.base import Acceptance, Record, Recorded
from mailstrom_async.testing._contract.ground import NOW, Result, deferred, delivered, email, failed, record_of

ADDRESSES = ("ada@a.example", "bob@a.example", "ada@b.example", "Ada@B.example", "eve@c.example")
IDS = tuple("abcdefgh")
SECOND = timedelta(seconds=1)

ids = st.sampled_from(IDS)
owners = st.sampled_from(["one", "two"])
seconds = st.integers(0, 8)
addresses = st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=5, unique=True)
lanes = st.sampled_from(LANES)
messages = st.lists(st.tuples(ids, addresses, seconds, st.booleans(), lanes), max_size=4)


def plain(answer: object) -> object:
    """An answer in a form that can be compared: deliveries by what they hold, in the order of their numbers."""
    if isinstance(answer, MailstromError):
        return type(answer)
    if isinstance(answer, list) and answer and isinstance(answer[0], Delivery):
        return sorted((plain(one) for one in answer), key=repr)
    if isinstance(answer, list):
        return [plain(one) for one in answer]
    if isinstance(answer, Delivery):
        message = answer.message
        shared = (message.key, message.message_id, message.sender, message.content, message.queued_at, message.lane)
        return answer.id, answer.destination, answer.owner, answer.attempt, answer.recipients, shared
    if isinstance(answer, Recorded):
        return answer.accepted, dict(answer.results), answer.due, answer.completed
    return answer


class Stores(RuleBasedStateMachine):
    """Two stores to which the same happens."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.stores: tuple[Storage, Storage] = (MemoryStorage(), SQLiteStorage(Path(self.folder.name) / "mail.db"))
        self.now = NOW
        self.claims: list[tuple[Delivery, Delivery]] = []
        """What was ever claimed, as each of the stores gave it: most of these claims are lost."""

    @initialize()
    def open(self) -> None:
        self.both(Call("open", self.now))

    def teardown(self) -> None:
        self.both(Call("aclose"))
        self.runner.close()
        self.folder.cleanup()

    def both(self, *calls: "Call") -> tuple[list[Any], list[Any]]:
        """Call the same on both, all calls at once, and compare the answers."""

        async def ask(which: int) -> list[Any]:
            coroutines: list[Coroutine[Any, Any, Any]] = [
                getattr(self.stores[which], call.name)(*call.arguments[which], **call.named) for call in calls
            ]
            return await asyncio.gather(*coroutines, return_exceptions=True)

        memory, sqlite = self.runner.run(ask(0)), self.runner.run(ask(1))
        for call, one, other in zip(calls, memory, sqlite, strict=True):
            for answer in (one, other):
                if isinstance(answer, BaseException) and not isinstance(answer, MailstromError):
                    raise answer
            assert plain(one) == plain(other), call.name
        return memory, sqlite

    @rule(batches=st.lists(messages, min_size=1, max_size=4), queue_size=st.none() | st.integers(0, 6))
    def enqueue(self, batches: list[list[tuple[str, list[str], int, bool, Lane]]], queue_size: int | None) -> None:
        """Several calls that may meet in one commit."""
        calls = [
            Call("enqueue", [self.acceptance(*message) for message in batch], queue_size=queue_size)
            for batch in batches
        ]
        self.both(*calls)

    def acceptance(self, message_id: str, to: list[str], wait: int, as_written: bool, lane: Lane) -> Acceptance:
        written = to if as_written else [f"<{address}>" for address in to]
        due_at, content = self.now + wait * SECOND, b"x" * wait
        return email(message_id, to, written=written, queued_at=self.now, due_at=due_at, content=content, lane=lane)

    @rule(owner=owners, lease=seconds, among=st.sets(st.integers(0, 30)))
    def claim(self, owner: str, lease: int, among: set[int]) -> None:
        until = self.now + lease * SECOND
        memory, sqlite = self.both(Call("claim", sorted(among), owner=owner, now=self.now, lease_until=until))
        by_id = {delivery.id: delivery for delivery in sqlite[0]}
        self.claims += [(delivery, by_id[delivery.id]) for delivery in memory[0]]

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), wait=seconds, times=st.integers(1, 3))
    def record(self, data: st.DataObject, wait: int, times: int) -> None:
        """What attempts did, in one call or in several; some of them for claims that are lost."""
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.claims))), min_size=1, max_size=6, unique=True))
        due_at = self.now + wait * SECOND
        records: list[tuple[Record, Record]] = []
        for index in chosen:
            pair = self.claims[index]
            states = data.draw(st.lists(st.sampled_from("dfr"), min_size=5, max_size=5))
            results: dict[str, Result] = {}
            for recipient, state in zip(pair[0].recipients, states, strict=False):
                made: dict[str, Result] = {"d": delivered(self.now), "f": failed(self.now), "r": deferred(due_at)}
                results[recipient.address] = made[state]
            again = due_at if any(result.state == "deferred" for result in results.values()) else None
            one, other = (record_of(side, results, again, started_at=self.now) for side in pair)
            if data.draw(st.booleans()) and again is None:
                one, other = (Record(record.delivery, record.results, None, None) for record in (one, other))
            records.append((one, other))
        calls = [
            Call.of("record", *zip(*records[start::times], strict=True)) for start in range(min(times, len(records)))
        ]
        self.both(*calls)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), wait=seconds, name=st.sampled_from(["renew", "release"]))
    def keep_or_give_back(self, data: st.DataObject, wait: int, name: str) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.claims), min_size=1, max_size=6))
        self.both(Call.of(name, *zip(*chosen, strict=True), self.now + wait * SECOND))

    @rule(message_id=ids, name=st.sampled_from(["cancel", "hasten"]))
    def intervene(self, message_id: str, name: str) -> None:
        self.both(Call(name, message_id, self.now))

    @rule(ago=seconds)
    def purge(self, ago: int) -> None:
        self.both(Call("purge", self.now - ago * SECOND))

    @rule(span=st.integers(-2, 5))
    def wait(self, span: int) -> None:
        """Time passes, or the clock is set back."""
        self.now += span * SECOND

    @rule()
    def restart(self) -> None:
        self.both(Call("aclose"))
        self.both(Call("open", self.now))

    @rule(
        limit=st.integers(0, 20),
        excluding=st.sets(st.sampled_from(["a.example", "b.example", "c.example", "d"])),
        lane=st.none() | lanes,
    )
    def look(self, limit: int, excluding: set[str], lane: Lane | None) -> None:
        self.both(Call("upcoming", limit, excluding=excluding, lane=lane))

    @rule(limit=st.integers(0, 10), ago=st.none() | seconds)
    def list_recent(self, limit: int, ago: int | None) -> None:
        self.both(Call("recent", None if ago is None else self.now - ago * SECOND, limit))

    @invariant()
    def they_show_the_same(self) -> None:
        names = ("status", "attempts", "prepared")
        self.both(Call("upcoming", 100), *(Call(name, message_id) for message_id in IDS for name in names))


class Call:
    """A call of a method: what it is given may differ, for claims hold what the store that gave them holds."""

    def __init__(self, name: str, *arguments: object, **named: object) -> None:
        self.name = name
        self.arguments: tuple[tuple[object, ...], ...] = (arguments, arguments)
        self.named = named

    @classmethod
    def of(cls, name: str, memory: object, sqlite: object, *arguments: object) -> "Call":
        call = cls(name)
        call.arguments = ((memory, *arguments), (sqlite, *arguments))
        return call


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
