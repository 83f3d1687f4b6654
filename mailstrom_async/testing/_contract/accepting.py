"""Accepting: all or none, each Message-ID once, no more than the queue may hold."""

import asyncio

from mailstrom_async._envelope import LANES, Due, PreparedEmail
from mailstrom_async._errors import AlreadyQueued, MailstromError, QueueFull
from mailstrom_async.storage.base import Acceptance
from mailstrom_async.testing._contract.ground import (
    ADA,
    BOB,
    EVE,
    HOUR,
    ID,
    INSTANT,
    MINUTE,
    NOW,
    Ground,
    claim,
    claim_one,
    deferred,
    delivered,
    email,
    failed,
    ids_of,
    raises,
    record_of,
    states_of,
)


class Accepting(Ground):
    async def test_an_accepted_message_has_a_delivery_for_each_destination(self) -> None:
        """Recipients of one domain, however it is written, are one delivery."""
        async with self.opened() as storage:
            dues = await storage.enqueue([email(recipients=[ADA, EVE, "bob@Example.NET"], content=b"12345")])

            assert [(due.due_at, due.destination, due.size) for due in dues] == [
                (NOW, "example.net", 5),
                (NOW, "example.com", 5),
            ]
            assert len(set(ids_of(dues))) == 2
            assert sorted(await storage.upcoming(10)) == sorted(dues)

    async def test_the_status_lists_the_envelope_recipients_in_order_as_they_were_written(self) -> None:
        """Invariant I2: exactly those, no more, no fewer, and nothing happened to them yet."""
        addresses = ["z@example.net", "a@example.com", "Y@example.net", '"a@b"@example.com', "b@xn--bcher-kva.example"]
        written = ["Z <z@example.net>", "a@EXAMPLE.com", "Y@example.net", '"a@b"@example.com', "b@bücher.example"]
        async with self.opened() as storage:
            await storage.enqueue([email(recipients=addresses, written=written)])
            status = await storage.status(ID)

            assert status is not None
            assert (status.message_id, status.queued_at, status.completed) == (ID, NOW, False)
            assert [recipient.address for recipient in status.recipients] == addresses
            assert [recipient.recipient for recipient in status.recipients] == written
            assert {(recipient.attempts, recipient.result.state) for recipient in status.recipients} == {(0, "queued")}

    async def test_a_message_comes_back_byte_for_byte(self) -> None:
        """Invariant I9: what is claimed and what `prepared` shows is what was accepted."""
        content = bytes(range(256)) * 2000 + b"\r\n.\r\n\x00"
        prepared = PreparedEmail(
            ID, "", ("jörg@example.net", EVE), content, smtputf8=True, eight_bit=True, written=("Jörg", "Eve")
        )
        async with self.opened() as storage:
            await storage.enqueue([Acceptance(prepared, NOW, NOW, NOW + HOUR)])
            shown = await storage.prepared(ID)
            message = (await claim(storage))[0].message

            assert shown == prepared
            assert message.content == content
            assert (message.message_id, message.sender) == (ID, "")
            assert (message.smtputf8, message.eight_bit) == (True, True)
            assert (message.queued_at, message.expires_at) == (NOW, NOW + HOUR)

    async def test_the_lane_is_kept_and_told_everywhere(self) -> None:
        """Where the scheduler reads it, where an attempt is made, and in the status; through a retry as well."""
        later = NOW + MINUTE
        async with self.opened() as storage:
            for lane in LANES:
                dues = await storage.enqueue([email(lane, [ADA, EVE], lane=lane)])
                delivery, other = await claim(storage, ids_of(dues))
                (recorded,) = await storage.record([record_of(delivery, deferred(later), later)])
                released = await storage.release([other], NOW)
                hastened = await storage.hasten(lane, NOW)
                status = await storage.status(lane)

                assert {due.lane for due in dues} == {lane}
                assert {delivery.message.lane, other.message.lane} == {lane}
                assert recorded.due is not None
                assert recorded.due.lane == lane
                assert [due.lane for due in released] == [lane]
                assert [due.lane for due in hastened or ()] == [lane, lane]
                assert status is not None
                assert status.lane == lane

    async def test_lanes_of_one_call_are_each_messages_own(self) -> None:
        """Many messages may be stored, and claimed, at once."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"{number}", lane=LANES[number % 3]) for number in range(9)])
            deliveries = await claim(storage)
            statuses = await storage.recent(None, 100)

            assert [delivery.message.lane for delivery in deliveries] == [*LANES] * 3
            assert [status.lane for status in statuses] == [*LANES] * 3

    async def test_times_are_exact_to_the_microsecond(self) -> None:
        """A store that rounds would attempt too early, or show what is not true."""
        queued_at, due_at = NOW + INSTANT, NOW + HOUR + 3 * INSTANT
        async with self.opened() as storage:
            dues = await storage.enqueue([email(queued_at=queued_at, due_at=due_at)])
            early = await claim(storage, now=due_at - INSTANT)
            delivery = await claim_one(storage, now=due_at)
            status = await storage.status(ID)

            assert [due.due_at for due in dues] == [due_at]
            assert early == []
            assert delivery.message.queued_at == queued_at
            assert delivery.message.expires_at == due_at + 120 * HOUR
            assert status is not None
            assert status.queued_at == queued_at

    async def test_nothing_to_accept_is_no_trouble(self) -> None:
        """An empty call stores nothing, even when the queue is full."""
        async with self.opened() as storage:
            assert await storage.enqueue([]) == []
            assert await storage.enqueue([], queue_size=0) == []
            assert await storage.upcoming(10) == []

    async def test_a_known_message_id_is_refused_with_all_that_came_with_it(self) -> None:
        """A Message-ID is an idempotency key: what it names stays as it is."""
        async with self.opened() as storage:
            await storage.enqueue([email(content=b"first")])
            with raises(AlreadyQueued):
                await storage.enqueue([email("new@example.org"), email(content=b"second"), email("3@example.org")])
            kept = await storage.prepared(ID)

            assert kept is not None
            assert kept.content == b"first"
            assert await storage.status("new@example.org") is None
            assert await storage.status("3@example.org") is None
            assert len(await storage.upcoming(10)) == 1

    async def test_a_message_id_twice_in_one_call_is_refused(self) -> None:
        """None of them is stored, and the Message-ID stays free."""
        async with self.opened() as storage:
            with raises(AlreadyQueued):
                await storage.enqueue([email(), email("2@example.org"), email()])

            assert await storage.status(ID) is None
            assert await storage.status("2@example.org") is None
            assert len(await storage.enqueue([email()])) == 1

    async def test_a_message_id_stays_known_when_its_message_is_completed(self) -> None:
        """Who repeats a call next week still must not send twice."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            await storage.record([record_of(await claim_one(storage), delivered())])
            with raises(AlreadyQueued):
                await storage.enqueue([email()])

            assert states_of(await storage.status(ID)) == {ADA: "delivered"}

    async def test_one_of_many_at_the_same_time_gets_the_message_id(self) -> None:
        """However many callers race for a Message-ID, it is stored once."""
        async with self.opened() as storage:
            outcomes = await asyncio.gather(
                *(storage.enqueue([email(content=b"%d" % number)]) for number in range(20)), return_exceptions=True
            )
            refused = [outcome for outcome in outcomes if isinstance(outcome, AlreadyQueued)]

            assert len(refused) == 19
            assert len(await storage.upcoming(100)) == 1

    async def test_many_that_are_accepted_at_the_same_time_are_each_stored_whole(self) -> None:
        """However many calls share a commit: each with its recipients, its body, and its times."""
        acceptances = [
            email(
                f"{number}",
                [ADA, EVE, BOB][: 1 + number % 3],
                written=["Ada", EVE, "Bob"][: 1 + number % 3],
                sender=f"{number}@example.org" if number % 4 else "",
                content=bytes([number]) * number,
                queued_at=NOW + number * INSTANT,
                due_at=NOW + HOUR + number * INSTANT,
            )
            for number in range(20)
        ]
        async with self.opened() as storage:
            await asyncio.gather(*(storage.enqueue([acceptance]) for acceptance in acceptances))
            for number, acceptance in enumerate(acceptances):
                status = await storage.status(f"{number}")

                assert await storage.prepared(f"{number}") == acceptance.prepared
                assert status is not None
                assert status.queued_at == acceptance.queued_at
                assert tuple(recipient.recipient for recipient in status.recipients) == acceptance.prepared.written
            entries = await storage.upcoming(100)
            deliveries = await claim(storage, now=NOW + 2 * HOUR)

            assert sorted((entry.due_at, entry.destination, entry.size) for entry in entries) == sorted(
                (acceptance.due_at, destination, number)
                for number, acceptance in enumerate(acceptances)
                for destination in {address.partition("@")[2] for address in acceptance.prepared.recipients}
            )
            assert {(one.message.message_id, one.message.content) for one in deliveries} == {
                (one.prepared.message_id, one.prepared.content) for one in acceptances
            }

    async def test_a_full_queue_refuses_the_whole_call(self) -> None:
        """Exactly `queue_size` messages may be unfinished; what was refused leaves nothing behind."""
        async with self.opened() as storage:
            await storage.enqueue([email("1"), email("2")], queue_size=2)
            with raises(QueueFull):
                await storage.enqueue([email("3")], queue_size=2)
            with raises(QueueFull):
                await storage.enqueue([email("3"), email("4")], queue_size=3)
            await storage.enqueue([email("3")], queue_size=3)

            assert await storage.status("4") is None
            assert len(await storage.upcoming(10)) == 3

    async def test_finished_messages_leave_room_in_the_queue(self) -> None:
        """Delivered, failed and cancelled ones do not count, half-finished ones do."""
        async with self.opened() as storage:
            await storage.enqueue([email("1"), email("2", [ADA, EVE]), email("3")], queue_size=3)
            first, second, *rest = await claim(storage)
            await storage.record([record_of(first, delivered()), record_of(second, failed())])
            await storage.cancel("3", NOW)
            await storage.release(rest, NOW)
            await storage.enqueue([email("4"), email("5")], queue_size=3)
            with raises(QueueFull):
                await storage.enqueue([email("6")], queue_size=3)

            assert await storage.status("6") is None

    async def test_a_repeated_message_is_told_that_it_is_known_even_when_the_queue_is_full(self) -> None:
        """QueueFull would ask the caller to send again what was accepted long ago."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            with raises(AlreadyQueued):
                await storage.enqueue([email()], queue_size=1)

            assert len(await storage.upcoming(10)) == 1

    async def test_a_message_may_have_very_many_recipients(self) -> None:
        """Row E6, in small: one delivery for each destination, the status in the order of the envelope."""
        addresses = [f"user{number}@{number % 50}.example" for number in range(1000)]
        async with self.opened() as storage:
            dues = await storage.enqueue([email(recipients=addresses)])
            status = await storage.status(ID)
            deliveries = await claim(storage)

            assert len(dues) == 50
            assert status is not None
            assert [recipient.address for recipient in status.recipients] == addresses
            assert {len(delivery.recipients) for delivery in deliveries} == {20}

    async def test_a_cancelled_call_stores_the_message_whole_or_not_at_all(self) -> None:
        """Row C20: whenever the cancellation arrives, and the store works on."""
        async with self.opened() as storage:
            for steps in range(8):
                message_id = f"{steps}@example.org"
                call = asyncio.create_task(storage.enqueue([email(message_id, [ADA, BOB, EVE])]))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait([call])
            await storage.enqueue([email("last@example.org")])
        # What was begun may still be under way, until the store is closed.
        async with self.opened() as storage:
            entries: list[Due] = await storage.upcoming(100)
            stored = [
                status for steps in range(8) if (status := await storage.status(f"{steps}@example.org")) is not None
            ]

            assert all(len(status.recipients) == 3 for status in stored)
            assert len(entries) == 2 * len(stored) + 1

    async def test_what_waits_when_the_store_is_closed_is_stored_or_refused(self) -> None:
        """`aclose` finishes what was begun: what was acknowledged is there afterwards."""
        async with self.opened() as storage:
            calls = [asyncio.create_task(storage.enqueue([email(f"{number}")])) for number in range(20)]
            await asyncio.sleep(0)
            await storage.aclose()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        async with self.opened() as storage:
            for number, outcome in enumerate(outcomes):
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, MailstromError)
                else:
                    assert states_of(await storage.status(f"{number}")) == {ADA: "queued"}
