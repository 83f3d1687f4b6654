"""Opened, started, paused and closed, by several at once and interrupted: it ends in one state, and in a whole one."""

import asyncio
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import MailerStateError, MemoryStorage, MessageCompleted, RecipientDelivered, RecipientFailed
from mailstrom_async._engine import engine as engine_module
from mailstrom_async.testing import Gate, Hang

from .conftest import DAY, email
from .test_trouble import SickStorage, degraded

PATIENCE = timedelta(seconds=20)
NO_GRACE = timedelta(0)


class SlowStorage(MemoryStorage):
    """A real store that answers late: what it was asked for is done long before it says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, Gate] = {}

    async def record(self, records):
        recorded = await super().record(records)
        await self._wait("record")
        return recorded

    async def enqueue(self, acceptances, **limits):
        await self._wait("enqueue")
        return await super().enqueue(acceptances, **limits)

    async def enqueue_claimed(self, acceptance, **how):
        [entry] = await MemoryStorage.enqueue(self, [acceptance])
        delivery = self._claim(self._deliveries[entry.delivery_id], how["owner"], entry.due_at, how["lease_until"])
        await self._wait("enqueue")
        return delivery

    async def claim(self, delivery_ids, **how):
        claims = await super().claim(delivery_ids, **how)
        await self._wait("claim")
        return claims

    async def open(self, now):
        await self._wait("open")
        await super().open(now)

    async def _wait(self, what: str) -> None:
        if what in self.gates:
            await self.gates[what].pass_through()

    @property
    def is_open(self) -> bool:
        return self._is_open


def life_tasks() -> list[str]:
    """Coroutines of the engine that still run."""
    return [task.get_name() for task in asyncio.all_tasks() if "mailstrom_async" in task.get_name()]


async def test_start_after_a_pause_that_was_cancelled_delivers(build, server):
    """Whoever paused lost his patience; "running" must not be said of a mailer that does nothing."""
    server.script["MAIL"] = gate = Gate(Hang())
    async with build() as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        pausing = asyncio.create_task(mailer.pause())
        await anyio.wait_all_tasks_blocked()
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        assert mailer.worker_status.state == "paused"
        server.script["MAIL"] = None
        await mailer.start()

        assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded


async def test_start_while_it_is_being_closed_starts_nothing(build, server):
    """Or an engine would go on with a store that is closed."""
    server.script["MAIL"] = gate = Gate(Hang())
    mailer = build()
    await mailer.__aenter__()
    await mailer.send_email(email())
    await gate.reached()
    closing = asyncio.create_task(mailer.aclose(timedelta(seconds=0.2)))
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(MailerStateError, match="not open"):
        await mailer.start()
    await closing

    assert mailer.worker_status.state == "stopped"
    assert life_tasks() == []


async def test_pause_while_it_is_being_closed_leaves_it_stopped(build, server):
    """The last word on a closed mailer is "stopped"."""
    server.script["MAIL"] = gate = Gate(Hang())
    mailer = build()
    await mailer.__aenter__()
    await mailer.send_email(email())
    await gate.reached()
    closing = asyncio.create_task(mailer.aclose(timedelta(seconds=0.2)))
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(MailerStateError, match="not open"):
        await mailer.pause()
    await closing

    assert mailer.worker_status.state == "stopped"


async def test_closed_while_it_opens_it_is_closed(build):
    """A store that opened after that would stay open for ever."""
    store = SlowStorage()
    store.gates["open"] = gate = Gate()
    mailer = build(store)
    opening = asyncio.create_task(mailer.__aenter__())
    await gate.reached()
    closing = asyncio.create_task(mailer.aclose())
    await anyio.wait_all_tasks_blocked()
    gate.open()
    await asyncio.gather(opening, closing)

    assert mailer.worker_status.state == "stopped"
    assert not store.is_open
    assert life_tasks() == []


async def test_a_close_in_a_cancelled_scope_closes_everything(build, server, storage):
    """anyio cancels every await again and again; the store must be closed all the same."""
    server.script["MAIL"] = gate = Gate(Hang())
    mailer = build(retention=DAY)
    with anyio.CancelScope() as scope:
        async with mailer:
            message_id = await mailer.send_email(email())
            await gate.reached()
            scope.cancel()
            await asyncio.sleep(0)

    assert mailer.worker_status.state == "stopped"
    assert life_tasks() == []
    server.script["MAIL"] = None
    async with build() as mailer:
        assert (await mailer.wait(message_id, timeout=PATIENCE)).recipients[0].attempts == 1


@pytest.mark.rule("C4", expected="a second, impatient call ends it at once")
async def test_a_second_close_without_grace_ends_the_grace_of_the_first(build, server):
    """Row C4: whoever says stop twice means now. Both return, and the mailer can be opened again."""
    server.script["MAIL"] = gate = Gate(Hang())
    mailer = build()
    await mailer.__aenter__()
    await mailer.send_email(email())
    await gate.reached()
    patient = asyncio.create_task(mailer.aclose(timedelta(hours=1)))
    await anyio.wait_all_tasks_blocked()
    async with asyncio.timeout(5):
        await mailer.aclose(NO_GRACE)
        await patient
    server.script["MAIL"] = None

    async with mailer:
        assert (await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)).succeeded


async def test_pause_and_start_in_quick_succession_deliver_everything_once(build, server):
    """However often, whatever is under way."""
    async with build() as mailer:
        ids = []
        for number in range(30):
            ids.append(await mailer.send_email(email(f"r{number}@example.net")))
            await mailer.pause()
            await mailer.start()
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in ids]

    assert all(status.succeeded for status in statuses)
    assert {status.recipients[0].attempts for status in statuses} == {1}
    assert server.received == 30


@pytest.mark.parametrize("deliver", [True, False], ids=["while it delivers", "while it does not"])
async def test_what_is_being_accepted_while_delivery_is_switched_is_delivered(build, server, deliver):
    """By whoever delivers when it is accepted. It is not claimed by one that is no more."""
    store = SlowStorage()
    async with build(store, deliver=deliver) as mailer:
        store.gates["enqueue"] = gate = Gate()
        sending = asyncio.create_task(mailer.send_email(email()))
        await gate.reached()
        pausing = asyncio.create_task(mailer.pause())
        await anyio.wait_all_tasks_blocked()
        if not deliver:
            await pausing
            await mailer.start()
            await anyio.wait_all_tasks_blocked()
        gate.open()
        message_id = await sending
        await pausing
        await mailer.start()

        assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
        assert [attempt.destination for attempt in await mailer.query_attempts(message_id)] == ["example.net"]
    assert server.received == 1


async def storing(build):
    """A mailer whose store is at a mail: both, the gate behind which it waits, and the call that waits for it."""
    store = SlowStorage()
    mailer = build(store)
    await mailer.__aenter__()
    store.gates["enqueue"] = gate = Gate()
    sending = asyncio.create_task(mailer.send_email(email()))
    await gate.reached()
    return mailer, store, gate, sending


async def test_a_mailer_that_is_closed_waits_for_what_is_being_accepted(build):
    """It is claimed then, and has to be given back while the store is open."""
    mailer, store, gate, sending = await storing(build)
    closing = asyncio.create_task(mailer.aclose())
    await anyio.wait_all_tasks_blocked()
    assert not closing.done()
    gate.open()
    await sending
    await closing

    assert store._claimed == {}


async def test_a_store_that_never_answers_does_not_keep_a_mailer_open(build, monkeypatch, caplog):
    """Who closes waits for it for a while, and says so."""
    monkeypatch.setattr(engine_module, "LAST_WORDS", timedelta(milliseconds=10))
    mailer, _, gate, sending = await storing(build)
    async with asyncio.timeout(20):
        await mailer.aclose()
    gate.open()

    assert await sending
    assert "does not answer" in caplog.text


async def test_what_is_being_claimed_when_an_engine_dies_does_not_stay_claimed(build, server):
    """Cancelled, the store does it all the same."""
    store = SlowStorage()
    store.gates["claim"] = gate = Gate()

    async def die():
        raise RuntimeError("unforeseen")

    async with build(store) as mailer:
        message_ids = await mailer.send_emails([email(), email()])  # two, so that they are claimed afterwards
        await gate.reached()
        mailer._engine._group.start_soon(die)
        async with asyncio.timeout(20):
            while not mailer._engine._sites.closed:  # noqa: ASYNC110
                await asyncio.sleep(0)
        del store.gates["claim"]
        gate.open()
        await degraded(mailer)
        await mailer.pause()
        assert store._claimed == {}
        await mailer.start()

        for message_id in message_ids:
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded
    assert server.received == 2


async def test_what_is_recorded_while_it_is_paused_is_told(build, caplog):
    """A pause that falls into a commit must not leave those who wait for it without their word."""
    store = SlowStorage()
    store.gates["record"] = gate = Gate()
    async with build(store) as mailer, mailer.events(RecipientDelivered) as events:
        message_id = await mailer.send_email(email())
        await gate.reached()
        waiting = asyncio.create_task(mailer.wait(message_id, timeout=PATIENCE))
        pausing = asyncio.create_task(mailer.pause())
        await anyio.wait_all_tasks_blocked()
        gate.open()
        await pausing

        async with asyncio.timeout(5):
            assert (await anext(events)).message_id == message_id
            assert (await waiting).succeeded
    assert "its result was not recorded" not in caplog.text


async def test_a_message_cancelled_during_an_attempt_that_a_pause_ends_is_told(build, server):
    """It is settled when its claim is given back, and whoever waits for it hears of that."""
    server.script["MAIL"] = gate = Gate(Hang())
    async with (
        build(shutdown_grace=NO_GRACE) as mailer,
        mailer.events(RecipientFailed, MessageCompleted) as events,
    ):
        message_id = await mailer.send_email(email())
        await gate.reached()
        waiting = asyncio.create_task(mailer.wait(message_id, timeout=PATIENCE))
        assert not (await mailer.cancel(message_id)).completed
        await mailer.pause()

        async with asyncio.timeout(5):
            assert (await waiting).recipients[0].result.cause == "cancelled"
            told = [await anext(events), await anext(events)]
        assert [type(event) for event in told] == [RecipientFailed, MessageCompleted]


async def test_a_store_that_is_well_again_after_a_pause_is_used_again(build, server, clock, monkeypatch):
    """Who found it sick is gone; the next life must look for itself."""
    monkeypatch.setattr(engine_module, "LAST_WORDS", NO_GRACE)
    store = SickStorage()
    async with build(store) as mailer:
        store.sick.add("record")
        await mailer.send_email(email())
        await degraded(mailer)
        await mailer.pause()
        store.sick.clear()
        await mailer.start()

        assert (await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)).succeeded
        assert mailer.worker_status.state == "running"


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(build, server):
    """Nor does a reader of events that raises."""
    server.script["MAIL"] = Hang()
    async with build(shutdown_grace=NO_GRACE) as mailer:
        message_id = await mailer.send_email(email())
        waiting = asyncio.create_task(mailer.wait(message_id))
        await anyio.wait_all_tasks_blocked()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(ZeroDivisionError):
            async with mailer.events():
                raise ZeroDivisionError

        assert mailer._broadcast._watchers == {}
        assert mailer._broadcast._subscriptions == set()
