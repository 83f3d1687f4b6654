"""New mail that nothing stands before is claimed in the transaction that accepts it; all other mail waits its turn."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from mailstrom_async import AlreadyQueued, MemoryStorage, PreparedEmail
from mailstrom_async._engine.claims import Claims
from mailstrom_async._engine.health import Health
from mailstrom_async._engine.scheduler import Scheduler
from mailstrom_async._envelope import Delivery, Due
from mailstrom_async.storage import Acceptance
from mailstrom_async.testing import ManualClock

LEASE = timedelta(seconds=60)
MEMORY = 16_000


class GatedStorage(MemoryStorage):
    """A queue in memory, in which claims wait until a gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.other_gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.other_gate.set()
        self.claiming = asyncio.Event()
        self.at_once: list[str] = []
        self.delivers = True

    async def claim(self, delivery_ids: Sequence[int], **how: object) -> list[Delivery]:
        self.claiming.set()
        await self.other_gate.wait()
        return await super().claim(delivery_ids, **how)  # type: ignore[arg-type]

    async def enqueue_claimed(self, acceptance: Acceptance, **how: object) -> Delivery | list[Due]:
        self.at_once.append(acceptance.prepared.message_id)
        await self.gate.wait()
        if not self.delivers:
            return await super().enqueue([acceptance])
        return await super().enqueue_claimed(acceptance, **how)  # type: ignore[arg-type]


class Life:
    """A scheduler, and what it passed on."""

    def __init__(self, storage: GatedStorage, clock: ManualClock) -> None:
        self.storage = storage
        self.clock = clock
        self.passed_on: list[Delivery] = []
        self.health = Health(lambda status: None)
        self.claims = Claims(storage, clock, owner="we", lease=LEASE, bytes_in_flight=MEMORY)
        self.scheduler = Scheduler(storage, clock, self.claims, self.health, self.pass_on, longest_wait=LEASE)

    def pass_on(self, deliveries: Sequence[Delivery]) -> None:
        self.passed_on += deliveries

    def acceptance(self, name: str, *recipients: str, size: int = 100, wait: timedelta = timedelta(0)) -> Acceptance:
        now = self.clock.now()
        prepared = PreparedEmail(name, "a@example.org", recipients or ("b@example.net",), b"x" * size)
        return Acceptance(prepared, now, now + wait, now + timedelta(days=5))

    async def send(self, name: str, *recipients: str, size: int = 100, wait: timedelta = timedelta(0)) -> None:
        acceptance = self.acceptance(name, *recipients, size=size, wait=wait)
        self.scheduler.push(await self.scheduler.acceptor.enqueue([acceptance], None))


@pytest.fixture
async def life() -> Life:
    """One that does not run, so that nothing is claimed in any other way."""
    clock, storage = ManualClock(), GatedStorage()
    await storage.open(clock.now())
    return Life(storage, clock)


async def test_new_mail_is_claimed_and_passed_on_as_it_is_accepted(life):
    """When `enqueue` returns it is on its way, under a claim like any."""
    await life.send("1", "b@example.net", "c@example.net")

    assert [(delivery.message.message_id, delivery.attempt) for delivery in life.passed_on] == [("1", 1)]
    assert life.claims.held() == life.passed_on
    assert life.claims.bytes_free == MEMORY - 100


@pytest.mark.parametrize(
    ("recipients", "wait"),
    [(["b@example.net", "c@example.com"], timedelta(0)), (["b@example.net"], timedelta(minutes=1))],
    ids=["several destinations", "not yet due"],
)
async def test_other_mail_waits_its_turn(life, recipients, wait):
    """What is no single delivery that is due now."""
    await life.send("1", *recipients, wait=wait)

    assert life.storage.at_once == []
    assert len(await life.storage.upcoming(10)) == len(recipients)


async def test_nobody_is_overtaken(life):
    """Mail to a destination whose window is full waits, and so does what comes after it, though there is room again."""
    for number in range(9):
        await life.send(f"{number}")
    assert life.storage.at_once == [f"{number}" for number in range(8)]

    first = life.passed_on[0]
    await life.storage.release([first], life.clock.now() + timedelta(days=1))
    life.scheduler.ended(first, well=None)
    await life.send("9")
    assert "9" not in life.storage.at_once
    await life.send("other", "b@example.com")
    assert life.storage.at_once[-1] == "other"


async def test_a_destination_without_room_gets_nothing(life):
    """As long as it is held."""
    life.scheduler.hold("default", "example.net")
    await life.send("1")
    assert life.storage.at_once == []

    life.scheduler.let_go("default", "example.net")
    await life.send("2", "c@example.net")
    assert life.storage.at_once == []  # there is one before it now


async def test_a_store_that_does_not_take_results_gets_no_claims(life):
    """Accepting goes on all the same."""
    life.health.report("store", "is full")
    await life.send("1")

    assert life.storage.at_once == []
    assert await life.storage.status("1") is not None


async def test_what_is_about_to_be_claimed_counts(life):
    """Of the memory: what comes while it is stored must not have it, too."""
    life.storage.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(life.send("1", size=10_000))
        await asyncio.sleep(0)
        assert len(life.claims) == 1
        await life.send("2", "b@example.com", size=10_000)
        assert life.storage.at_once == ["1"]
        life.storage.gate.set()
    assert life.claims.bytes_free == MEMORY - 10_000


async def test_what_could_not_be_accepted_leaves_room(life):
    """Refused or given up, it is as if it had never come."""
    await life.send("1")
    life.storage.gate.clear()
    for _ in range(20):
        given_up = asyncio.create_task(life.send("2"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
    life.storage.gate.set()
    for _ in range(20):
        with pytest.raises(AlreadyQueued):
            await life.send("1")
    await life.send("3")

    assert [delivery.message.message_id for delivery in life.passed_on] == ["1", "3"]
    assert len(life.claims) == 2


async def test_what_the_scheduler_is_just_claiming_counts(life):
    """It has the room already, though it is not here yet."""
    await life.storage.enqueue(acceptances := [life.acceptance("old", "o@example.org", size=10_000)])
    life.storage.other_gate.clear()
    running = asyncio.create_task(life.scheduler.run())
    await life.storage.claiming.wait()
    assert (len(life.claims), life.claims.bytes_free) == (1, MEMORY - 10_000)
    await life.send("new", size=10_000)
    assert life.storage.at_once == []
    life.storage.other_gate.set()
    life.scheduler.stop()
    await running

    assert [delivery.message.message_id for delivery in life.passed_on] == ["old"]
    assert (len(life.claims), life.claims.bytes_free) == (len(acceptances), MEMORY - 10_000)


async def test_what_is_accepted_for_somebody_else_waits_its_turn(life):
    """Another process owns the store, say: nothing is claimed here, and nothing counts as claimed."""
    life.storage.delivers = False
    for number in range(20):
        await life.send(f"{number}")

    assert life.passed_on == []
    assert len(life.claims) == 0
    assert life.storage.at_once == ["0"]  # the others stand behind it
    assert len(await life.storage.upcoming(100)) == 20


async def test_what_is_claimed_when_nobody_delivers_any_more_is_not_passed_on(life):
    """It is given back with all others, and waited for. What comes later is not even claimed."""
    life.storage.gate.clear()
    sending = asyncio.create_task(life.send("1"))
    await asyncio.sleep(0)
    life.scheduler.stop()
    settled = asyncio.create_task(life.scheduler.acceptor.wait_closed())
    await asyncio.sleep(0)
    assert not settled.done()
    await life.send("2", "b@example.com")
    life.storage.gate.set()
    await sending
    await settled

    assert life.passed_on == []
    assert [delivery.message.message_id for delivery in life.claims.held()] == ["1"]
    assert life.storage.at_once == ["1"]


async def test_a_fault_in_passing_on_is_not_the_senders(life, caplog):
    """The mail is accepted: whoever was told otherwise would send it twice."""

    def fail(deliveries: Sequence[Delivery]) -> None:
        raise RuntimeError("broken")

    life.scheduler.acceptor._dispatch = fail
    await life.send("1")

    assert "could not be passed on" in caplog.text
    assert len(life.claims.held()) == 1


async def test_a_store_that_can_only_enqueue_is_used_so():
    """`Express` is for a store to offer, not to demand."""

    class Plain:
        """A store as `Storage` describes it, and no more."""

        shared = False

        def __init__(self) -> None:
            self._inner = MemoryStorage()

        def __getattr__(self, name: str) -> object:
            if name == "enqueue_claimed":
                raise AttributeError(name)
            return getattr(self._inner, name)

    clock, storage = ManualClock(), Plain()
    await storage.open(clock.now())
    life = Life(storage, clock)
    await life.send("1")

    assert life.passed_on == []
    assert len(await storage.upcoming(10)) == 1
