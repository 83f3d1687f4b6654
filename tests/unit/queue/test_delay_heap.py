"""The nearest deliveries, of a queue that may be far larger than memory. (Its life is in tests/properties.)"""

from datetime import UTC, datetime, timedelta

import pytest

from mailstrom_async._envelope import Due
from mailstrom_async._queue.delay_heap import DelayHeap

START = datetime(2030, 1, 1, tzinfo=UTC)


def due(delivery_id: int, seconds: int) -> Due:
    return Due(START + timedelta(seconds=seconds), delivery_id, "example.net", 1)


def popped(heap: DelayHeap, seconds: int, limit: int = 100) -> list[int]:
    return [entry.delivery_id for entry in heap.pop_due(START + timedelta(seconds=seconds), limit)]


def test_deliveries_come_out_in_the_order_of_their_due_times():
    """Only what is due, and at most as many as are wanted."""
    heap = DelayHeap(10)
    heap.push([due(1, 3), due(2, 1), due(3, 2), due(4, 9)])

    assert popped(heap, 3, limit=2) == [2, 3]
    assert popped(heap, 3) == [1]
    assert heap.next_due_at == START + timedelta(seconds=9)
    assert popped(heap, 8) == []


def test_deliveries_of_the_same_instant_all_survive_in_the_order_of_their_arrival():
    """Two entries that differ in nothing but their number are two."""
    heap = DelayHeap(10)
    heap.push([due(3, 1), due(1, 1), due(2, 1)])

    assert len(heap) == 3
    assert popped(heap, 1) == [3, 1, 2]


def test_a_new_due_time_replaces_the_old_one():
    """Sooner or later, a delivery is in once."""
    heap = DelayHeap(10)
    heap.push([due(1, 5), due(2, 3)])
    heap.push([due(1, 1), due(2, 7)])

    assert popped(heap, 6) == [1]
    assert popped(heap, 7) == [2]
    assert len(heap) == 0


def test_a_discarded_delivery_does_not_come_out():
    """Nor does one that was never in make trouble."""
    heap = DelayHeap(10)
    heap.push([due(1, 1), due(2, 1)])
    heap.discard(1)
    heap.discard(7)

    assert 1 not in heap
    assert popped(heap, 1) == [2]
    assert heap.next_due_at is None


def test_what_does_not_fit_is_left_to_the_store():
    """The heap keeps the nearest, knows how far it may be trusted, and asks again when it has come so far."""
    heap = DelayHeap(3)
    heap.push([due(number, number) for number in range(7)])

    assert len(heap) == 3
    assert heap.horizon == START + timedelta(seconds=3)
    heap.push([due(7, 3), due(8, 100)])
    assert (7 in heap, 8 in heap, heap.wants_refill) == (False, False, False)
    assert popped(heap, 100) == [0, 1, 2]
    assert heap.wants_refill


def test_a_delivery_beyond_the_horizon_does_not_hide_what_only_the_store_knows():
    """Pushed during a refill, it came in while everything was taken in."""
    heap = DelayHeap(10)
    heap.begin_refill()
    heap.push([due(9, 50)])
    heap.refill([due(1, 1), due(2, 2)], complete=False)
    popped(heap, 2)

    assert heap.wants_refill
    assert popped(heap, 100) == []


def test_a_full_heap_does_not_move_its_horizon_over_what_only_the_store_knows():
    """It has seen the store up to the third second: what came by itself beyond that is no proof of more."""
    heap = DelayHeap(3)
    heap.begin_refill()
    heap.push([due(number, 40 + number) for number in range(10, 13)])
    heap.refill([due(1, 1), due(2, 2), due(3, 3)], complete=False)

    assert heap.horizon == START + timedelta(seconds=3)
    heap.push([due(4, 20)])
    assert popped(heap, 100) == [1, 2, 3]
    assert heap.wants_refill


def test_an_answer_of_which_nothing_could_be_used_is_no_proof_that_the_store_is_empty():
    """All that it named was known to be stale: it has to be asked again."""
    heap = DelayHeap(3)
    heap.begin_refill()
    heap.refill([], complete=False)

    assert heap.wants_refill
    heap.begin_refill()
    heap.refill([], complete=True)
    assert not heap.wants_refill


def test_more_deliveries_of_one_instant_than_fit_are_no_endless_refill():
    """Each refill brings some of them out."""
    store = {number: due(number, 1) for number in range(20)}
    heap = DelayHeap(3)
    heap.push(store.values())
    out: list[int] = []
    for _ in range(50):
        if heap.wants_refill:
            heap.begin_refill()
            heap.refill(list(store.values())[:5], complete=len(store) < 5)
        for delivery_id in popped(heap, 1, limit=1):
            out.append(delivery_id)
            del store[delivery_id]

    assert sorted(out) == list(range(20))


def test_changing_due_times_costs_no_memory():
    """What is stale is swept out, however often a delivery is postponed."""
    heap = DelayHeap(4)
    for second in range(1000):
        heap.push([due(1, second), due(2, second)])

    assert len(heap) == 2
    assert len(heap._heap) <= 18


def test_a_heap_without_room_is_refused():
    """It could never hold what is next."""
    with pytest.raises(ValueError, match="room"):
        DelayHeap(0)
