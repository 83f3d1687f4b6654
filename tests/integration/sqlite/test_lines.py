"""Destinations whose backlog is in the way of others get a line of their own, and nobody notices but the clock."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from mailstrom_async._envelope import LANES
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import file, upcoming
from mailstrom_async.storage.base import Due
from mailstrom_async.testing._contract.ground import (
    HOUR,
    INSTANT,
    MINUTE,
    NOW,
    deferred,
    delivered,
    email,
    ids_of,
    record_of,
)

from .conftest import Query

SLOW, OTHERS = "slow.example", [f"{number}.example" for number in range(5)]


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few entries are many."""
    monkeypatch.setattr(upcoming, "PASSED_AT_MOST", 20)
    monkeypatch.setattr(upcoming, "MOVED_AT_ONCE", 10)


@pytest.fixture
async def backlog(store: SQLiteStorage) -> list[Due]:
    """A hundred for one destination, due before a few for others, in two lanes."""
    dues: list[Due] = []
    for number in range(100):
        dues += await store.enqueue([email(f"slow {number}", [f"a@{SLOW}"], due_at=NOW + number * INSTANT)])
    for number, destination in enumerate(OTHERS):
        dues += await store.enqueue([email(destination, [f"a@{destination}"], due_at=NOW + (200 + number) * INSTANT)])
    return dues


async def clear(store: SQLiteStorage, *excluding: str) -> list[Due]:
    """What is upcoming elsewhere; when this returns, what is in the way is no more."""
    found = await store.upcoming(3, excluding=excluding)
    assert store._clearing is not None
    await store._clearing
    return found


def lined_up(query: Query) -> dict[object, object]:
    return dict(query("SELECT destination, count(*) FROM deliveries WHERE lined_up GROUP BY destination"))  # type: ignore[arg-type]


def destinations_of(dues: Sequence[Due]) -> list[str]:
    return [due.destination for due in dues]


@pytest.mark.rule("E2", "a backlog that is passed over is moved out of the way")
async def test_what_is_in_the_way_gets_a_line_and_the_answers_are_the_same(
    store: SQLiteStorage, backlog: list[Due], query: Query
):
    """Row E2: with the destination left out or not."""
    before = lined_up(query)
    first = await clear(store, SLOW)
    after = lined_up(query)

    assert before == {}
    assert after[SLOW] in range(80, 101)  # as long as most of the nearest were in the way
    assert destinations_of(first) == OTHERS[:3]
    assert await store.upcoming(3, excluding=[SLOW]) == first
    assert await store.upcoming(1000) == backlog
    assert await store.upcoming(30) == backlog[:30]
    assert destinations_of(await store.upcoming(3, excluding=[SLOW, OTHERS[0]])) == OTHERS[1:4]
    assert destinations_of(await store.upcoming(2, excluding=OTHERS)) == [SLOW] * 2
    assert destinations_of(await store.upcoming(2, excluding=[SLOW], lane="default")) == OTHERS[:2]
    assert await store.upcoming(2, lane="bulk") == []


async def test_new_mail_for_a_destination_with_a_line_waits_among_all_others(
    store: SQLiteStorage, backlog: list[Due], query: Query
):
    """It is found in the order of its time, wherever it is."""
    await clear(store, SLOW)
    (early,) = await store.enqueue([email("early", [f"a@{SLOW}"], due_at=NOW - MINUTE)])
    (late,) = await store.enqueue([email("late", [f"a@{SLOW}"], due_at=NOW + MINUTE)])

    assert await store.upcoming(1000) == [early, *backlog, late]


async def test_what_has_a_line_is_delivered_and_deferred_like_all_others(
    store: SQLiteStorage, backlog: list[Due], query: Query
):
    """Claimed, released, recorded: it is in its line whenever it waits."""
    await clear(store, SLOW)
    held = await store.claim(ids_of(backlog[:3]), owner="one", now=NOW + HOUR, lease_until=NOW + 2 * HOUR)
    (released,) = await store.release(held[:1], NOW + 2 * HOUR)
    again, done = await store.record([record_of(held[1], deferred(NOW + 3 * HOUR), NOW + 3 * HOUR)]) + (
        await store.record([record_of(held[2], delivered())])
    )

    assert again.accepted
    assert done.completed
    assert again.due is not None
    assert await store.upcoming(1000) == [*backlog[3:], released, again.due]
    assert lined_up(query)[SLOW] in range(79, 100)


async def test_what_has_a_line_is_brought_forward_when_the_clock_is_set_back(store: SQLiteStorage, backlog: list[Due]):
    """Row C16: as all others are."""
    await clear(store, SLOW)
    held = await store.claim(ids_of(backlog[:1]), owner="one", now=NOW + HOUR, lease_until=NOW + 2 * HOUR)
    await store.record([record_of(held[0], deferred(NOW + 30 * HOUR), NOW + 30 * HOUR)])
    changed = await store.bring_forward(NOW, 4 * HOUR)

    assert changed == 1
    assert (await store.upcoming(1000))[-1].due_at == NOW + 2 * HOUR


async def test_few_in_the_way_are_left_where_they_are(store: SQLiteStorage, query: Query):
    """It costs less to pass over them than to move them."""
    for number in range(10):
        await store.enqueue([email(f"{number}", [f"a@{SLOW}"], due_at=NOW)])
        await store.enqueue([email(f"other {number}", ["a@0.example"], due_at=NOW)])
    await clear(store, SLOW)

    assert lined_up(query) == {}


async def test_there_are_never_too_many_lines(
    store: SQLiteStorage, backlog: list[Due], query: Query, monkeypatch: pytest.MonkeyPatch
):
    """Each costs a bit at every look; beyond the limit all else is passed over, and the answers are the same."""
    monkeypatch.setattr(upcoming, "LINES_AT_MOST", 1)
    await clear(store, SLOW)
    for number in range(100):
        await store.enqueue([email(f"slower {number}", ["a@slower.example"], due_at=NOW - MINUTE)])
    found = await clear(store, SLOW, "slower.example")

    assert list(lined_up(query)) == [SLOW]
    assert destinations_of(found) == OTHERS[:3]


@pytest.fixture
async def some_of_each(store: SQLiteStorage) -> list[Due]:
    """Deliveries for several destinations in all lanes, many of them due at the same instant, in order."""
    dues: list[Due] = []
    for number in range(120):
        to, lane, time = f"a@{OTHERS[number % 5]}", LANES[number % 3], NOW + number % 4 * MINUTE
        dues += await store.enqueue([email(f"{number}", [to], due_at=time, lane=lane)])
    return sorted(dues)


@pytest.mark.parametrize("moved", ["1", "id % 2", "id % 5 < 3", "lane = 2"])
async def test_many_lines_are_merged_in_the_order_of_their_times(
    store: SQLiteStorage, some_of_each: list[Due], query: Query, moved: str
):
    """Row E2: whatever is in a line, the answers are the same, also for what is due at the same instant."""
    query(f"UPDATE deliveries SET lined_up = {moved}")
    left = [due for due in some_of_each if due.destination not in OTHERS[1:3]]

    assert await store.upcoming(1000) == some_of_each
    assert await store.upcoming(50) == some_of_each[:50]
    assert await store.upcoming(0) == []
    assert await store.upcoming(50, excluding=OTHERS[1:3]) == left[:50]
    assert await store.upcoming(10, excluding=OTHERS) == []
    for lane in LANES:
        of_lane = [due for due in left if due.lane == lane]
        assert await store.upcoming(7, excluding=OTHERS[1:3], lane=lane) == of_lane[:7]


async def test_a_look_takes_the_same_few_statements_however_many_lines_there_are(
    store: SQLiteStorage, some_of_each: list[Due], query: Query, path: Path
):
    """Each hands the interpreter's lock over to the event loop's thread and back."""
    taken: list[str] = []
    with closing(file.open_for_reading(path)) as connection:
        connection.set_trace_callback(taken.append)
        upcoming.upcoming(connection, 10)
        without = len(taken)
        query("UPDATE deliveries SET lined_up = 1")
        upcoming.upcoming(connection, 10)

    assert len(taken) == 2 * without


async def test_who_asks_gets_an_answer_even_if_nothing_can_be_moved(
    path: Path, monkeypatch: pytest.MonkeyPatch, query: Query
):
    """Somebody holds a lock on the file: what is upcoming can be read all the same."""
    monkeypatch.setattr(file, "BUSY_SECONDS", 0.05)
    store = SQLiteStorage(path)
    await store.open(NOW)
    await store.enqueue([email(f"{number}", [f"a@{SLOW}"]) for number in range(100)])
    (other,) = await store.enqueue([email("other", ["a@0.example"])])
    with closing(file._connect(path, "rw")) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        found = await clear(store, SLOW)
        stranger.execute("ROLLBACK")

    assert found == [other]
    assert lined_up(query) == {}
    await store.aclose()


async def test_a_store_is_closed_while_it_clears_the_way(store: SQLiteStorage, backlog: list[Due]):
    """It does not wait for that, and nothing is left behind."""
    await store.upcoming(3, excluding=[SLOW])
    await store.aclose()

    assert store._clearing is not None
    assert store._clearing.done()
