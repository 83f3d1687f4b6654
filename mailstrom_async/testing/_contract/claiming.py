"""Claiming: who has a delivery, for how long, and what becomes of those that hold it no longer."""

import asyncio

from mailstrom_async._envelope import PendingRecipient
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
    Ground,
    claim,
    claim_one,
    counts_of,
    deferred,
    delivered,
    email,
    ids_of,
    record_of,
    states_of,
    unclaimed,
)

LATER = NOW + LEASE + INSTANT
"""After the end of a lease that began NOW."""


class Claiming(Ground):
    async def test_a_claim_brings_all_that_an_attempt_needs(self) -> None:
        """The recipients at one destination, in the order of the envelope, and the first attempt's number."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[BOB, EVE, ADA])])
            net = next(delivery for delivery in await claim(storage) if delivery.destination == "example.net")

            assert (net.owner, net.attempt) == ("one", 1)
            assert net.recipients == (PendingRecipient(BOB, "queued", 0), PendingRecipient(ADA, "queued", 0))

    async def test_deliveries_of_one_message_share_it(self) -> None:
        """One object, so that a body of many destinations is in memory once; another message has another."""
        async with self.opened() as storage:
            await storage.enqueue([email("1", [ADA, EVE, "x@example.edu"]), email("2")])
            deliveries = await claim(storage)
            messages = {id(delivery.message) for delivery in deliveries if delivery.message.message_id == "1"}
            keys = {delivery.message.key for delivery in deliveries}

            assert len(deliveries) == 4
            assert len(messages) == 1
            assert len(keys) == 2

    async def test_only_what_is_due_is_claimed(self) -> None:
        """To the microsecond: at its time it is due, before that it is not."""
        async with self.opened() as storage:
            await storage.enqueue([email("1"), email("2", due_at=NOW + INSTANT), email("3", due_at=NOW + HOUR)])
            deliveries = await claim(storage)

            assert [delivery.message.message_id for delivery in deliveries] == ["1"]

    async def test_what_is_claimed_is_neither_claimed_again_nor_upcoming(self) -> None:
        """Invariant I15: not by another, and not by the same owner either."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            await claim(storage, ids)

            assert await claim(storage, ids, owner="two") == []
            assert await claim(storage, ids, owner="one") == []
            assert await unclaimed(storage) == []

    async def test_unknown_and_repeated_deliveries_are_passed_over(self) -> None:
        """A delivery named twice is claimed once; one that was purged meanwhile is no error."""
        async with self.opened() as storage:
            (known,) = ids_of(await storage.enqueue([email()]))
            deliveries = await claim(storage, [known + 1000, known, known, -1, 0])

            assert ids_of(deliveries) == [known]
            assert await claim(storage, []) == []

    async def test_of_many_claimers_one_gets_each_delivery(self) -> None:
        """Row C13: two owners at the same time share what there is without overlap."""
        async with self.opened() as storage:
            dues = await storage.enqueue([email(f"{number}") for number in range(30)])
            ids = ids_of(dues)
            claims = await asyncio.gather(
                *(claim(storage, ids[start:] + ids[:start], owner=f"{start}") for start in range(0, 30, 5))
            )
            claimed = [delivery.id for deliveries in claims for delivery in deliveries]

            assert sorted(claimed) == sorted(ids)

    async def test_a_claim_holds_until_its_lease_ends(self) -> None:
        """Not a microsecond less; then anybody may have it, as the next attempt."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            await claim(storage, ids)
            early = await claim(storage, ids, owner="two", now=NOW + LEASE - INSTANT)
            (late,) = await claim(storage, ids, owner="two", now=LATER)

            assert early == []
            assert (late.owner, late.attempt) == ("two", 2)

    async def test_a_claim_that_ended_unrecorded_is_noted_as_an_attempt_of_unknown_outcome(self) -> None:
        """Nobody knows how far it came: the status and the history say so, and the attempt counts."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email(recipients=[ADA, BOB])]))
            await claim(storage, ids)
            (again,) = await claim(storage, ids, owner="two", now=LATER)
            attempts = await storage.attempts(ID)
            status = await storage.status(ID)

            assert again.recipients == (PendingRecipient(ADA, "deferred", 1), PendingRecipient(BOB, "deferred", 1))
            assert attempts is not None
            assert [(attempt.started_at, attempt.duration, attempt.recipients) for attempt in attempts] == [
                (NOW, LEASE, (ADA, BOB))
            ]
            assert {outcome.cause for outcome in attempts[0].outcome.values()} == {"outcome_unknown"}
            assert counts_of(status) == [1, 1]
            assert status is not None
            assert {recipient.result.state for recipient in status.recipients} == {"deferred"}

    async def test_a_renewed_claim_holds_longer(self) -> None:
        """Until the new end of its lease, and nobody is told that it was lost."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email("1"), email("2")]))
            claims = await claim(storage, ids)
            lost = await storage.renew(claims, NOW + HOUR)

            assert lost == []
            assert await claim(storage, ids, owner="two", now=NOW + HOUR - INSTANT) == []
            assert len(await claim(storage, ids, owner="two", now=NOW + HOUR + INSTANT)) == 2

    async def test_renewing_tells_which_claims_were_lost(self) -> None:
        """Those alone: to another owner, to a newer claim of the same owner, recorded, or given back."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"{number}") for number in range(5)])
            claims = await claim(storage)
            by_id = {delivery.message.message_id: delivery for delivery in claims}
            await storage.record([record_of(by_id["2"], delivered())])
            await storage.release([by_id["3"]], NOW + HOUR)
            await storage.renew([by_id["4"]], LATER + HOUR)
            await claim(storage, [by_id["0"].id], owner="two", now=LATER)
            await claim(storage, [by_id["1"].id], owner="one", now=LATER)
            lost = await storage.renew(claims, LATER + LEASE)

            assert {delivery.message.message_id for delivery in lost} == {"0", "1", "2", "3"}

    async def test_what_is_given_back_is_due_then_and_the_attempt_does_not_count(self) -> None:
        """As if it had never been claimed."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            dues = await storage.release([await claim_one(storage)], NOW + MINUTE)
            status = await storage.status(ID)

            assert [(due.due_at, due.destination) for due in dues] == [(NOW + MINUTE, "example.net")]
            assert await storage.upcoming(10) == dues
            assert await claim(storage) == []
            assert (counts_of(status), states_of(status)) == ([0], {ADA: "queued"})
            assert await storage.attempts(ID) == []
            again = await claim_one(storage, now=NOW + MINUTE)
            assert (again.attempt, again.recipients) == (1, (PendingRecipient(ADA, "queued", 0),))

    async def test_what_was_lost_can_not_be_given_back(self) -> None:
        """The newer claim holds on."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            old = await claim_one(storage)
            (new,) = await claim(storage, [old.id], owner="two", now=LATER)
            dues = await storage.release([old], NOW)

            assert dues == []
            assert await unclaimed(storage) == []
            assert await storage.renew([new], LATER + LEASE) == []

    async def test_the_result_of_a_lost_claim_is_refused(self) -> None:
        """Row C15: neither the result nor the attempt is written, and the claim that holds is not harmed."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            old = await claim_one(storage)
            (new,) = await claim(storage, [old.id], owner="two", now=LATER)
            before = (await storage.status(ID), await storage.attempts(ID))
            (recorded,) = await storage.record([record_of(old, delivered())])

            assert (recorded.accepted, recorded.due, recorded.completed) == (False, None, False)
            assert dict(recorded.results) == {}
            assert (await storage.status(ID), await storage.attempts(ID)) == before
            (recorded,) = await storage.record([record_of(new, delivered())])
            assert recorded.accepted

    async def test_an_owner_is_fenced_off_from_its_own_newer_claim(self) -> None:
        """Row C15: a program that stalled beyond its lease and claimed anew: its old attempt's result is refused."""
        async with self.opened() as storage:
            await storage.enqueue([email(), email("2"), email("3"), email("4")])
            old, *others = await claim(storage)
            (new,) = await claim(storage, [old.id], now=LATER)
            late = record_of(old, deferred(NOW), NOW)
            recorded = await storage.record([late, *(record_of(other, delivered()) for other in others[:2])])
            both = await storage.record([late, record_of(new, delivered()), record_of(others[2], delivered())])

            assert [one.accepted for one in recorded] == [False, True, True]
            assert [one.accepted for one in both] == [False, True, True]
            assert both[1].results == {ADA: delivered()}
            assert states_of(await storage.status(ID)) == {ADA: "delivered"}
            assert counts_of(await storage.status(ID)) == [2]

    async def test_a_claim_that_was_given_back_is_over(self) -> None:
        """The number of the attempt is given to the next claim again, so it takes the owner to tell them apart."""
        async with self.opened() as storage:
            await storage.enqueue([email(), email("2"), email("3")])
            old, *others = await claim(storage)
            await storage.release([old], NOW)
            (new,) = await claim(storage, [old.id], owner="two")
            recorded = await storage.record([record_of(delivery, delivered()) for delivery in (old, *others)])

            assert new.attempt == old.attempt
            assert [one.accepted for one in recorded] == [False, True, True]
            assert await storage.renew([old], LATER) == [old]
            assert await storage.release([old], NOW) == []
            assert states_of(await storage.status(ID)) == {ADA: "queued"}

    async def test_a_result_is_written_once(self) -> None:
        """Who records again, because it does not know whether the first time succeeded, changes nothing."""
        async with self.opened() as storage:
            await storage.enqueue([email(), email("2"), email("3")])
            delivery, *others = await claim(storage)
            record = record_of(delivery, deferred(NOW + MINUTE), NOW + MINUTE)
            too_late = record_of(delivery, delivered())
            rest = [record_of(other, delivered()) for other in others]
            recorded = await storage.record([record, *rest, record, too_late])
            (again,) = await storage.record([too_late])

            assert [one.accepted for one in recorded] == [True, True, True, False, False]
            assert not again.accepted
            assert states_of(await storage.status(ID)) == {ADA: "deferred"}
            assert counts_of(await storage.status(ID)) == [1]
            assert len(await storage.attempts(ID) or ()) == 1

    async def test_a_late_result_is_accepted_while_nobody_else_has_the_claim(self) -> None:
        """The lease is over, but the attempt is the last one that anybody knows of."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            delivery = await claim_one(storage)
            (recorded,) = await storage.record([record_of(delivery, delivered(LATER + HOUR))])

            assert recorded.accepted
            assert states_of(await storage.status(ID)) == {ADA: "delivered"}
