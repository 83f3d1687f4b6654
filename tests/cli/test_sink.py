"""`mailstrom-async sink`, a relay to develop with."""

import asyncio
import re
import signal

import pytest

from mailstrom_async import Config, Email, Mailstrom, MemoryStorage, RelayDelivery


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_sink_shows_what_an_application_sends(command, number):
    """It listens, prints each mail, and ends well on Control-C and SIGTERM."""
    process = await command.start("sink", "--port", "0", "--show")
    async with asyncio.timeout(20):
        first = (await process.stdout.readline()).decode()
    port = int(re.search(r"127\.0\.0\.1:(\d+)", first)[1])
    delivery = RelayDelivery(host="127.0.0.1", port=port, security="none")
    async with Mailstrom(Config(helo_name="app.example.org", delivery=delivery), MemoryStorage()) as mailer:
        email = Email(from_="App <app@example.org>", to="ada@example.net", subject="Grüße", text="Hello Ada")
        status = await mailer.wait(await mailer.send_email(email))
    process.send_signal(number)
    ended = await command.end(process)

    assert status.succeeded
    assert (ended.status, ended.err) == (0, "")
    assert "app@example.org -> ada@example.net: Grüße" in ended.out
    assert "Hello Ada" in ended.out


async def test_a_port_that_is_taken_is_told(command):
    """One line with the remedy."""
    process = await command.start("sink", "--port", "0")
    async with asyncio.timeout(20):
        port = re.search(r":(\d+)", (await process.stdout.readline()).decode())[1]
    second = await command("sink", "--port", port)
    process.terminate()
    await command.end(process)

    assert second.status == 1
    (line,) = second.err.splitlines()
    assert f"can't listen at 127.0.0.1:{port}" in line
    assert "--port" in line
