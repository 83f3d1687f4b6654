"""A clock that is set back (row C16): what it would keep waiting for a day."""

from mailstrom_async._queue.retry import SKEW
from mailstrom_async.storage.base import Storage
from mailstrom_async.testing._contract.ground import (
    HOUR,
    LEASE,
    NOW,
    Ground,
    claim,
    claim_one,
    deferred,
    email,
    ids_of,
    record_of,
)

BEFORE = NOW - 24 * HOUR
"""What the clock shows after it was set back."""
LONGEST = 4 * HOUR


async def defer(storage: Storage, until: int) -> None:
    """Attempt what waits, in vain; it is due again after so many hours."""
    delivery = await claim_one(storage)
    due_at = NOW + until * HOUR
    await storage.record([record_of(delivery, deferred(due_at), due_at)])


class Setback(Ground):
    async def test_what_was_just_accepted_is_due_now(self) -> None:
        """Nobody asked that it wait."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            changed = await storage.bring_forward(BEFORE, LONGEST)

            assert changed == 1
            assert [entry.due_at for entry in await storage.upcoming(10)] == [BEFORE]
            assert len(await claim(storage, ids, now=BEFORE)) == 1

    async def test_what_a_machine_accepted_whose_clock_is_ahead_is_left_alone(self) -> None:
        """By some seconds: it is due in a moment."""
        async with self.opened() as storage:
            await storage.enqueue([email()])

            assert await storage.bring_forward(NOW - SKEW, LONGEST) == 0
            assert [entry.due_at for entry in await storage.upcoming(10)] == [NOW]

    async def test_what_is_to_be_sent_later_keeps_its_time(self) -> None:
        """It is a time that the caller chose."""
        async with self.opened() as storage:
            await storage.enqueue([email(due_at=NOW + HOUR)])

            assert await storage.bring_forward(BEFORE, LONGEST) == 0
            assert [entry.due_at for entry in await storage.upcoming(10)] == [NOW + HOUR]

    async def test_a_retry_is_due_within_the_longest_wait(self) -> None:
        """27 hours from then are the rest that 4 leave; a second call finds nothing to do."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            await defer(storage, 3)

            assert await storage.bring_forward(BEFORE, LONGEST) == 1
            assert [entry.due_at for entry in await storage.upcoming(10)] == [BEFORE + 3 * HOUR]
            assert await storage.bring_forward(BEFORE, LONGEST) == 0

    async def test_a_clock_that_is_right_changes_nothing(self) -> None:
        """New mail, mail to be sent later, a retry after the longest wait, and a claim."""
        async with self.opened() as storage:
            await storage.enqueue([email("retry")])
            await defer(storage, 4)
            await storage.enqueue([email("claimed")])
            await claim_one(storage)
            await storage.enqueue([email("new"), email("later", due_at=NOW + 100 * HOUR)])
            before = await storage.upcoming(10)

            assert await storage.bring_forward(NOW, LONGEST) == 0
            assert await storage.upcoming(10) == before

    async def test_a_claim_whose_owner_died_ends_within_the_longest_wait(self) -> None:
        """Only where several processes deliver: in other stores claims end when they are opened."""
        async with self.opened() as storage:
            ids = ids_of(await storage.enqueue([email()]))
            await claim(storage, ids, lease=LEASE)
            if not self.several_processes:
                return

            assert await storage.bring_forward(BEFORE, LONGEST) == 1
            assert await claim(storage, ids, owner="two", now=BEFORE + LONGEST - HOUR) == []
            assert len(await claim(storage, ids, owner="two", now=BEFORE + LONGEST)) == 1
