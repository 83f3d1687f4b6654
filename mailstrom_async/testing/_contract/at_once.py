"""Claiming mail as it is accepted, where a store is `Express`; where it is not, claiming it then comes to the same."""

import asyncio

from mailstrom_async._envelope import Delivery, Due, PendingRecipient
from mailstrom_async._errors import AlreadyQueued, QueueFull
from mailstrom_async.storage.base import Acceptance, Express, Storage
from mailstrom_async.testing._contract.ground import (
    ADA,
    BOB,
    ID,
    LEASE,
    MINUTE,
    NOW,
    Ground,
    claim,
    claim_one,
    delivered,
    email,
    ids_of,
    raises,
    record_of,
    states_of,
    unclaimed,
)


async def enqueue_claimed(
    storage: Storage, acceptance: Acceptance, *, owner: str = "one", queue_size: int | None = None
) -> Delivery:
    """The claim; made afterwards, where the store does not do so."""
    stored: Delivery | list[Due]
    if isinstance(storage, Express):
        stored = await storage.enqueue_claimed(acceptance, owner=owner, lease_until=NOW + LEASE, queue_size=queue_size)
    else:
        stored = await storage.enqueue([acceptance], queue_size=queue_size)
    if isinstance(stored, Delivery):
        return stored
    (delivery,) = await claim(storage, ids_of(stored), owner=owner)
    return delivery


class AtOnce(Ground):
    async def test_what_is_claimed_as_it_is_accepted_is_a_claim_like_any(self) -> None:
        """It brings all that an attempt needs, is nobody else's, and its record completes the message."""
        async with self.opened() as storage:
            acceptance = email(recipients=[BOB, ADA])
            delivery = await enqueue_claimed(storage, acceptance)

            assert (delivery.owner, delivery.attempt, delivery.destination) == ("one", 1, "example.net")
            assert delivery.recipients == (PendingRecipient(BOB, "queued", 0), PendingRecipient(ADA, "queued", 0))
            assert delivery.message.content == acceptance.prepared.content
            assert delivery.message.expires_at == acceptance.expires_at
            assert await unclaimed(storage) == []
            assert await claim(storage, [delivery.id], owner="two") == []

            (recorded,) = await storage.record([record_of(delivery, delivered())])
            assert (recorded.accepted, recorded.completed) == (True, True)
            assert states_of(await storage.status(ID)) == {BOB: "delivered", ADA: "delivered"}

    async def test_others_are_numbered_on_from_what_is_claimed_as_it_is_accepted(self) -> None:
        """No two deliveries are one, whichever way they came."""
        async with self.opened() as storage:
            first = await enqueue_claimed(storage, email("1"))
            dues = await storage.enqueue([email("2")])
            third = await enqueue_claimed(storage, email("3"))

            assert len({first.id, dues[0].delivery_id, third.id}) == 3
            assert len({first.message.key, (await claim_one(storage)).message.key, third.message.key}) == 3

    async def test_a_message_that_is_known_is_not_claimed_as_it_is_accepted(self) -> None:
        """Nor one for which there is no room; the claim of the first is as it was."""
        async with self.opened() as storage:
            delivery = await enqueue_claimed(storage, email(), queue_size=1)
            with raises(AlreadyQueued):
                await enqueue_claimed(storage, email(), owner="two")
            with raises(QueueFull):
                await enqueue_claimed(storage, email("2"), queue_size=1)

            assert await unclaimed(storage) == []
            (recorded,) = await storage.record([record_of(delivery, delivered())])
            assert recorded.accepted

    async def test_it_may_be_given_back_and_is_due_then(self) -> None:
        """The attempt is not counted."""
        async with self.opened() as storage:
            delivery = await enqueue_claimed(storage, email())
            await storage.release([delivery], NOW)

            assert (await claim_one(storage)).attempt == 1

    async def test_what_a_dead_owner_had_claimed_as_it_was_accepted_is_due_again(self) -> None:
        """Row C1: its claim is one of an earlier life, or ends with its lease."""
        async with self.opened() as storage:
            await enqueue_claimed(storage, email())
        later = NOW + LEASE + MINUTE
        async with self.opened(later) as storage:
            assert (await claim_one(storage, now=later)).attempt == 2

    async def test_who_gives_up_leaves_no_claim(self) -> None:
        """Cancelled at whatever moment, it is stored and due, or not stored. Another call's claim is left alone."""
        async with self.opened() as storage:
            if not isinstance(storage, Express):
                return

            async def call(acceptance: Acceptance) -> Delivery | list[Due]:
                return await storage.enqueue_claimed(acceptance, owner="one", lease_until=NOW + LEASE)

            kept = await enqueue_claimed(storage, email("kept"))
            for turns in range(30):
                first = asyncio.create_task(call(email(str(turns))))
                again = asyncio.create_task(call(email("kept", queued_at=NOW + MINUTE)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
                again.cancel()
                await asyncio.wait([first, again])
                await storage.enqueue([])  # a store does one thing after another: what was begun is done now

                is_ours = not first.cancelled() and isinstance(first.result(), Delivery)
                is_due = not is_ours and await storage.status(str(turns)) is not None
                due = [delivery.message.message_id for delivery in await claim(storage, now=NOW)]
                assert due == [str(turns)] * is_due

            (recorded,) = await storage.record([record_of(kept, delivered())])
            assert recorded.accepted
