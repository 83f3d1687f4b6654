"""A test of how an application behaves when a provider greylists.

What it shows: `mailstrom_async.testing`: a nameserver and a mail exchanger on loopback that do what a script tells
them, and a clock that makes an hour pass at once.
Requires: pip install pytest
To run:   pytest -o anyio_mode=auto examples/test_greylisting.py
It should print: 2 passed.
"""

from datetime import timedelta

from mailstrom_async import Config, Email, Mailstrom, MemoryStorage, RetryPolicy
from mailstrom_async.testing import FakeInternet, Greylist, ManualClock


async def send_login_code(mailer: Mailstrom, address: str) -> str:
    """The application: a code that is worth nothing after ten minutes."""
    email = Email(from_="Login <login@example.org>", to=address, subject="Your code", text="123456\n")
    return await mailer.send_email(email, expires_after=timedelta(minutes=10))


async def test_a_login_code_survives_short_greylisting() -> None:
    """The first retry comes after a minute, and the provider lets it pass."""
    clock = ManualClock()
    retry = RetryPolicy(base_delay=timedelta(seconds=20), factor=3, jitter=0)
    async with FakeInternet() as internet:
        exchanger = await internet.exchanger("mx.example.net", {"RCPT": Greylist(timedelta(seconds=30), clock)})
        internet.domain("example.net", mx=["mx.example.net"])
        config = Config(helo_name="app.example.org", delivery=internet.delivery, retry=retry)
        async with Mailstrom(config, MemoryStorage(), clock=clock) as mailer:
            message_id = await send_login_code(mailer, "ada@example.net")
            await mailer.wait(message_id, until="attempted")
            assert exchanger.messages == []

            clock.advance(timedelta(minutes=1))
            status = await mailer.wait(message_id)

    assert status.succeeded
    assert status.recipients[0].attempts == 2
    assert exchanger.messages[0].email["Subject"] == "Your code"


async def test_a_login_code_does_not_arrive_hours_later() -> None:
    """A provider that greylists for longer than the code is worth gets no further attempt."""
    clock = ManualClock()
    async with FakeInternet() as internet:
        exchanger = await internet.exchanger("mx.example.net", {"RCPT": Greylist(timedelta(hours=1), clock)})
        internet.domain("example.net", mx=["mx.example.net"])
        config = Config(helo_name="app.example.org", delivery=internet.delivery)
        async with Mailstrom(config, MemoryStorage(), clock=clock) as mailer:
            message_id = await send_login_code(mailer, "ada@example.net")
            await mailer.wait(message_id, until="attempted")

            clock.advance(timedelta(hours=2))
            status = await mailer.wait(message_id)

    assert status.recipients[0].result.state == "failed"
    assert status.recipients[0].result.cause == "expired"
    assert exchanger.messages == []
