"""Telling whoever listens, without waiting for anybody."""

import asyncio

import pytest

from mailstrom_async import EventsLost, MessageCompleted, WorkerStatus, WorkerStatusChanged
from mailstrom_async._engine import broadcast
from mailstrom_async._engine.broadcast import Broadcast


def done(number: int) -> MessageCompleted:
    return MessageCompleted(message_id=f"{number}@example.org")


async def test_a_slow_reader_loses_the_oldest_and_is_told(monkeypatch):
    """Beyond the backlog the oldest events give way; how many were lost stands where they would have stood."""
    monkeypatch.setattr(broadcast, "BACKLOG", 3)
    told = Broadcast()
    with told.subscribe(()) as slow, told.subscribe(()) as quick:
        for number in range(5):
            told.publish([done(number)])
            assert await anext(quick) == done(number)

        assert await anext(slow) == EventsLost(count=2)
        assert [await anext(slow) for _ in range(3)] == [done(2), done(3), done(4)]
        told.publish([done(5)])
        assert await anext(slow) == done(5)


async def test_what_is_not_asked_for_takes_no_room(monkeypatch):
    """The backlog holds what the reader wants, whatever else is told."""
    monkeypatch.setattr(broadcast, "BACKLOG", 1)
    told = Broadcast()
    changed = WorkerStatusChanged(status=WorkerStatus(state="running"))
    with told.subscribe((WorkerStatusChanged,)) as reader:
        told.publish([changed])
        told.publish(done(number) for number in range(10))

        assert await anext(reader) == changed


async def test_at_the_end_what_is_left_is_read():
    """The loop of a reader ends after the last event."""
    told = Broadcast()
    with told.subscribe(()) as reader:
        told.publish([done(1), done(2)])
        told.end()

        assert [event async for event in reader] == [done(1), done(2)]
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


async def test_a_touch_wakes_those_who_watch_that_message():
    """Nobody else is woken, and nobody is remembered after the block."""
    told = Broadcast()
    with told.watch("1@example.org") as first, told.watch("1@example.org") as second, told.watch("2@a") as other:
        told.touch("1@example.org")
        told.touch("3@example.org")

        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
    assert told._watchers == {}


async def test_a_reader_that_waits_gets_the_next_event():
    """Waiting takes no polling: the event wakes it."""
    told = Broadcast()
    with told.subscribe(()) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        told.publish([done(1)])

        assert await waiting == done(1)


def test_what_readers_want_is_known_before_it_is_made():
    """Together they want what any of them does; who reads events at all, all that there are; nobody, none."""
    told = Broadcast()
    with told.subscribe((MessageCompleted,)):
        assert told.wanted == {MessageCompleted}
        with told.subscribe(()):
            assert told.wanted >= {MessageCompleted, WorkerStatusChanged}
        assert not told.wants(WorkerStatusChanged)
    assert told.wanted == set()
