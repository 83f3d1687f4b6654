"""Who looks whether a caller's transaction was committed, and until when."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mailstrom_async import StorageError
from mailstrom_async.storage._sqlite import commits as commits_room
from mailstrom_async.storage._sqlite.commits import Commits


def answers(*given: int | Exception) -> tuple[Callable[[int], Awaitable[int]], list[int]]:
    """Somebody who gives these answers, one after another; and what was asked."""
    asked: list[int] = []
    left = list(given)

    async def arrived(delivery_id: int) -> int:
        asked.append(delivery_id)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return arrived, asked


async def until_it_stops(commits: Commits) -> None:
    assert commits._watching is not None
    async with asyncio.timeout(10):
        await asyncio.wait([commits._watching])
    assert commits._watching.exception() is None


async def test_the_lowest_is_asked_for_until_all_have_arrived():
    """The answer tells how far the numbers have come."""
    arrived, asked = answers(0, 0, 6, 0, 9)
    commits = Commits(arrived)
    for delivery_id in (7, 5, 8):
        commits.expect(delivery_id)
    await until_it_stops(commits)

    assert asked == [5, 5, 5, 7, 7]


async def test_it_begins_again_with_the_next_one():
    """It does not go on in between."""
    arrived, asked = answers(2, 3)
    commits = Commits(arrived)
    for delivery_id in (1, 2):
        commits.expect(delivery_id)
        await until_it_stops(commits)

    assert asked == [1, 2]


async def test_a_store_that_can_not_answer_is_asked_again():
    """The file changes hands, for instance."""
    arrived, asked = answers(StorageError("changing hands"), 2)
    commits = Commits(arrived)
    commits.expect(1)
    await until_it_stops(commits)

    assert asked == [1, 1]


async def test_what_was_most_likely_rolled_back_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """Nothing is asked for ever; and what was given up is not asked for with the next one."""
    arrived, asked = answers(3)
    commits = Commits(arrived)
    with monkeypatch.context() as patch:
        patch.setattr(commits_room, "PATIENCE", -1)
        commits.expect(1)
        await until_it_stops(commits)
    commits.expect(2)
    await until_it_stops(commits)

    assert asked == [2]


async def test_nothing_is_watched_once_it_is_closed():
    """A call that was under way meanwhile comes too late: the store can't be asked any more."""
    arrived, asked = answers()
    commits = Commits(arrived)
    await commits.aclose()
    commits.expect(1)

    assert commits._watching is None
    assert asked == []


async def test_closing_ends_it():
    """Also in the midst of a look; and twice does nothing."""
    asked = asyncio.Event()

    async def never(delivery_id: int) -> int:
        asked.set()
        await asyncio.Event().wait()
        return 0

    commits = Commits(never)
    commits.expect(1)
    await asked.wait()
    await commits.aclose()
    await commits.aclose()

    assert commits._watching is not None
    assert commits._watching.cancelled()
