"""Who is claimed next: lines that are served in turn, within windows that grow and shrink."""

from collections import Counter, deque
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._envelope import Due
from mailstrom_async._queue.fairness import ReadyLines, Share

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MUCH = 10**9


def due(delivery_id: int, destination: str, size: int = 1) -> Due:
    return Due(NOW, delivery_id, destination, size)


def many(destination: str, number: int, start: int = 0, size: int = 1) -> list[Due]:
    return [due(delivery_id, destination, size) for delivery_id in range(start, start + number)]


def ids(entries: list[Due]) -> list[int]:
    return [entry.delivery_id for entry in entries]


def test_lines_are_served_in_turn():
    """One of each, in the order in which they came, and the next time it goes on where it stopped."""
    lines = ReadyLines(Share())
    lines.add([*many("a", 3), *many("b", 2, 10), *many("c", 1, 20)])

    assert ids(lines.take(4, MUCH)) == [0, 10, 20, 1]
    assert ids(lines.take(4, MUCH)) == [11, 2]
    assert len(lines) == 0


def test_a_delivery_waits_once():
    """However often it is told that it is due; taken out, it may come again."""
    lines = ReadyLines(Share())
    lines.add([due(1, "a"), due(1, "a")])
    lines.add([due(1, "a")])

    assert ids(lines.take(10, MUCH)) == [1]
    lines.add([due(1, "a")])
    assert ids(lines.take(10, MUCH)) == [1]


def test_a_destination_has_no_more_claims_than_its_window():
    """What it holds is given free one by one."""
    lines = ReadyLines(Share(least=2))
    lines.add(many("a", 5))

    assert ids(lines.take(10, MUCH)) == [0, 1]
    assert lines.take(10, MUCH) == []
    lines.finished("a", well=None)
    assert ids(lines.take(10, MUCH)) == [2]


def test_the_window_grows_with_success_and_halves_with_trouble():
    """Between the least and the most."""
    lines = ReadyLines(Share(least=2, most=5))
    lines.add(many("a", 100))
    taken = lines.take(2, MUCH)
    windows: list[int] = []
    for well in (True, True, True, True, None, False, False):
        lines.finished("a", well=well)
        windows.append(lines.window("a"))
        taken += lines.take(1, MUCH)

    assert windows == [3, 4, 5, 5, 5, 2, 2]


@pytest.mark.rule("E2", "a dead domain with 90% of the queue holds its window, others are served at once")
def test_a_dead_destination_costs_the_healthy_ones_nothing():
    """Row E2: nine tenths of the queue are its, and its few claims never come back; all others are served at once."""
    lines = ReadyLines(Share(least=8, line=64))
    lines.add(many("dead", 900))
    lines.add(entry for number in range(100) for entry in many(f"{number}.example", 1, 1000 + number))
    taken = lines.take(1000, MUCH)
    counts = Counter(entry.destination for entry in taken)

    assert counts["dead"] == 8
    assert sum(counts.values()) == 108
    assert lines.take(1000, MUCH) == []


def test_what_finds_its_line_full_is_left_to_the_store_and_asked_for_when_there_is_room():
    """Nothing is forgotten, and the store is not asked again and again."""
    lines = ReadyLines(Share(least=8, line=4))
    lines.add(many("a", 10))

    assert len(lines) == 4
    assert not lines.take_left_out()
    lines.take(3, MUCH)
    assert lines.take_left_out()
    assert not lines.take_left_out()


def test_who_is_not_asked_for_because_the_line_is_long_is_asked_for_later():
    """The store told nothing of them, so nobody else would remember."""
    lines = ReadyLines(Share(least=8, line=4))
    lines.add([*many("a", 2), *many("b", 1, 10)])

    assert lines.leave_out_long() == {"a"}
    assert not lines.take_left_out()
    while lines.take(1, MUCH):
        pass
    assert lines.take_left_out()


def test_no_more_bytes_are_taken_than_memory_is_set_aside_for():
    """A large delivery waits for its room; smaller ones of other destinations go past it."""
    lines = ReadyLines(Share())
    lines.add([due(1, "a", 70), due(2, "b", 60), due(3, "c", 20), due(4, "a", 1)])

    assert ids(lines.take(10, 100)) == [1, 3, 4]
    assert ids(lines.take(10, 100)) == [2]


def test_small_deliveries_do_not_go_past_a_large_one_for_ever():
    """Under steady load memory is never free by itself: after a while it is kept free for whoever waits for it."""
    lines = ReadyLines(Share())
    lines.add(many("small", 500, 1000, 10))
    in_memory: deque[Due] = deque(lines.take(8, 100))
    lines.add([due(0, "large", 60)])
    for _ in range(300):
        in_memory += lines.take(10, 100 - sum(entry.size for entry in in_memory))
        if 0 in ids(list(in_memory)):
            break
        lines.finished(in_memory.popleft().destination, well=True)

    assert 0 in ids(list(in_memory))


def test_what_is_too_large_for_all_memory_goes_alone():
    """Row C19: it must go at some time."""
    lines = ReadyLines(Share())
    lines.add([due(1, "a", 1000)])

    assert lines.take(10, 100) == []
    first = lines.first()
    assert first is not None
    assert first.delivery_id == 1
    assert lines.first() is None


def test_what_is_too_large_goes_in_turn_as_well():
    """A destination of many such deliveries does not keep the others waiting."""
    lines = ReadyLines(Share())
    lines.add([*many("a", 5, 0, 1000), *many("b", 5, 10, 1000)])
    order: list[str] = []
    for _ in range(6):
        entry = lines.first()
        assert entry is not None
        order.append(entry.destination)
        lines.finished(entry.destination, well=True)

    assert order == ["a", "b"] * 3


@pytest.mark.parametrize("turns", range(4))
def test_what_waited_long_for_more_than_all_memory_is_the_first_to_go_alone(turns):
    """Else all others would go alone before it, one by one, while everybody waits. Whoever's turn it is."""
    lines = ReadyLines(Share())
    lines.add([*many("a", 200, 1000, 10), *many("b", 200, 2000, 10), *many("c", 200, 3000, 10)])
    for turn in range(300):
        if turn == turns:
            lines.add([due(0, "large", 1000)])
        for entry in lines.take(1, 100):
            lines.finished(entry.destination, well=True)

    assert lines.take(1, 100) == []
    first = lines.first()
    assert first is not None
    assert first.delivery_id == 0


@pytest.mark.rule("E5", "1000 domains: nothing is kept of them")
def test_nothing_is_kept_of_destinations_that_have_nothing():
    """Row E5: a million domains, one after another, leave no trace."""
    lines = ReadyLines(Share(least=2))
    for number in range(1000):
        destination = f"{number}.example"
        lines.add(many(destination, 3, number * 10))
        for entry in lines.take(10, MUCH):
            lines.finished(entry.destination, well=number % 2 == 0)
        for entry in lines.take(10, MUCH):
            lines.finished(entry.destination, well=True)
    lines.take_left_out()

    kept = (lines._lines, lines._waiting, lines._claimed, lines._windows, lines._left_out)
    assert not any(kept)


@pytest.mark.parametrize("number", [1, 4, 10, 50])
def test_however_many_are_slow_who_comes_next_finds_claims(number):
    """They take their mail, so their windows are wide open, but slowly: all claims would be theirs in the end,
    and whoever is fast would have to wait for one of them to end, for every mail."""
    claims = 900
    lines = ReadyLines(Share(all=20_000))
    slow = [f"slow{n}" for n in range(number)]
    held: deque[Due] = deque()
    delivery_ids = iter(range(10**6))
    for _ in range(3000):
        lines.add(due(next(delivery_ids), destination) for destination in slow * 3)
        held += lines.take(100, MUCH, claims - len(held))
        if held:
            lines.finished(held.popleft().destination, well=True)
    lines.add(many("fast", 500, 10**6))
    free = claims - len(held)
    taken = [entry for _ in range(100) for entry in lines.take(100, MUCH, free) if entry.destination == "fast"]

    assert len(held) >= min(claims * number // (number + 2), 200)
    assert len(taken) == min(8, free)
    assert free >= claims // (number + 2)


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 50)), max_size=60),
    st.lists(st.tuples(st.integers(1, 5), st.integers(10, 100), st.booleans()), min_size=1, max_size=30),
)
def test_whatever_comes_is_taken_once_and_in_the_order_of_its_line(
    arrivals: list[tuple[str, int]], rounds: list[tuple[int, int, bool]]
):
    """No delivery is lost or doubled, no bound is broken, and in the end all have had their turn."""
    lines = ReadyLines(Share(least=2, most=4, line=100))
    waiting: dict[str, deque[int]] = {}
    for delivery_id, (destination, size) in enumerate(arrivals):
        waiting.setdefault(destination, deque()).append(delivery_id)
        lines.add([due(delivery_id, destination, size)])
    claimed: list[Due] = []
    for count, size, well in [*rounds, *[(100, 100, True)] * 60]:
        taken = lines.take(count, size)
        assert len(taken) <= count
        assert sum(entry.size for entry in taken) <= size
        claimed += taken
        for entry in taken:
            assert waiting[entry.destination].popleft() == entry.delivery_id
        assert max(Counter(entry.destination for entry in claimed).values(), default=0) <= 4
        if claimed:
            lines.finished(claimed.pop(0).destination, well=well)

    assert len(lines) == 0
    assert not any(waiting.values())


def test_lines_are_longer_as_long_as_there_are_few():
    """What a line has no room for was read in vain; with others beside it, it has no more than its share."""
    lines = ReadyLines(Share(line=2, all=20))
    lines.add(many("a", 12))
    assert len(lines) == 4

    lines.add([*many("b", 12, 20), *many("c", 12, 40), *many("d", 12, 60)])

    assert len(lines) == 4 + 3 + 2 + 2


def test_what_is_new_does_not_overtake_what_the_store_has():
    """A destination of which some are left to the store takes nobody in from elsewhere, until they were read."""
    lines = ReadyLines(Share(line=2))
    lines.add(many("a", 3))
    lines.take(2, MUCH)

    lines.follow([due(9, "a"), due(10, "b")])

    assert ids(lines.take(9, MUCH)) == [10]
    assert lines.take_left_out()


def test_what_is_held_is_not_chosen_until_it_is_let_go():
    """Its site has no room; others go on, and its window begins anew."""
    lines = ReadyLines(Share(least=2, most=8))
    lines.add([due(1, "full"), due(2, "full"), due(3, "well")])
    lines.hold("full")
    assert [entry.destination for entry in lines.take(10, 10**9)] == ["well"]
    lines.let_go("full")

    assert [entry.delivery_id for entry in lines.take(10, 10**9)] == [1, 2]
