"""What the tests of the mailer share: exchangers on loopback, a clock, and mailers that deliver there."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from mailstrom_async import Config, Email, Mailstrom, MemoryStorage, RetryPolicy, Storage
from mailstrom_async.testing import FakeInternet, ManualClock, SMTPServer

Build = Callable[..., Mailstrom]


@pytest.fixture
def clock() -> ManualClock:
    """The queue's clock; stands still until a test moves it."""
    return ManualClock()


@pytest.fixture
async def internet():
    """Two domains, each with an exchanger of its own."""
    async with FakeInternet() as internet:
        for domain in ("example.net", "example.com"):
            await internet.exchanger(f"mx.{domain}")
            internet.domain(domain, mx=[f"mx.{domain}"])
        yield internet


@pytest.fixture
def server(internet) -> SMTPServer:
    """The exchanger of example.net."""
    return internet.exchangers["mx.example.net"]


@pytest.fixture
def storage() -> MemoryStorage:
    """The store, which outlives mailers."""
    return MemoryStorage()


@pytest.fixture
def build(internet, storage, clock) -> Build:
    """Makes a mailer that delivers to the exchangers; keyword arguments are settings of `Config`."""

    def build(store: Storage | None = None, *, deliver: bool = True, **settings: Any) -> Mailstrom:
        fixed = {"helo_name": "app.example.org", "delivery": internet.delivery, "retry": RetryPolicy(jitter=0)}
        return Mailstrom(Config(**{**fixed, **settings}), store or storage, deliver=deliver, clock=clock)

    return build


@pytest.fixture
def email() -> Callable[..., Email]:
    """Makes an email."""

    def email(to: str = "ada@example.net", **fields: Any) -> Email:
        return Email(**{"from_": "app@example.org", "to": to, "subject": "Hello", "text": "Hello", **fields})

    return email


@pytest.fixture
def python() -> str:
    """The interpreter, for tests that need a process of their own."""
    return sys.executable
