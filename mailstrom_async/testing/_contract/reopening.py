"""Reopening: what is there after a restart of the program."""

from mailstrom_async._envelope import PendingRecipient
from mailstrom_async._errors import AlreadyQueued, MailerStateError, QueueFull
from mailstrom_async.testing._contract.ground import (
    ADA,
    BOB,
    EVE,
    HOUR,
    ID,
    INSTANT,
    LEASE,
    MINUTE,
    NOW,
    SECOND,
    Ground,
    claim,
    claim_one,
    counts_of,
    deferred,
    delivered,
    email,
    ids_of,
    raises,
    record_of,
    states_of,
)


class Reopening(Ground):
    async def test_everything_is_there_after_a_restart(self) -> None:
        """Statuses, attempts, bodies, due times, what is known and what is counted."""
        async with self.opened() as storage:
            await storage.enqueue([email("1", [ADA, BOB, EVE], written=["A", "B", "E"]), email("2"), email("3")])
            com, net, second, third = await claim(storage)
            await storage.record(
                [
                    record_of(net, {ADA: delivered(), BOB: deferred(NOW + HOUR)}, NOW + HOUR),
                    record_of(second, deferred(NOW + MINUTE), NOW + MINUTE),
                ]
            )
            await storage.cancel("3", NOW)
            await storage.release([com, third], NOW + 2 * INSTANT)
            before = [
                (await storage.status(name), await storage.attempts(name), await storage.prepared(name))
                for name in ("1", "2", "3")
            ]
            upcoming = await storage.upcoming(10)
        async with self.opened(NOW + LEASE + SECOND) as storage:
            after = [
                (await storage.status(name), await storage.attempts(name), await storage.prepared(name))
                for name in ("1", "2", "3")
            ]

            assert after == before
            assert await storage.upcoming(10) == upcoming
            with raises(AlreadyQueued):
                await storage.enqueue([email("1")])
            with raises(QueueFull):
                await storage.enqueue([email("4")], queue_size=1)

    async def test_what_an_earlier_life_attempted_is_due_again(self) -> None:
        """With an attempt of unknown outcome: at once, if this program has the store alone; else with its lease."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email(recipients=[ADA, BOB])]))
            await claim(storage, ids)
        async with self.opened(NOW + SECOND) as storage:
            taken = await claim(storage, ids, owner="two", now=NOW + SECOND)
            if self.several_processes:
                assert taken == []
                taken = await claim(storage, ids, owner="two", now=NOW + LEASE + INSTANT)
            (delivery,) = taken
            attempts = await storage.attempts(ID)

            assert delivery.attempt == 2
            assert delivery.recipients == (PendingRecipient(ADA, "deferred", 1), PendingRecipient(BOB, "deferred", 1))
            assert attempts is not None
            assert [attempt.started_at for attempt in attempts] == [NOW]
            assert [outcome.cause for outcome in attempts[0].outcome.values()] == ["outcome_unknown"] * 2
            assert counts_of(await storage.status(ID)) == [1, 1]

    async def test_what_an_earlier_life_attempted_is_upcoming(self) -> None:
        """So that it is found again, with the time from which it may be claimed."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            await claim(storage, ids)
        async with self.opened(NOW + LEASE + SECOND) as storage:
            entries = await storage.upcoming(10)

            assert ids_of(entries) == ids
            assert entries[0].due_at <= NOW + LEASE + SECOND
            assert len(await claim(storage, now=NOW + LEASE + SECOND)) == 1

    async def test_a_result_from_an_earlier_life_is_refused(self) -> None:
        """Its claim is over, and the delivery may be with somebody else."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            (old,) = await claim(storage, ids)
        async with self.opened(NOW + LEASE + SECOND) as storage:
            await claim(storage, ids, owner="two", now=NOW + LEASE + SECOND)
            (recorded,) = await storage.record([record_of(old, delivered())])

            assert not recorded.accepted
            assert states_of(await storage.status(ID)) == {ADA: "deferred"}

    async def test_what_was_cancelled_during_an_attempt_of_an_earlier_life_is_over(self) -> None:
        """It failed with cause "cancelled", whatever became of the attempt."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            await claim(storage, ids)
            await storage.cancel(ID, NOW)
        async with self.opened(NOW + LEASE + SECOND) as storage:
            again = await claim(storage, ids, owner="two", now=NOW + LEASE + SECOND)
            status = await storage.status(ID)

            assert again == []
            assert status is not None
            assert status.completed
            assert (states_of(status), counts_of(status)) == ({ADA: "failed"}, [1])
            assert await storage.upcoming(10) == []

    async def test_the_number_of_a_forgotten_delivery_is_not_given_to_another(self) -> None:
        """A late result would be written to a stranger's message."""
        async with self.opened() as storage:
            await storage.enqueue([email("old")])
            old = await claim_one(storage)
            await storage.record([record_of(old, delivered())])
            await storage.purge(NOW + HOUR)
        async with self.opened() as storage:
            await storage.enqueue([email("new")])
            new = await claim_one(storage)
            (recorded,) = await storage.record([record_of(old, delivered())])

            assert new.id != old.id
            assert new.message.key != old.message.key
            assert not recorded.accepted
            assert states_of(await storage.status("new")) == {ADA: "queued"}

    async def test_a_store_that_is_not_open_says_so(self) -> None:
        """Before it was opened, and after it was closed, however often."""
        storage = self.make_storage()
        with raises(MailerStateError):
            await storage.status(ID)
        await storage.aclose()
        await storage.open(NOW)
        await storage.enqueue([email()])
        await storage.aclose()
        await storage.aclose()
        with raises(MailerStateError):
            await storage.enqueue([email("2")])
        with raises(MailerStateError):
            await storage.upcoming(1)

    async def test_an_instance_can_be_opened_again(self) -> None:
        """A mailer may be entered and left several times."""
        storage = self.make_storage()
        for life in range(3):
            await storage.open(NOW)
            await storage.enqueue([email(f"{life}")])
            await storage.aclose()
        await storage.open(NOW)
        statuses = await storage.recent(None, 10)
        await storage.aclose()

        assert {status.message_id for status in statuses} == {"0", "1", "2"}
