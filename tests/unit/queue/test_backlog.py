"""The lanes' ways from the store's index to a claim, and how they share claims and memory."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._envelope import LANES, Due, Lane
from mailstrom_async._queue.backlog import KEPT_CLAIMS, READY_CAPACITY, Backlog, Backlogs
from mailstrom_async._queue.fairness import PATIENCE

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
MUCH = 10**9


def many(lane: Lane, count: int, *, size: int = 1, due_at: datetime = NOW, first: int | None = None) -> list[Due]:
    """Deliveries, each to a destination of its own, so that no window stands against them."""
    first = LANES.index(lane) * 100_000 if first is None else first
    return [Due(due_at, n, f"{n}.example", size, lane) for n in range(first, first + count)]


def filled(**counts: int) -> Backlogs:
    backlogs = Backlogs(MUCH)
    for lane in LANES:
        backlogs.push(many(lane, counts.get(lane, 0)), NOW)
    return backlogs


def shares(entries: list[Due]) -> Counter[str]:
    return Counter(entry.lane for entry in entries)


def test_claims_are_shared_by_weight():
    """16, 4 and 1 of 21, though newsletters were there first; and what one lane leaves, the others have."""
    backlogs = filled(bulk=500, default=500, auth=500)

    assert shares(backlogs.take(210, 1000, MUCH)) == {"auth": 160, "default": 40, "bulk": 10}
    assert shares(filled(bulk=500, auth=5).take(105, 1000, MUCH)) == {"auth": 5, "bulk": 100}


def test_shares_hold_when_claims_come_free_one_by_one():
    """As they do when all are out: not even then is a lane forgotten."""
    backlogs = filled(bulk=500, default=500, auth=500)

    assert shares([entry for _ in range(210) for entry in backlogs.take(1, 1000, MUCH)]) == {
        "auth": 160,
        "default": 40,
        "bulk": 10,
    }


def test_the_last_claims_are_kept_for_the_top_lane():
    """However many newsletters are out, a login code can be claimed."""
    backlogs = filled(bulk=500, default=500)

    assert backlogs.take(100, KEPT_CLAIMS, MUCH) == []
    assert len(backlogs.take(100, KEPT_CLAIMS + 1, MUCH)) == 1
    backlogs.push(many("auth", 1), NOW)
    assert shares(backlogs.take(100, KEPT_CLAIMS, MUCH)) == {"auth": 1}


def test_the_last_of_the_memory_is_kept_for_the_top_lane():
    """A sixteenth."""
    backlogs = Backlogs(1600)
    backlogs.push([*many("bulk", 10, size=200), *many("auth", 1, size=90)], NOW)
    taken = backlogs.take(100, 1000, 1600)

    assert shares(taken) == {"auth": 1, "bulk": 7}
    assert shares(backlogs.take(100, 1000, 110)) == {}
    backlogs.push(many("auth", 1, size=90, first=7), NOW)
    assert shares(backlogs.take(100, 1000, 110)) == {"auth": 1}


def test_what_is_large_is_not_passed_by_other_lanes_for_ever():
    """After a while the memory that comes free is kept for it; login codes still go past, and some small mail."""
    backlogs = Backlogs(1600)
    backlogs.push(many("bulk", 1, size=1000), NOW)
    for _ in range(PATIENCE + 1):
        assert backlogs.take(100, 1000, 900) == []
    backlogs.push([*many("default", 5), *many("auth", 1)], NOW)

    assert shares(backlogs.take(100, 1000, 900, small=100)) == {"auth": 1}
    assert shares(backlogs.take(100, 1000, 900, small=95)) == {"default": 5}
    assert shares(backlogs.take(100, 1000, 1600)) == {"bulk": 1}


def test_new_mail_goes_at_once_where_nothing_stands_before_it():
    """Of its destination, and as much as its window allows; a lane's mail is not before another lane's."""
    backlogs = filled(default=1)
    (waiting,) = many("default", 1)

    assert not backlogs.reserve("default", waiting.destination, 1, claims=1000, memory=MUCH)
    assert backlogs.reserve("auth", waiting.destination, 1, claims=1000, memory=MUCH)
    at_once = [backlogs.reserve("default", "new.example", 1, claims=1000, memory=MUCH) for _ in range(10)]
    assert at_once == [True] * 8 + [False] * 2

    backlogs.lanes["default"].lines.finished("new.example", well=None)
    assert backlogs.reserve("default", "new.example", 1, claims=1000, memory=MUCH)


def test_where_claims_or_memory_are_scarce_what_waits_goes_first():
    """Of whatever lane and destination: it would find them taken whenever it is its turn."""
    backlogs = Backlogs(1600)
    backlogs.push(many("default", 1), NOW)

    assert not backlogs.reserve("auth", "new.example", 1, claims=2 * KEPT_CLAIMS - 1, memory=1600)
    assert not backlogs.reserve("auth", "new.example", 1, claims=1000, memory=370)
    assert backlogs.reserve("auth", "new.example", 1, claims=2 * KEPT_CLAIMS, memory=400)
    backlogs.take(1, 1000, 1600)
    assert backlogs.reserve("bulk", "new.example", 1, claims=2 * KEPT_CLAIMS - 1, memory=370)


def test_new_mail_leaves_to_the_top_lane_what_is_kept_for_it():
    """The last claims, and a sixteenth of the memory."""
    backlogs = Backlogs(1600)

    assert not backlogs.reserve("bulk", "a.example", 1, claims=KEPT_CLAIMS, memory=1600)
    assert backlogs.reserve("bulk", "a.example", 1, claims=KEPT_CLAIMS + 1, memory=1600)
    assert backlogs.reserve("auth", "b.example", 1, claims=1, memory=1600)
    assert not backlogs.reserve("bulk", "c.example", 10, claims=1000, memory=109)
    assert backlogs.reserve("bulk", "c.example", 10, claims=1000, memory=110)
    assert backlogs.reserve("auth", "d.example", 10, claims=1000, memory=10)
    assert not backlogs.reserve("auth", "d.example", 10, claims=1000, memory=9)


def test_new_mail_does_not_go_past_what_is_large_for_ever():
    """The memory that comes free is kept for it."""
    backlogs = Backlogs(1600)
    backlogs.push(many("bulk", 1, size=1000), NOW)
    assert backlogs.take(100, 1000, 900) == []
    assert backlogs.reserve("default", "new.example", 1, claims=1000, memory=900)

    for _ in range(PATIENCE):
        assert backlogs.take(100, 1000, 900) == []
    assert not backlogs.reserve("default", "new.example", 1, claims=1000, memory=900)


def test_what_is_larger_than_the_memory_goes_alone():
    """Row C19: when it has waited for long nobody goes past it; so at some time nothing is claimed, and it goes."""
    backlogs = Backlogs(1600)
    backlogs.push(many("bulk", 1, size=2000), NOW)
    for _ in range(PATIENCE + 1):
        assert backlogs.take(100, 1000, 1600) == []
    backlogs.push([*many("default", 5), *many("auth", 5)], NOW)

    assert backlogs.take(100, 1000, 1600) == []
    first = backlogs.first()
    assert first is not None
    assert first.size == 2000


def test_where_nothing_is_large_the_most_urgent_goes_first_alone():
    """`first` gives any if there is any."""
    assert Backlogs(10).first() is None
    first = filled(bulk=1, default=1).first()
    assert first is not None
    assert first.lane == "default"


@given(
    st.fixed_dictionaries({lane: st.integers(0, 60) for lane in LANES}),
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 300)), min_size=1, max_size=30),
)
def test_nothing_is_lost_or_doubled_and_no_claim_is_wasted(counts: dict[str, int], rounds: list[tuple[int, int]]):
    """Whatever is asked for: within the bounds, and something whenever there is something that may go."""
    backlogs = filled(**counts)
    left = Counter(counts)
    seen: set[int] = set()
    for batch, claims in rounds:
        taken = backlogs.take(batch, claims, MUCH)
        assert len(taken) <= min(batch, claims)
        assert sum(entry.lane != "auth" for entry in taken) <= max(0, claims - KEPT_CLAIMS)
        others = min(batch, max(0, claims - KEPT_CLAIMS), left["default"] + left["bulk"])
        assert len(taken) >= min(batch, claims, max(others, min(batch, left["auth"])))
        assert seen.isdisjoint(entry.delivery_id for entry in taken)
        seen |= {entry.delivery_id for entry in taken}
        left -= shares(taken)
    while taken := backlogs.take(1000, 1000, MUCH):
        left -= shares(taken)

    assert not left


class TestBacklogOfALane:
    """From the store to the lines."""

    def test_what_is_due_is_lined_up_at_once_and_the_rest_when_it_is_due(self):
        """Once, whatever was known of it."""
        backlog = Backlog()
        backlog.push(many("default", 2), NOW)
        backlog.push(many("default", 2, first=10, due_at=LATER), NOW)

        assert (len(backlog.lines), backlog.next_due_at) == (2, LATER)
        backlog.line_up(NOW, ())
        assert len(backlog.lines) == 2
        backlog.line_up(LATER, {10})
        assert len(backlog.lines) == 3

    def test_the_store_is_asked_at_the_begin_and_when_somebody_says_so(self):
        """And not again when it said that this is all."""
        backlog = Backlog()
        assert backlog.wants_refill()
        backlog.begin_refill()
        backlog.refill(many("default", 3), (), complete=True)
        backlog.end_refill()

        assert not backlog.wants_refill()
        backlog.ask_for_refill()
        assert backlog.wants_refill()

    def test_the_store_is_asked_again_when_what_it_named_is_used_up(self):
        """It had more."""
        backlog = Backlog()
        backlog.begin_refill()
        backlog.refill(many("default", 3), (), complete=False)
        backlog.end_refill()
        assert not backlog.is_used_up
        backlog.line_up(NOW, ())

        assert backlog.is_used_up
        assert backlog.wants_refill()

    def test_what_was_pushed_while_the_store_was_asked_is_newer(self):
        """So is what is claimed, or in line, by now."""
        backlog = Backlog()
        backlog.push(many("default", 1, first=1), NOW)
        backlog.begin_refill()
        backlog.push(many("default", 1, first=2, due_at=LATER), NOW)
        backlog.refill(many("default", 4, first=1), {3}, complete=True)
        backlog.end_refill()
        backlog.line_up(NOW, ())

        assert sorted(entry.delivery_id for entry in backlog.lines.take(10, MUCH)) == [1, 4]
        assert backlog.next_due_at == LATER

    def test_times_that_are_wrong_are_forgotten(self):
        """The store knows better."""
        backlog = Backlog()
        backlog.begin_refill()
        backlog.refill(many("default", 1, due_at=LATER), (), complete=True)
        backlog.end_refill()
        backlog.forget_times()

        assert backlog.next_due_at is None
        assert backlog.wants_refill()

    @pytest.mark.parametrize("number", [4, 12])
    def test_a_few_long_backlogs_leave_room_for_who_comes_next(self, number: int):
        """Row E2: what is due for others, new or from the store, is lined up beside them."""
        backlog = Backlog()
        backlog.begin_refill()
        backlog.refill([], (), complete=True)
        backlog.end_refill()
        for start in range(number):
            entries = many("default", 15_000, first=start * 100_000)
            backlog.push([entry._replace(destination=f"sick{start}") for entry in entries], NOW)
        backlog.push(many("default", 50, first=10**7), NOW)
        backlog.push([Due(NOW, 10**8, "retried.example", 1)], NOW - timedelta(seconds=1))
        while backlog.line_up(NOW, ()):
            pass
        taken = [entry for _ in range(20) for entry in backlog.lines.take(100, MUCH)]

        assert len(backlog.lines) < READY_CAPACITY
        assert sum(not entry.destination.startswith("sick") for entry in taken) == 51

    def test_news_for_others_do_not_wait_behind_a_backlog_that_fills_the_memory(self):
        """Row E4: however many destinations it is for, and though the store has more that is due longer."""
        backlog = Backlog()
        backlog.begin_refill()
        backlog.refill(many("default", 9000, due_at=NOW - timedelta(hours=1)), (), complete=False)
        backlog.end_refill()
        for start in range(0, READY_CAPACITY, 1000):
            backlog.push(many("default", 1000, first=10**6 + start, due_at=NOW - timedelta(hours=2)), NOW)
            backlog.line_up(NOW, ())
        backlog.push([Due(NOW, 10**8, "new.example", 1)], NOW)
        taken = [entry for _ in range(300) for entry in backlog.lines.take(1000, MUCH)]

        assert "new.example" in {entry.destination for entry in taken}

    @pytest.mark.parametrize("same", [True, False])
    def test_memory_is_bounded(self, same: bool):
        """Whatever is pushed: what finds no room in the lines or the heap is left to the store, to be asked for."""
        backlog = Backlog()
        for start in range(0, 5 * READY_CAPACITY, 1000):
            entries = many("bulk", 1000, first=start)
            backlog.push([entry._replace(destination="one") for entry in entries] if same else entries, NOW)
            backlog.line_up(NOW, ())

        assert len(backlog.lines) <= 2 * READY_CAPACITY
        assert len(backlog._heap) <= 2 * READY_CAPACITY
        while backlog.lines.take(1000, MUCH):
            pass
        assert same or backlog.next_due_at is not None or backlog.wants_refill()


def test_a_long_backlog_of_one_destination_is_read_about_once():
    """Each time for room of thousands: to read thousands for the room of a few would take longer than to deliver."""
    store = [Due(NOW + n * timedelta(microseconds=1), n, "long.example", 1) for n in range(30_000)]
    now, backlog = NOW + timedelta(seconds=1), Backlog()
    left, told, asked = {entry.delivery_id: entry for entry in store}, 0, 0
    while left:
        if backlog.wants_refill():
            excluded = backlog.begin_refill()
            limit = 4_000 + len(backlog.lines)
            entries = [entry for entry in left.values() if entry.destination not in excluded][:limit]
            backlog.refill(entries, (), complete=len(entries) < limit)
            backlog.end_refill()
            told, asked = told + len(entries), asked + 1
            while backlog.line_up(now, ()):
                pass
        for entry in backlog.lines.take(100, MUCH):
            del left[entry.delivery_id]
            backlog.lines.finished(entry.destination, well=True)

    assert told < 2 * len(store)
    assert asked < 25


def test_what_is_kept_for_login_codes_is_not_given_to_small_mail():
    """Though a large one waits for its room, and small ones may go on beside it."""
    backlogs = Backlogs(1600)
    backlogs.push(many("default", 1, size=1000), NOW)
    for _ in range(PATIENCE + 1):
        assert backlogs.take(100, 1000, 900) == []
    backlogs.push([*many("default", 5, first=10), *many("auth", 1)], NOW)

    assert shares(backlogs.take(100, 1000, 100)) == {"auth": 1}


def test_what_finds_no_room_beside_small_mail_goes_alone():
    """It would wait for ever for the memory that they always have."""
    backlogs = Backlogs(1600)
    backlogs.push(many("bulk", 1, size=1450), NOW)
    for _ in range(PATIENCE + 1):
        assert backlogs.take(100, 1000, 1540) == []
    backlogs.push(many("default", 5), NOW)

    assert backlogs.take(100, 1000, 1540) == []
    assert backlogs.first().size == 1450
