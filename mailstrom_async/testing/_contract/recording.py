"""Recording: what attempts did, recipient by recipient, and what was cancelled or hastened meanwhile."""

from datetime import timedelta

from mailstrom_async._envelope import PendingRecipient
from mailstrom_async._errors import QueueFull
from mailstrom_async._reply import Reply
from mailstrom_async._status import Attempt, Deferred, Failed, Outcome, TLSFacts
from mailstrom_async.storage.base import Record
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
    Result,
    claim,
    claim_one,
    counts_of,
    deferred,
    delivered,
    email,
    failed,
    ids_of,
    raises,
    record_of,
    reply,
    states_of,
    unclaimed,
)

HOSTILE = (
    "'; DROP TABLE messages; --\x00\r\n.\r\n\x1b[31m\u2028\u202e\ufffe\U0001f4a9 \\u0000 {} %s $1 ?1 " + "x" * 100_000
)
"""A text that a server may send: kept as it is, or the part of it that the store can't hold replaced."""


class Recording(Ground):
    async def test_each_recipient_gets_its_own_result(self) -> None:
        """Delivered and failed ones are final; the deferred one waits for the next attempt alone."""
        again = NOW + 10 * MINUTE + INSTANT
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, BOB, "x@example.net"])])
            results: dict[str, Result] = {
                ADA: delivered(NOW + SECOND),
                BOB: deferred(again),
                "x@example.net": failed(NOW + SECOND),
            }
            (recorded,) = await storage.record([record_of(await claim_one(storage), results, again)])
            status = await storage.status(ID)

            assert (recorded.accepted, recorded.completed) == (True, False)
            assert dict(recorded.results) == results
            assert recorded.due is not None
            assert recorded.due.due_at == again
            assert status is not None
            assert {recipient.address: recipient.result for recipient in status.recipients} == results
            assert counts_of(status) == [1, 1, 1]
            assert await storage.upcoming(10) == [recorded.due]
            delivery = await claim_one(storage, now=again)
            assert delivery.attempt == 2
            assert delivery.recipients == (PendingRecipient(BOB, "deferred", 1),)

    async def test_attempts_are_counted_for_those_who_were_attempted(self) -> None:
        """Who is final is not attempted again, and not counted."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, BOB])])
            results: dict[str, Result] = {ADA: delivered(), BOB: deferred(NOW)}
            await storage.record([record_of(await claim_one(storage), results, NOW)])
            await storage.record([record_of(await claim_one(storage), deferred(NOW), NOW)])
            await storage.record([record_of(await claim_one(storage), delivered())])

            assert counts_of(await storage.status(ID)) == [1, 3]

    async def test_a_message_is_completed_by_its_last_recipient_and_loses_its_body(self) -> None:
        """The body is kept as long as anybody waits for it, and not longer; the status is kept."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, EVE])])
            first, second = await claim(storage)
            (recorded,) = await storage.record([record_of(first, delivered())])
            kept = await storage.prepared(ID)
            (last,) = await storage.record([record_of(second, failed())])
            status = await storage.status(ID)

            assert (recorded.completed, last.completed) == (False, True)
            assert kept is not None
            assert await storage.prepared(ID) is None
            assert status is not None
            assert (status.completed, status.succeeded) == (True, False)
            assert await storage.upcoming(10) == []
            assert await claim(storage, [first.id, second.id], now=NOW + 10 * HOUR) == []

    async def test_records_are_written_in_order_and_each_for_itself(self) -> None:
        """One claim that was lost costs the others nothing."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"{number}") for number in range(3)])
            claims = await claim(storage)
            await storage.release([claims[1]], NOW)
            recorded = await storage.record([record_of(delivery, delivered()) for delivery in claims])

            assert [one.accepted for one in recorded] == [True, False, True]
            assert [one.completed for one in recorded] == [True, False, True]
            assert await storage.record([]) == []

    async def test_many_results_are_written_at_once_each_to_its_own(self) -> None:
        """Delivered, deferred, failed, some of a message completed by two records of the same call, some not at all."""
        again = NOW + HOUR
        async with self.opened() as storage:
            await storage.enqueue([email(f"{number}", [ADA, BOB, EVE]) for number in range(6)], queue_size=6)
            claims = await claim(storage)
            records: list[Record] = []
            for delivery in claims:
                kind = int(delivery.message.message_id)
                results: dict[str, Result] = {recipient.address: delivered() for recipient in delivery.recipients}
                if kind % 3 == 1 and ADA in results:
                    results[ADA] = deferred(again)
                if kind % 3 == 2:
                    results = dict.fromkeys(results, failed())
                if kind < 5 or ADA in results:
                    due_at = again if any(result.state == "deferred" for result in results.values()) else None
                    records.append(record_of(delivery, results, due_at))
            recorded = await storage.record(records)
            statuses = [await storage.status(f"{number}") for number in range(6)]
            bodies = [await storage.prepared(f"{number}") is not None for number in range(6)]

            assert all(one.accepted for one in recorded)
            assert [dict(one.results) for one in recorded] == [dict(record.results) for record in records]
            assert sum(one.completed for one in recorded) == 3
            assert [[recipient.result.state for recipient in status.recipients] for status in statuses if status] == [
                ["delivered"] * 3,
                ["deferred", "delivered", "delivered"],
                ["failed"] * 3,
                ["delivered"] * 3,
                ["deferred", "delivered", "delivered"],
                ["failed", "failed", "queued"],
            ]
            assert bodies == [False, True, False, False, True, True]
            assert [len(await storage.attempts(f"{number}") or ()) for number in range(6)] == [2, 2, 2, 2, 2, 1]
            assert sorted(due for one in recorded if (due := one.due) is not None) == sorted(
                entry for entry in await storage.upcoming(100) if entry.due_at == again
            )
            await storage.enqueue([email(f"new {number}") for number in range(3)], queue_size=6)
            with raises(QueueFull):
                await storage.enqueue([email("one too many")], queue_size=6)

    async def test_a_delivery_that_was_held_back_was_not_attempted(self) -> None:
        """Its site was throttled: it is deferred with the reason, due again, and its attempts are not counted."""
        again = NOW + 10 * MINUTE
        async with self.opened() as storage:
            await storage.enqueue([email()])
            delivery = await claim_one(storage)
            held_back = {recipient.address: deferred(again) for recipient in delivery.recipients}
            (recorded,) = await storage.record([Record(delivery, held_back, again, None)])
            status = await storage.status(ID)

            assert recorded.accepted
            assert recorded.due is not None
            assert recorded.due.due_at == again
            assert status is not None
            assert {recipient.result.state for recipient in status.recipients} == {"deferred"}
            assert {recipient.attempts for recipient in status.recipients} == {0}
            assert await storage.attempts(ID) == []

    async def test_an_end_without_an_attempt_counts_none(self) -> None:
        """A delivery that expired while it waited: its recipients fail, and no attempt is noted."""
        expired = Failed(cause="expired", enhanced="4.4.7", reason="its time is over", failed_at=NOW)
        async with self.opened() as storage:
            await storage.enqueue([email(), email("2"), email("3")])
            delivery, *others = await claim(storage)
            rest = [record_of(other, delivered()) for other in others]
            recorded, *_ = await storage.record([Record(delivery, {ADA: expired}, None, None), *rest])
            status = await storage.status(ID)

            assert recorded.completed
            assert counts_of(await storage.status("2")) == [1]
            assert status is not None
            assert status.recipients[0].result == expired
            assert counts_of(status) == [0]
            assert await storage.attempts(ID) == []

    async def test_attempts_are_told_whole_and_oldest_first(self) -> None:
        """To the microsecond, with all that was said, in whatever order they were recorded."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, EVE])])
            first, second = await claim(storage)
            attempts = [
                Attempt(
                    started_at=started_at,
                    duration=timedelta(days=1, microseconds=7),
                    recipients=tuple(recipient.address for recipient in delivery.recipients),
                    destination=delivery.destination,
                    host="mx.example.net",
                    address="2001:db8::1",
                    tls=TLSFacts(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384", verified=False, why="self-signed"),
                    outcome={
                        delivery.recipients[0].address: Outcome(
                            state="failed",
                            cause="smtp",
                            enhanced="5.1.1",
                            reason="no",
                            reply=reply(550, "5.1.1 nö\nno"),
                        )
                    },
                    transcript=("> MAIL FROM:<app@example.org>", "< 550 5.1.1 nö"),
                )
                for delivery, started_at in ((first, NOW + 2 * INSTANT), (second, NOW + INSTANT))
            ]
            for delivery, attempt in zip((first, second), attempts, strict=True):
                result = failed()
                results = {recipient.address: result for recipient in delivery.recipients}
                await storage.record([Record(delivery, results, None, attempt)])

            assert await storage.attempts(ID) == [attempts[1], attempts[0]]

    async def test_what_servers_say_does_no_harm(self) -> None:
        """Row D26: quotes, SQL, control characters and great length are stored like any text, NUL at least shown."""
        said = Reply(code=451, enhanced=None, text=HOSTILE, command="RCPT", host="mx.example.net")
        result = Deferred(cause="smtp", enhanced="4.0.0", reason=HOSTILE, reply=said, next_attempt_at=NOW)
        async with self.opened() as storage:
            await storage.enqueue([email()])
            await storage.record([record_of(await claim_one(storage), result, NOW)])
            status = await storage.status(ID)
            attempts = await storage.attempts(ID)

            assert status is not None
            stored = status.recipients[0].result
            assert stored.state == "deferred"
            assert stored.reply is not None
            assert stored.reply.text.replace("\ufffd", "\x00") == HOSTILE
            assert attempts is not None
            assert attempts[0].outcome[ADA].reason.replace("\ufffd", "\x00") == HOSTILE

    async def test_a_cancelled_message_is_not_attempted_any_more(self) -> None:
        """All its recipients that wait fail with cause "cancelled"; those that are final stay as they are."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, BOB, EVE])])
            net = next(delivery for delivery in await claim(storage) if delivery.destination == "example.net")
            await storage.record([record_of(net, {ADA: delivered(), BOB: deferred(NOW)}, NOW)])
            com = next(entry for entry in await storage.upcoming(10))
            assert com.destination == "example.net"
            await storage.cancel(ID, NOW + SECOND)
            status = await storage.status(ID)

            assert status is not None
            ada, bob, _ = (recipient.result for recipient in status.recipients)
            assert ada == delivered()
            assert bob.state == "failed"
            assert (bob.cause, bob.failed_at) == ("cancelled", NOW + SECOND)
            assert await unclaimed(storage) == []

    async def test_cancelling_answers_with_the_new_status(self) -> None:
        """Before any attempt everything is over at once, and the body is gone."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email(recipients=[ADA, EVE])]))
            status = await storage.cancel(ID, NOW)

            assert status is not None
            assert status.completed
            assert status == await storage.status(ID)
            assert {getattr(recipient.result, "cause", None) for recipient in status.recipients} == {"cancelled"}
            assert counts_of(status) == [0, 0]
            assert await claim(storage, ids) == []
            assert await storage.prepared(ID) is None

    async def test_a_message_cancelled_during_its_attempt_may_still_be_delivered(self) -> None:
        """The truth is what the server said: an acknowledged copy is delivered, whatever was wanted meanwhile."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            delivery = await claim_one(storage)
            status = await storage.cancel(ID, NOW)
            (recorded,) = await storage.record([record_of(delivery, delivered(NOW + SECOND))])

            assert states_of(status) == {ADA: "queued"}
            assert (recorded.accepted, recorded.completed) == (True, True)
            assert states_of(await storage.status(ID)) == {ADA: "delivered"}

    async def test_a_message_cancelled_during_its_attempt_is_not_attempted_again(self) -> None:
        """Deferred becomes failed with cause "cancelled", and who recorded it is told so."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, BOB]), email("2"), email("3")])
            delivery, *others = await claim(storage)
            await storage.cancel(ID, NOW)
            results: dict[str, Result] = {ADA: deferred(NOW + HOUR), BOB: failed()}
            rest = [record_of(other, delivered()) for other in others]
            recorded, *_ = await storage.record([record_of(delivery, results, NOW + HOUR), *rest])
            status = await storage.status(ID)

            assert (recorded.accepted, recorded.completed, recorded.due) == (True, True, None)
            assert recorded.results[ADA].state == "failed"
            assert status is not None
            assert {recipient.address: recipient.result for recipient in status.recipients} == dict(recorded.results)
            assert getattr(recorded.results[ADA], "cause", None) == "cancelled"
            assert recorded.results[BOB] == failed()
            assert counts_of(status) == [1, 1]
            assert await storage.upcoming(10) == []

    async def test_a_cancelled_message_that_is_given_back_is_over(self) -> None:
        """There is nothing to be due again, and no attempt to count."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            delivery = await claim_one(storage)
            await storage.cancel(ID, NOW)
            dues = await storage.release([delivery], NOW + MINUTE)
            status = await storage.status(ID)

            assert dues == []
            assert (states_of(status), counts_of(status)) == ({ADA: "failed"}, [0])
            assert await storage.upcoming(10) == []
            assert await storage.prepared(ID) is None

    async def test_a_cancelled_message_whose_claim_ended_is_over(self) -> None:
        """It is not claimed anew; the attempt of unknown outcome is on record."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            await claim(storage, ids)
            await storage.cancel(ID, NOW)
            again = await claim(storage, ids, owner="two", now=NOW + LEASE + INSTANT)
            status = await storage.status(ID)

            assert again == []
            assert (states_of(status), counts_of(status)) == ({ADA: "failed"}, [1])
            assert len(await storage.attempts(ID) or ()) == 1

    async def test_cancelling_again_or_too_late_changes_nothing(self) -> None:
        """The first cancellation stays, and a delivered message stays delivered."""
        async with self.opened() as storage:
            await storage.enqueue([email("1"), email("2")])
            first = await storage.cancel("1", NOW)
            await storage.record([record_of(await claim_one(storage), delivered())])

            assert await storage.cancel("1", NOW + HOUR) == first
            assert states_of(await storage.cancel("2", NOW + HOUR)) == {ADA: "delivered"}
            assert await storage.cancel("3", NOW) is None

    async def test_a_hastened_message_is_due_now(self) -> None:
        """Whatever its schedule was, and its status shows it."""
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=[ADA, EVE])])
            claims = await claim(storage)
            await storage.record([record_of(delivery, deferred(NOW + HOUR), NOW + HOUR) for delivery in claims])
            dues = await storage.hasten(ID, NOW + MINUTE)
            status = await storage.status(ID)

            assert dues is not None
            assert sorted(dues) == sorted(await storage.upcoming(10))
            assert [due.due_at for due in dues] == [NOW + MINUTE] * 2
            assert status is not None
            assert {getattr(recipient.result, "next_attempt_at", None) for recipient in status.recipients} == {
                NOW + MINUTE
            }
            assert len(await claim(storage, now=NOW + MINUTE)) == 2

    async def test_hastening_leaves_alone_what_is_claimed_final_or_due_already(self) -> None:
        """No attempt is disturbed, nothing is attempted twice, and nobody is put back in the line."""
        async with self.opened() as storage:
            await storage.enqueue([email("claimed")])
            delivery = await claim_one(storage)
            await storage.enqueue([email("final")])
            await storage.record([record_of(await claim_one(storage), delivered())])
            (waiting,) = await storage.enqueue([email("due")])

            assert await storage.hasten("claimed", NOW + MINUTE) == []
            assert await storage.hasten("final", NOW + MINUTE) == []
            assert await storage.hasten("due", NOW + MINUTE) == [waiting]
            assert await storage.hasten("unknown", NOW + MINUTE) is None
            assert await unclaimed(storage) == [waiting]
            assert await storage.renew([delivery], NOW + HOUR) == []
