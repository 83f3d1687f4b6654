"""Lanes share by weight, starve nobody, waste nothing, and leave a session to the top one."""

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._envelope import LANES, Lane
from mailstrom_async._queue.lanes import Lanes, Room, Turns

PLENTY = Room(allowed=100, free=100, lanes_used=True)

lanes = st.sampled_from(LANES)


def filled(**counts: int) -> Lanes[str]:
    """What waits: `bulk=2` are bulk0 and bulk1."""
    waiting = Lanes[str]()
    for lane in LANES:
        for number in range(counts.get(lane, 0)):
            waiting.add(lane, f"{lane}{number}", f"{lane}{number}")
    return waiting


def taken(waiting: Lanes[str], count: int, room: Room = PLENTY) -> list[str | None]:
    return [waiting.take(room) for _ in range(count)]


@pytest.mark.parametrize(
    ("waiting", "turns", "shares"),
    [
        (("auth", "default", "bulk"), 21, {"auth": 16, "default": 4, "bulk": 1}),
        (("auth", "default"), 20, {"auth": 16, "default": 4}),
        (("auth", "bulk"), 17, {"auth": 16, "bulk": 1}),
        (("default", "bulk"), 5, {"default": 4, "bulk": 1}),
        (("bulk",), 3, {"bulk": 3}),
    ],
)
def test_turns_are_shared_by_weight(waiting: tuple[Lane, ...], turns: int, shares: dict[str, int]):
    """Of whatever lanes have something, over any round; exactly, and without long runs of one."""
    share = Turns()
    for _ in range(10):
        assert Counter(share.take(waiting) for _ in range(turns)) == shares


def test_who_comes_after_a_while_is_next_if_it_is_more_urgent():
    """Whatever the others have had in the meantime."""
    share = Turns()
    for _ in range(1000):
        share.take(("default", "bulk"))

    assert share.take(LANES) == "auth"


@given(st.lists(st.lists(lanes, min_size=1, unique=True), max_size=300))
def test_no_lane_waits_longer_than_its_weight_says(history: list[list[Lane]]):
    """Whoever comes and goes: between two turns of a lane that waits all the time, each other has few, and who had
    nothing for long has saved nothing up."""
    share = Turns()
    since: dict[Lane, Counter[Lane]] = {}
    for waiting in history:
        ordered = [lane for lane in LANES if lane in waiting]
        lane = share.take(ordered)
        assert lane in waiting
        since = {other: since.get(other, Counter()) for other in waiting}
        for other in ordered:
            since[other][lane] += 1
        since.pop(lane)
        for other, turns in since.items():
            weight = {"auth": 16, "default": 4, "bulk": 1}
            for winner, count in turns.items():
                assert count <= 2 * (weight[winner] // weight[other] + 1), (other, turns)


@given(st.lists(lanes | st.none(), max_size=100), st.booleans())
def test_what_waits_is_taken_once_and_in_the_order_of_its_lane(history: list[Lane | None], put_back: bool):
    """A lane comes, or (None) somebody takes: nothing is lost or doubled, and while something waits something goes."""
    waiting = Lanes[int]()
    model: dict[Lane, deque[int]] = {lane: deque() for lane in LANES}
    for key, lane in enumerate([*history, *[None] * len(history)]):
        if lane is not None:
            waiting.add(lane, key, key)
            model[lane].append(key)
            continue
        one = waiting.take(PLENTY)
        if one is None:
            assert not any(model.values())
            continue
        mine = next(lane for lane in LANES if model[lane] and model[lane][0] == one)
        if put_back and key < len(history):
            waiting.put_back(mine, one, one)
        else:
            model[mine].popleft()
        assert len(waiting) == waiting.fitting(PLENTY) == sum(map(len, model.values()))

    assert len(waiting) == 0


def test_within_a_lane_the_first_to_come_is_the_first_to_go():
    """And who was taken and not served is the first again."""
    waiting = filled(default=3)
    first = waiting.take(PLENTY)
    waiting.put_back("default", "default0", "default0")

    assert first == "default0"
    assert taken(waiting, 4) == ["default0", "default1", "default2", None]


def test_what_is_added_or_put_back_twice_waits_once():
    """Added again it changes nothing; put back, it takes the place of what came meanwhile under its key."""
    waiting = filled(default=2)
    waiting.add("default", "default1", "another")
    waiting.put_back("default", "default1", "put back")
    waiting.discard("unknown")

    assert len(waiting) == 2
    assert taken(waiting, 3) == ["put back", "default0", None]
    assert len(waiting) == 0


@pytest.mark.parametrize(
    ("room", "counts", "fitting", "first"),
    [
        (Room(allowed=4, free=1, lanes_used=False), {"bulk": 9}, 0, None),
        (Room(allowed=4, free=1, lanes_used=False), {"default": 9}, 1, "default0"),
        (Room(allowed=4, free=1, lanes_used=True), {"default": 9}, 0, None),
        (Room(allowed=4, free=1, lanes_used=True), {"default": 9, "auth": 2}, 2, "auth0"),
        (Room(allowed=4, free=4, lanes_used=True), {"default": 2, "bulk": 9}, 3, "default0"),
        (Room(allowed=4, free=4, lanes_used=False), {"default": 4, "bulk": 9}, 4, "default0"),
        (Room(allowed=4, free=0, lanes_used=True), {"auth": 1, "bulk": 1}, 1, "auth0"),
        (Room(allowed=1, free=1, lanes_used=True), {"bulk": 9}, 1, "bulk0"),
        (Room(allowed=1, free=0, lanes_used=True), {"bulk": 9, "default": 1}, 0, None),
        (Room(allowed=2, free=-1, lanes_used=True), {"bulk": 9, "default": 1}, 0, None),
    ],
)
def test_a_session_is_kept_for_the_top_lane(room: Room, counts: dict[str, int], fitting: int, first: str | None):
    """Of more than one: "bulk" never has the last, "default" not any more when there is mail of "auth"."""
    waiting = filled(**counts)

    assert waiting.fitting(room) == fitting
    assert waiting.take(room) == first


def test_the_most_urgent_can_be_taken_out_of_turn():
    """It has had its turn then all the same."""
    waiting = filled(auth=2, bulk=2)
    first = [waiting.take(PLENTY), waiting.take(PLENTY, urgent_first=True)]

    assert first == ["auth0", "auth1"]
    assert taken(waiting, 2) == ["bulk0", "bulk1"]


def test_what_waits_can_be_taken_out_and_seen():
    """The most urgent first."""
    waiting = filled(bulk=2, default=1, auth=1)
    waiting.discard("bulk0")

    assert list(waiting) == ["auth0", "default0", "bulk1"]
    assert waiting.most_urgent == "auth"
    waiting.discard("auth0")
    assert waiting.most_urgent == "default"
    waiting.clear()
    assert (len(waiting), waiting.most_urgent) == (0, "bulk")
