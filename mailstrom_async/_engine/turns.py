"""Work that is done on the event loop itself, but no longer in one turn of it than others can bear."""

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

BUDGET = 0.005
"""Seconds of work in one turn of the event loop, whoever asks for it."""


class _Waiting(NamedTuple):
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class Turns:
    """Does what callers ask for: at once, as long as the turn's budget lasts; the rest in later turns, in the order of
    asking. Belongs to the event loop on which it is first used.

    Those who wait are not woken before their work is done: were each to look for itself whether it is its turn, a
    crowd of them would hold the loop up by that alone.
    """

    def __init__(self) -> None:
        self._left = BUDGET
        self._waiting: deque[_Waiting] = deque()
        self._coming = False  # the next turn, as something that the loop calls

    def __repr__(self) -> str:
        return f"<Turns [{len(self._waiting)} waiting]>"

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns or raises. Given up before its turn, it is never begun."""
        if self._left > 0 and not self._waiting:
            try:
                return self._measured(work)
            finally:
                # Not for each: a turn need only be counted once much of its budget is used up.
                if self._left < BUDGET / 2:
                    self._call_soon()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(work, done))
        return await done

    def _measured(self, work: Callable[[], T]) -> T:
        began = perf_counter()
        try:
            return work()
        finally:
            self._left -= perf_counter() - began

    def _call_soon(self) -> None:
        if not self._coming:
            self._coming = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._coming = False
        self._left = BUDGET
        try:
            while self._waiting and self._left > 0:
                work, done = self._waiting.popleft()
                if not done.done():  # else its caller was cancelled
                    self._settle(work, done)
        finally:  # Control-C in the middle of it must not leave the others in line
            if self._waiting or self._left < BUDGET / 2:
                self._call_soon()

    def _settle(self, work: Callable[[], T], done: asyncio.Future[T]) -> None:
        try:
            result = self._measured(work)
        except Exception as error:  # noqa: BLE001 - it is raised where the work is waited for
            done.set_exception(error)
            done.exception()  # if its caller is cancelled now, nobody else asks for it
            del done  # it would be part of the error's traceback, and so of a circle
        else:
            done.set_result(result)
