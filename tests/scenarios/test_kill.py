"""The program is killed, again and again, while it accepts and delivers. (Row C1.)

A child sends mail and delivers it to a server in this process, until a SIGKILL ends it at a random moment: when
it had an id returned, at a point of a transaction, or right after a message was acknowledged. Then the next life begins
on the same file. The last one is left alone until everything is completed. Set arithmetic over what the child
said, what the server took and what the store held after each life shows whether the promises were kept.
"""

import asyncio
import os
import random
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mailstrom_async.testing import Context, SMTPServer

KILLS = int(os.environ.get("MAILSTROM_TEST_KILLS", "8"))
PATIENCE = 40
"""Seconds for one life: whoever needs more hangs."""

RANK = {"queued": 0, "deferred": 1, "delivered": 2, "failed": 2}
MOMENTS = ("returned", "returned", "MAIL", "RCPT", "DATA", "body", "end of data", "acknowledged", "acknowledged")

CHILD = """
import asyncio, itertools, os, sys
from datetime import timedelta
from mailstrom_async import Config, Email, Mailstrom, RelayDelivery, SQLiteStorage
from mailstrom_async._config import RetryPolicy

path, port, life, sends = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
config = Config(
    helo_name="app.example.org",
    delivery=RelayDelivery(host="127.0.0.1", port=port, security="none"),
    retry=RetryPolicy(base_delay=timedelta(milliseconds=20), factor=1.5, max_delay=timedelta(milliseconds=200)),
)

def say(word, what=""):
    os.write(1, f"{word} {what}\\n".encode())

async def send(mailer, numbers):
    for number in numbers:
        to = ["a@one.example", f"b{number}@two.example"][: 1 + number % 2]
        text = "Hello " * (number % 7 * 200)
        email = Email(from_="app@example.org", to=to, text=text, message_id=f"{life}.{number}@x.org")
        say("returned", await mailer.send_email(email))

async def main():
    async with Mailstrom(config, SQLiteStorage(path)) as mailer:
        say("open")
        numbers = iter(range(sends))
        await asyncio.gather(*(send(mailer, numbers) for _ in range(8)))
        while incomplete := await mailer.query_recent():
            await asyncio.gather(*(mailer.wait(status.message_id) for status in incomplete))
        say("idle")
        if sends:
            sys.stdin.read()

asyncio.run(main())
"""

Recipient = tuple[str, str]
"""A Message-ID and an address."""


@dataclass
class World:
    """What was seen, of all lives."""

    chance: random.Random
    returned: set[str] = field(default_factory=set)
    copies: list[tuple[int, Recipient]] = field(default_factory=list)
    """Each copy that the server took, with the life that it came from."""
    snapshots: list[dict[Recipient, tuple[str, int]]] = field(default_factory=list)
    """State and attempts of each recipient after each life."""
    life: int = 0
    child: asyncio.subprocess.Process | None = None
    moment: str = ""
    countdown: int = 0

    def arm(self) -> None:
        """Choose when this life ends."""
        self.moment, self.countdown = self.chance.choice(MOMENTS), self.chance.randint(1, 60)

    def passes(self, moment: str) -> None:
        """Something happened: is this where the life ends?"""
        if moment == self.moment and self.child is not None:
            self.countdown -= 1
            if self.countdown == 0:
                self.kill()

    def kill(self) -> None:
        assert self.child is not None
        if self.child.returncode is None:
            self.child.kill()

    def act(self, context: Context) -> str | None:
        """The server: every tenth message is to come again later."""
        if context.moment == "MAIL" and context.transaction > 1:
            self.passes("acknowledged")  # what came before on this connection
        self.passes(context.moment)
        if context.moment == "end of data" and self.chance.random() < 0.1:
            return "451 4.3.0 not now"
        return None


async def live(world: World, path: Path, port: int, *, sends: int) -> None:
    """One life, to its end, and what is found then."""
    world.life += 1
    world.child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(path),
        str(port),
        str(world.life),
        str(sends),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert world.child.stdout is not None
    async with asyncio.timeout(PATIENCE):
        async for line in world.child.stdout:
            word, _, what = line.decode().strip().partition(" ")
            if word == "returned" and line.endswith(b"\n"):
                world.returned.add(what)
            if word == "idle" and sends:
                world.kill()  # its moment never came
            world.passes(word)
        await world.child.wait()


def take_stock(world: World, path: Path, server: SMTPServer) -> None:
    """What the server took in this life, and what the store holds after it."""
    for message in server.messages:
        message_id = message.email["Message-ID"].strip("<>")
        world.copies += [(world.life, (message_id, address)) for address in message.recipients]
    server.messages.clear()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        rows = connection.execute(
            "SELECT message_id, address, state, attempts"
            " FROM messages JOIN deliveries ON message = key JOIN recipients ON delivery = id"
        )
        world.snapshots.append({(message_id, address): (state, n) for message_id, address, state, n in rows})


@pytest.mark.timeout(60 + 10 * KILLS)
@pytest.mark.parametrize("kills", [KILLS])
@pytest.mark.rule(
    "C1", "kill -9 at random moments of accepting and delivering: I1, I4, I6, I11, I16; restart without a manual step"
)
async def test_nothing_that_was_returned_is_lost_however_often_the_program_is_killed(kills: int, tmp_path: Path):
    """Row C1: invariants I1, I4, I6, I11 and I16 hold over all lives; restarting takes no manual step."""
    path = tmp_path / "mail.db"
    world = World(random.Random(os.environ.get("MAILSTROM_TEST_SEED")))
    moments = ("MAIL", "RCPT", "DATA", "body", "end of data")
    async with SMTPServer(script=dict.fromkeys(moments, world.act)) as server:
        for _ in range(kills):
            world.arm()
            await live(world, path, server.port, sends=120)
            take_stock(world, path, server)
        world.moment = ""
        await live(world, path, server.port, sends=0)
        take_stock(world, path, server)
        assert world.child is not None
        assert world.child.returncode == 0

    last = world.snapshots[-1]
    stored = {message_id for message_id, _ in last}
    assert len(world.returned) > 0
    assert world.returned <= stored, "lost"
    assert {state for state, _ in last.values()} == {"delivered"}
    assert {recipient for _, recipient in world.copies} == set(last), "delivered but never taken, or taken from nowhere"
    check_history(world)
    check_copies(world)


def check_history(world: World) -> None:
    """Invariant I11: nothing vanishes, states go one way, what is final stays so, attempts never fall."""
    for before, after in zip(world.snapshots, world.snapshots[1:], strict=False):
        for recipient, (state, attempts) in before.items():
            later_state, later_attempts = after[recipient]
            assert RANK[later_state] >= RANK[state], recipient
            assert RANK[state] < 2 or later_state == state, recipient
            assert later_attempts >= attempts, recipient


def check_copies(world: World) -> None:
    """Invariants I4, I6 and I16: who is delivered has a copy; a second one only if the first was not on record."""
    lives: dict[Recipient, list[int]] = {}
    for life, recipient in world.copies:
        lives.setdefault(recipient, []).append(life)
    for life, snapshot in enumerate(world.snapshots, 1):
        for recipient, (state, _) in snapshot.items():
            if state == "delivered":
                assert min(lives[recipient]) <= life, f"{recipient} was delivered before the server had it"
                assert max(lives[recipient]) <= life, f"{recipient} was sent again after it was delivered"
    for recipient, of in lives.items():
        assert max(Counter(of).values()) == 1, f"{recipient} was sent twice within one life"
