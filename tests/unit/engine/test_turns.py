"""Work in turns of the event loop: at once for a few, in line for a crowd."""

import asyncio
from functools import partial
from time import perf_counter

import pytest

from mailstrom_async._engine.turns import BUDGET, Turns

SHARE = BUDGET / 10
CROWD = 100


def work(seconds: float = SHARE) -> int:
    """Holds the loop up; returns the number of the turn in which it ran."""
    until = perf_counter() + seconds
    while perf_counter() < until:
        pass
    return Ticks.number


class Ticks:
    """Numbers the turns of the event loop."""

    number = 0

    async def count(self) -> None:
        while True:
            Ticks.number += 1
            await asyncio.sleep(0)


@pytest.fixture
async def ticks():
    """Turns are counted."""
    counting = asyncio.create_task(Ticks().count())
    yield
    counting.cancel()
    await asyncio.wait([counting])


def test_a_single_caller_does_not_wait():
    """What is asked for is done with no event loop even looked at."""
    waiting = Turns().run(partial(work, 0))
    with pytest.raises(StopIteration) as ended:
        waiting.send(None)

    assert ended.value.value == Ticks.number


async def test_a_crowd_gets_a_budget_in_each_turn(ticks):
    """In no turn of the loop more is done than the budget allows, and that in the order of asking."""
    turns = Turns()
    numbers = await asyncio.gather(*(turns.run(work) for _ in range(CROWD)))

    assert numbers == sorted(numbers)
    most = max(numbers.count(number) for number in numbers)
    assert 1 <= most <= BUDGET / SHARE + 1


async def test_who_comes_later_does_not_overtake(ticks):
    """Those in line have the budget of the next turns."""
    turns = Turns()
    order: list[str] = []

    async def ask(name: str) -> None:
        await turns.run(lambda: order.append(name) or work())
        if name == str(CROWD // 2):
            await ask("late")

    await asyncio.gather(*(ask(str(number)) for number in range(CROWD)))

    assert order == [*map(str, range(CROWD)), "late"]


async def test_who_gives_up_in_line_leaves_no_hole(ticks):
    """Their work is not begun; that of the others is done."""
    turns = Turns()
    done: list[int] = []
    tasks = [asyncio.create_task(turns.run(lambda n=n: done.append(n) or work())) for n in range(CROWD)]
    await asyncio.sleep(0)
    assert len(done) < CROWD / 2
    for task in tasks[CROWD // 2 :: 2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert done == [n for n in range(CROWD) if n < CROWD // 2 or n % 2]
    assert await turns.run(lambda: "goes on") == "goes on"


async def test_an_error_is_its_callers_alone(ticks):
    """At once or in line, it is raised where the work is waited for."""
    turns = Turns()

    def fail() -> None:
        work()
        raise ZeroDivisionError

    outcomes = await asyncio.gather(*(turns.run(work if n % 2 else fail) for n in range(CROWD)), return_exceptions=True)

    assert all(isinstance(outcome, int if n % 2 else ZeroDivisionError) for n, outcome in enumerate(outcomes))
