"""The delay heap, as the scheduler uses it, never loses or delays anything that the store holds."""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailstrom_async._envelope import Due
from mailstrom_async._queue.delay_heap import DelayHeap

START = datetime(2030, 1, 1, tzinfo=UTC)
times = st.integers(0, 12)  # few, so that many deliveries are due at the same instant


def entry(delivery_id: int, due_at: int) -> Due:
    return Due(START + timedelta(seconds=due_at), delivery_id, "example.net", 1)


class Refill:
    """A refill that is under way: what the store answered, and what was pushed since it was asked."""

    def __init__(self, entries: list[Due], *, complete: bool) -> None:
        self.entries = entries
        self.complete = complete
        self.pushed: set[int] = set()


class Queue(RuleBasedStateMachine):
    """A store that is a dict, and the heap in front of it."""

    @initialize(capacity=st.integers(1, 5), read=st.integers(1, 8), stored=st.lists(times, max_size=30))
    def begin(self, capacity: int, read: int, stored: list[int]) -> None:
        self.capacity = capacity
        self.read = read
        self.heap = DelayHeap(capacity)
        self.store = dict(enumerate(stored))
        self.ids = len(stored)
        self.refill: Refill | None = None
        self.refill_wanted = True

    def push(self, *delivery_ids: int) -> None:
        if self.refill is not None:
            self.refill.pushed.update(delivery_ids)
        self.heap.push([entry(delivery_id, self.store[delivery_id]) for delivery_id in delivery_ids])

    @rule(due=st.lists(times, min_size=1, max_size=15))
    def accept(self, due: list[int]) -> None:
        new = range(self.ids, self.ids + len(due))
        self.ids += len(due)
        self.store.update(zip(new, due, strict=True))
        self.push(*new)

    @precondition(lambda self: self.store)
    @rule(data=st.data(), due=times)
    def change(self, data: st.DataObject, due: int) -> None:
        """Hastened, released, or deferred."""
        delivery_id = data.draw(st.sampled_from(sorted(self.store)))
        self.store[delivery_id] = due
        self.push(delivery_id)

    @precondition(lambda self: self.store)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        delivery_id = data.draw(st.sampled_from(sorted(self.store)))
        del self.store[delivery_id]
        if self.refill is not None:
            self.refill.pushed.add(delivery_id)
        self.heap.discard(delivery_id)

    @precondition(lambda self: self.refill is None)
    @rule()
    def ask(self) -> None:
        """The store is asked: when the heap wants it, or because something was left out elsewhere."""
        self.heap.begin_refill()
        nearest = sorted((due, delivery_id) for delivery_id, due in self.store.items())[: self.read]
        self.refill = Refill([entry(key, due) for due, key in nearest], complete=len(nearest) < self.read)

    @precondition(lambda self: self.refill is not None)
    @rule(failed=st.booleans())
    def answer(self, failed: bool) -> None:
        assert self.refill is not None
        refill, self.refill = self.refill, None
        if failed:
            self.refill_wanted = True
            return
        self.refill_wanted = False
        fresh = [one for one in refill.entries if one.delivery_id not in refill.pushed]
        self.heap.refill(fresh, complete=refill.complete)

    @precondition(lambda self: self.refill is None)
    @rule(now=times, limit=st.integers(1, 10))
    def claim(self, now: int, limit: int) -> None:
        """What is due is popped, the longest due first, and nothing is overtaken by what only the store knows."""
        for _ in range(limit):
            self.fill_up()
            popped = self.heap.pop_due(START + timedelta(seconds=now), 1)
            nearest = min(self.store.values(), default=None)
            if nearest is None or nearest > now:
                assert popped == []
                return
            (one,) = popped
            assert one == entry(one.delivery_id, nearest)
            assert self.store.pop(one.delivery_id) == nearest

    def fill_up(self) -> None:
        for _ in range(100):
            if not self.heap.wants_refill and not self.refill_wanted:
                return
            self.ask()
            self.answer(failed=False)
        raise AssertionError("it wants to be refilled for ever")

    @invariant()
    def nothing_is_lost(self) -> None:
        """What the heap does not hold lies at or beyond its horizon."""
        if self.refill is not None or self.refill_wanted:
            return
        for delivery_id, due in self.store.items():
            if delivery_id not in self.heap:
                assert self.heap.horizon is not None
                assert self.heap.horizon <= START + timedelta(seconds=due)

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.heap) <= 2 * self.capacity + 15
        assert len(self.heap._heap) <= 4 * self.capacity + 15


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
