"""Asking: what is due next, what was accepted lately, what is known of a Message-ID; and forgetting."""

from mailstrom_async._envelope import LANES
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
    deferred,
    delivered,
    email,
    failed,
    ids_of,
    record_of,
    states_of,
)

STRANGE_IDS = (
    "",
    "unknown@example.org",
    "' OR 1=1 --",
    '"; DROP TABLE messages; --',
    "%",
    "_@example.org",
    "1@example.org\x00",
    "\x00",
    "1@EXAMPLE.org",
    " 1@example.org",
    "\ud800",
    "a\udfffb@example.org",
    "\U0001f4a9",
    "x" * 1_000_000,
)
"""None of them is `ID`, though some try to pass for it."""


class Asking(Ground):
    async def test_what_is_upcoming_is_in_the_order_of_its_due_times(self) -> None:
        """Whether due or not, however it was stored; at most so many."""
        minutes = [5, 1, 4, 1, 3, 0, 2]
        async with self.opened() as storage:
            for number, minute in enumerate(minutes):
                await storage.enqueue([email(f"{number}", due_at=NOW + minute * MINUTE)])
            entries = await storage.upcoming(100)
            nearest = await storage.upcoming(3)

            assert [(entry.due_at - NOW) // MINUTE for entry in entries] == sorted(minutes)
            assert [entry.due_at for entry in nearest] == [entry.due_at for entry in entries[:3]]
            assert await storage.upcoming(0) == []

    async def test_deliveries_that_are_due_at_the_same_instant_are_all_upcoming(self) -> None:
        """An index by time alone would lose all of them but one."""
        async with self.opened() as storage:
            dues = await storage.enqueue([email(f"{number}", [ADA, EVE]) for number in range(50)])

            assert sorted(ids_of(await storage.upcoming(1000))) == sorted(ids_of(dues))
            assert len(await storage.upcoming(70)) == 70

    async def test_destinations_can_be_left_out(self) -> None:
        """However many deliveries they have before the others in time."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"a{number}", ["a@a.example"]) for number in range(50)])
            await storage.enqueue([email("b", ["b@b.example"], due_at=NOW + HOUR)])
            await storage.enqueue([email("c", ["c@c.example"], due_at=NOW + MINUTE)])
            without_a = await storage.upcoming(10, excluding={"a.example", "unknown.example"})
            without_all = await storage.upcoming(10, excluding=["a.example", "b.example", "c.example"])
            first = await storage.upcoming(1, excluding=("a.example",))

            assert [entry.destination for entry in without_a] == ["c.example", "b.example"]
            assert without_all == []
            assert [entry.destination for entry in first] == ["c.example"]
            assert len(await storage.upcoming(100)) == 52

    async def test_very_many_destinations_can_be_left_out(self) -> None:
        """And among very many others: the answer is the same as with a few."""
        async with self.opened() as storage:
            await storage.enqueue(
                [
                    email(f"{number}", [f"a@{number}.example"], due_at=NOW + number * INSTANT)
                    for number in reversed(range(1200))
                ]
            )
            entries = await storage.upcoming(5, excluding={f"{number}.example" for number in range(1100)})

            assert [entry.destination for entry in entries] == [f"{number}.example" for number in range(1100, 1105)]

    async def test_each_lane_can_be_read_by_itself(self) -> None:
        """However much is before it in the others: a backlog of newsletters does not hide a login code."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"n{number}", [ADA, EVE], lane="bulk") for number in range(30)])
            await storage.enqueue([email("code", [ADA], due_at=NOW + HOUR, lane="auth")])
            await storage.enqueue([email("1", [ADA], due_at=NOW + MINUTE), email("2", [EVE])])
            auth = await storage.upcoming(5, lane="auth")
            default = await storage.upcoming(5, lane="default")
            bulk = await storage.upcoming(100, lane="bulk", excluding={"example.net"})
            of_all = await storage.upcoming(100)

            assert [(entry.due_at, entry.lane) for entry in auth] == [(NOW + HOUR, "auth")]
            assert [entry.destination for entry in default] == ["example.com", "example.net"]
            assert [(entry.destination, entry.lane) for entry in bulk] == [("example.com", "bulk")] * 30
            assert await storage.upcoming(5, lane="auth", excluding=["example.net"]) == []
            assert len(of_all) == 63
            assert [entry.due_at for entry in of_all] == sorted(entry.due_at for entry in of_all)

    async def test_very_many_destinations_can_be_left_out_of_a_lane(self) -> None:
        """The others in it are found, and none of another lane."""
        async with self.opened() as storage:
            await storage.enqueue(
                [
                    email(f"{lane}{number}", [f"a@{number}.example"], due_at=NOW + number * INSTANT, lane=lane)
                    for number in range(1200)
                    for lane in LANES
                    if number % 3 == 0 or lane == "bulk"
                ]
            )
            entries = await storage.upcoming(4, excluding={f"{number}.example" for number in range(1100)}, lane="auth")

            assert [(entry.destination, entry.lane) for entry in entries] == [
                (f"{number}.example", "auth") for number in (1101, 1104, 1107, 1110)
            ]

    async def test_an_unknown_message_id_is_unknown_whatever_it_is_made_of(self) -> None:
        """Row D26: SQL, NUL, lone surrogates, a megabyte: None, and nothing else happens."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            for strange in STRANGE_IDS:
                assert await storage.status(strange) is None
                assert await storage.attempts(strange) is None
                assert await storage.prepared(strange) is None
                assert await storage.cancel(strange, NOW) is None
                assert await storage.hasten(strange, NOW) is None

            assert states_of(await storage.status(ID)) == {ADA: "queued"}
            assert await storage.attempts(ID) == []

    async def test_a_message_id_is_told_apart_from_those_that_resemble_it(self) -> None:
        """Row D25: by every character and its case; what looks like SQL is but a name."""
        names = ["a@example.org", "A@example.org", "a@example.org ", "' OR 1=1 --", "%", "ä@example.org", "x" * 900]
        async with self.opened() as storage:
            await storage.enqueue([email(name) for name in names])
            statuses = [await storage.status(name) for name in names]

            assert [status.message_id for status in statuses if status is not None] == names
            assert len(await storage.upcoming(100)) == len(names)

    async def test_a_status_shows_when_the_next_attempt_is_planned_now(self) -> None:
        """A retry that is given back unattempted waits for its new time."""
        async with self.opened() as storage:
            await storage.enqueue([email()])
            await storage.record([record_of(await claim_one(storage), deferred(NOW + MINUTE), NOW + MINUTE)])
            await storage.release([await claim_one(storage, now=NOW + MINUTE)], NOW + HOUR)
            status = await storage.status(ID)

            assert status is not None
            assert status.recipients[0].result == deferred(NOW + HOUR)

    async def test_recent_are_all_that_are_incomplete_oldest_first(self) -> None:
        """Claimed, deferred, cancelled or not; completed ones only if asked for."""
        async with self.opened() as storage:
            for number in (3, 1, 4, 2, 0):
                await storage.enqueue([email(f"{number}", queued_at=NOW + number * MINUTE)])
            claims = {
                delivery.message.message_id: delivery for delivery in await claim(storage, now=NOW + HOUR, lease=LEASE)
            }
            await storage.record(
                [record_of(claims["1"], delivered()), record_of(claims["2"], deferred(NOW + HOUR), NOW + HOUR)]
            )
            recent = await storage.recent(None, 100)

            assert [status.message_id for status in recent] == ["0", "2", "3", "4"]
            assert recent[1] == await storage.status("2")
            assert [status.message_id for status in await storage.recent(None, 2)] == ["0", "2"]

    async def test_recent_includes_what_was_completed_since(self) -> None:
        """At that moment or after it, in the order in which they were accepted."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"{number}", queued_at=NOW + number * INSTANT) for number in range(5)])
            claims = {delivery.message.message_id: delivery for delivery in await claim(storage, now=NOW + MINUTE)}
            for number, minutes in (("0", 3), ("1", 2), ("2", 1)):
                await storage.record([record_of(claims[number], delivered(NOW + minutes * MINUTE))])
            await storage.record([record_of(claims["3"], failed(NOW + 2 * MINUTE - INSTANT))])

            since = await storage.recent(NOW + 2 * MINUTE, 100)
            assert [status.message_id for status in since] == ["0", "1", "4"]
            assert [status.message_id for status in await storage.recent(NOW, 2)] == ["0", "1"]
            assert [status.message_id for status in await storage.recent(NOW + HOUR, 100)] == ["4"]

    async def test_purging_forgets_what_was_completed_before(self) -> None:
        """Not at that moment or later; and then all of it: status, attempts, and that the Message-ID was known."""
        async with self.opened() as storage:
            await storage.enqueue([email("1", [ADA, BOB]), email("2"), email("3")])
            claims = {delivery.message.message_id: delivery for delivery in await claim(storage)}
            for number in (1, 2):
                await storage.record([record_of(claims[f"{number}"], delivered(NOW + number * MINUTE))])
            await storage.cancel("3", NOW)
            await storage.release([claims["3"]], NOW)
            purged = await storage.purge(NOW + 2 * MINUTE)

            assert purged == 2
            assert await storage.status("1") is None
            assert await storage.attempts("1") is None
            assert await storage.status("3") is None
            assert states_of(await storage.status("2")) == {ADA: "delivered"}
            assert await storage.purge(NOW + 2 * MINUTE) == 0
            assert len(await storage.enqueue([email("1")])) == 1

    async def test_purging_never_forgets_an_incomplete_message(self) -> None:
        """Row C28: claimed, waiting, half delivered or cancelled during its attempt, however old it is."""
        async with self.opened() as storage:
            await storage.enqueue([email("waiting", due_at=NOW + HOUR), email("half", [ADA, EVE])])
            half, claimed = await claim(storage)
            await storage.record([record_of(half, delivered())])
            await storage.enqueue([email("cancelled")])
            running = await claim_one(storage)
            await storage.cancel("cancelled", NOW)
            purged = await storage.purge(NOW + 10_000 * HOUR)

            assert purged == 0
            assert {status.message_id for status in await storage.recent(None, 10)} == {"waiting", "half", "cancelled"}
            assert [one.accepted for one in await storage.record([record_of(claimed, delivered())])] == [True]
            assert [one.accepted for one in await storage.record([record_of(running, delivered())])] == [True]

    async def test_purging_empties_a_store_however_much_there_is(self) -> None:
        """In one call, and what is incomplete stays."""
        async with self.opened() as storage:
            await storage.enqueue([email(f"{number}") for number in range(450)])
            await storage.record([record_of(delivery, delivered()) for delivery in await claim(storage)])
            await storage.enqueue([email("last")])

            assert await storage.purge(NOW + INSTANT) == 450
            assert [status.message_id for status in await storage.recent(NOW, 10)] == ["last"]
