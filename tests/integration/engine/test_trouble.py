"""Our own trouble: a store that does not answer, leases, a crowd of sick destinations."""

import asyncio
from datetime import timedelta

from mailstrom_async import Limits, MemoryStorage, RelayDelivery, StorageError
from mailstrom_async.testing import Gate, SMTPServer

from .conftest import SECOND, completed, email

PATIENCE = timedelta(seconds=20)


class SickStorage(MemoryStorage):
    """A real store whose disk fills up at a word."""

    def __init__(self) -> None:
        super().__init__()
        self.sick = set[str]()

    enqueue_claimed = None  # so that there is a claim to be sick at

    def _suffer(self, what: str) -> None:
        if what in self.sick:
            raise StorageError(f"no space left on device at {what}")

    async def record(self, records):
        self._suffer("record")
        return await super().record(records)

    async def claim(self, delivery_ids, **claim):
        self._suffer("claim")
        return await super().claim(delivery_ids, **claim)

    async def upcoming(self, limit, **options):
        self._suffer("upcoming")
        return await super().upcoming(limit, **options)

    async def renew(self, deliveries, lease_until):
        self._suffer("renew")
        return await super().renew(deliveries, lease_until)


async def degraded(mailer) -> str:
    async with asyncio.timeout(20):
        while mailer.worker_status.state != "degraded":  # noqa: ASYNC110
            await asyncio.sleep(0)
    return mailer.worker_status.reason or ""


async def test_a_result_that_can_not_be_recorded_is_kept_and_nothing_more_is_claimed(build, server, clock):
    """Row C6: delivered once, recorded when it can be; meanwhile the state says degraded."""
    store = SickStorage()
    async with build(store) as mailer:
        store.sick.add("record")
        first = await mailer.send_email(email())
        assert "no space left" in await degraded(mailer)
        second = await mailer.send_email(email())
        for _ in range(5):
            clock.advance(2 * SECOND)
            await clock.until_waiting()
        assert server.received == 1
        store.sick.clear()

        assert (await completed(mailer, first, clock, 2 * SECOND)).recipients[0].attempts == 1
        assert (await completed(mailer, second, clock, 2 * SECOND)).succeeded
        assert mailer.worker_status.state == "running"
    assert server.received == 2


async def test_a_sick_store_does_not_make_the_loop_spin(build, server, clock):
    """What is due all the time must not be looked at all the time; the application's own coroutines get their turn."""
    store = SickStorage()
    async with build(store) as mailer:
        store.sick.add("record")
        await mailer.send_email(email())
        await degraded(mailer)
        await mailer.send_email(email())
        async with asyncio.timeout(5):
            for _ in range(100):
                await asyncio.sleep(0)
        store.sick.clear()


async def test_claims_that_fail_are_tried_again(build, server, clock):
    """A store that is locked for a moment delays mail, and loses none."""
    store = SickStorage()
    store.sick |= {"claim", "upcoming"}
    async with build(store) as mailer:
        message_id = await mailer.send_email(email())
        await degraded(mailer)
        store.sick.clear()

        assert (await completed(mailer, message_id, clock, 2 * SECOND)).succeeded
        assert mailer.worker_status.state == "running"


async def test_leases_are_renewed_while_an_attempt_runs(build, server, storage, clock):
    """A slow server must not make us lose the claim."""
    server.script["end of data"] = gate = Gate()
    async with build(lease=timedelta(seconds=60)) as mailer:
        message_id = await mailer.send_email(email())
        await gate.reached()
        for _ in range(20):
            await clock.until_waiting()
            clock.advance(timedelta(seconds=25))
            for _ in range(5):
                await asyncio.sleep(0)
        gate.open()
        status = await mailer.wait(message_id, timeout=PATIENCE)

    assert status.succeeded
    assert status.recipients[0].attempts == 1
    assert server.received == 1


async def test_bytes_in_flight_are_bounded_and_one_larger_message_goes_alone(build, server):
    """Row C19: claims are bounded by bytes; what is larger than the bound is still sent."""
    text = "x" * 70 + "\n"
    async with build(limits=Limits(bytes_in_flight=20_000)) as mailer:
        ids = await mailer.send_emails([email(text=text * (100 if number % 5 else 500)) for number in range(20)])
        for message_id in ids:
            assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert server.received == 20


async def test_a_relay_that_is_down_is_replaced_by_its_fallback(build, server, clock):
    """RelayDelivery.fallbacks, in order."""
    async with SMTPServer(host="127.0.0.2", port=server.port) as fallback:
        server.script["greeting"] = "421 4.3.2 closed"
        relay = RelayDelivery(host="127.0.0.1", port=server.port, security="none", fallbacks=("127.0.0.2",))
        async with build(delivery=relay) as mailer:
            status = await mailer.wait(await mailer.send_email(email()), timeout=PATIENCE)

        assert status.recipients[0].result.host == "127.0.0.2"
        assert fallback.received == 1
