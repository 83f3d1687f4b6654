"""Counting the mailers that deliver: of a store that is a `Roster`."""

from mailstrom_async.storage.base import Portion, Roster
from mailstrom_async.testing._contract.ground import INSTANT, LEASE, NOW, SECOND, Ground

DAY = 24 * 60 * LEASE


class CountedOrNot(Ground):
    async def test_a_roster_proves_more(self) -> None:
        """Of a `Roster`, this is no full proof; `RosterContract` is."""
        async with self.opened() as storage:
            is_roster, proved = isinstance(storage, Roster), isinstance(self, Counting)

            assert is_roster == proved, "RosterContract proves what is a Roster, StorageContract what is none"


class Counting(Ground):
    async def test_those_who_deliver_are_numbered_in_one_order(self) -> None:
        """Each of them hears another number, whoever came first and however often they ask."""
        async with self.opened() as storage:
            assert isinstance(storage, Roster)
            owners = ["b", "a", "c"]
            first = [await storage.attend(owner, now=NOW, lease=LEASE) for owner in owners]
            again = [await storage.attend(owner, now=NOW + SECOND, lease=LEASE) for owner in owners]

            assert first[0] == Portion(0, 1)
            assert [portion.count for portion in first] == [1, 2, 3]
            assert [portion.count for portion in again] == [3, 3, 3]
            assert sorted(portion.number for portion in again) == [0, 1, 2]

    async def test_who_left_is_counted_no_longer(self) -> None:
        """At once; leaving twice does no harm."""
        async with self.opened() as storage:
            assert isinstance(storage, Roster)
            await storage.attend("one", now=NOW, lease=LEASE)
            await storage.attend("two", now=NOW, lease=LEASE)
            await storage.leave("one")
            await storage.leave("one")

            assert await storage.attend("two", now=NOW, lease=LEASE) == Portion(0, 1)

    async def test_who_was_killed_counts_until_its_lease_would_have_ended(self) -> None:
        """Row C14: the others have its portion then."""
        async with self.opened() as storage:
            assert isinstance(storage, Roster)
            await storage.attend("one", now=NOW, lease=LEASE)
            before = await storage.attend("two", now=NOW + LEASE - INSTANT, lease=LEASE)
            after = await storage.attend("two", now=NOW + LEASE, lease=LEASE)

            assert (before, after) == (Portion(1, 2), Portion(0, 1))

    async def test_who_was_killed_before_the_clock_was_set_back_is_not_counted_for_a_day(self) -> None:
        """Row C16: seen in the future is not seen."""
        async with self.opened() as storage:
            assert isinstance(storage, Roster)
            await storage.attend("one", now=NOW + DAY, lease=LEASE)

            assert await storage.attend("two", now=NOW, lease=LEASE) == Portion(0, 1)
