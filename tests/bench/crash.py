"""Several processes accept and deliver over one queue, and are killed at random. What does the queue lose?

To run:   python tests/bench/crash.py --kills 100 [--processes 4] [--seed N]           # one SQLite file
          python tests/bench/crash.py --kills 100 --dsn postgresql://...               # an empty database
It prints: what was accepted, delivered and killed, how long others took to take over, and each violation of what
delivery promises. Exit status 1 if there is one.

Each worker is a process with a mailer of its own; all have the same queue. It sends, writes down what it was told,
and asks for the status of what it sent before. At random moments one, two or all of them get SIGKILL, the owner of a
file more often than the others, and are started again. The sink, which lives on, takes everything, but for a few that
it defers. In the end everything is delivered, and then sets are compared: what callers were told, what the sink took,
what the store says.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from mailstrom_async import (
    Attempt,
    Config,
    Email,
    Mailstrom,
    MailstromError,
    MessageStatus,
    RelayDelivery,
    RetryPolicy,
    SQLiteStorage,
    Storage,
)
from mailstrom_async.testing import SMTPServer

CALLERS = 4
"""In each process."""
BREATH = 0.02
"""Seconds that a caller rests between two mails, so that delivery keeps up."""
LEASE = timedelta(seconds=2)
"""Of claims in PostgreSQL. In a file they end with the owner."""
RANKS = {"queued": 0, "deferred": 1, "delivered": 2, "failed": 3}


def config(port: int) -> Config:
    return Config(
        helo_name="crash.example.org",
        delivery=RelayDelivery(host="127.0.0.1", port=port, security="none"),
        retry=RetryPolicy(base_delay=timedelta(seconds=0.2), factor=1, jitter=0.1),
        lease=LEASE,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where the queue is: the path of a file, or a DSN."""

    where: str

    @property
    def is_file(self) -> bool:
        return "://" not in self.where

    def storage(self) -> Storage:
        if self.is_file:
            return SQLiteStorage(self.where)
        from mailstrom_async.storage.postgres import PostgresStorage

        return PostgresStorage(self.where)

    def owner(self) -> int | None:
        """The process that owns the file."""
        try:
            return int(Path(self.where + ".lock").read_text()) if self.is_file else None
        except (OSError, ValueError):
            return None

    async def look(self) -> tuple[list[str], str]:
        """The Message-IDs that are stored, and what is damaged."""
        if not self.is_file:
            import asyncpg

            database = await asyncpg.connect(self.where)
            try:
                return [row[0] for row in await database.fetch("SELECT message_id FROM mailstrom.messages")], "ok"
            finally:
                await database.close()
        with closing(sqlite3.connect(f"{Path(self.where).as_uri()}?mode=ro", uri=True)) as connection:
            stored = [row[0] for row in connection.execute("SELECT message_id FROM messages")]
            return stored, connection.execute("PRAGMA integrity_check").fetchone()[0]


# A worker.


async def work(place: Place, port: int) -> None:
    """Send and ask until standard input ends; write down what was heard, a line of JSON each."""
    sent: list[str] = []
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)

    async def call(mailer: Mailstrom, chance: random.Random) -> None:
        while not stop.is_set():
            try:
                sent.append(await mailer.send_email(_email()))
                _say("accepted", sent[-1])
                began = time.monotonic()
                status = await mailer.query_status(chance.choice(sent[-200:]))
                (recipient,) = status.recipients
                state, attempts = recipient.result.state, recipient.attempts
                _say("seen", status.message_id, began, time.monotonic(), RANKS[state], attempts)
            except MailstromError as error:
                _say("error", f"{type(error).__name__}: {error}")
            await asyncio.sleep(BREATH * chance.uniform(0.5, 1.5))

    async with Mailstrom(config(port), place.storage()) as mailer, asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call(mailer, random.Random()))


def _email() -> Email:
    return Email(from_="App <app@example.org>", to="ada@example.net", subject="Crash", text="x" * 500)


def _say(*words: object) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")  # at once: a buffer would die with us


# What is known in the end.


@dataclass(slots=True)
class Seen:
    """A status that a worker was given for a question that it asked between these two moments."""

    began: float
    ended: float
    rank: int
    attempts: int


@dataclass(slots=True)
class Findings:
    """Who said what."""

    told: set[str] = field(default_factory=set[str])
    seen: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list[str])
    taken: Counter[str] = field(default_factory=Counter[str])
    statuses: dict[str, MessageStatus] = field(default_factory=dict[str, MessageStatus])
    attempts: dict[str, list[Attempt]] = field(default_factory=dict[str, list[Attempt]])
    damage: str = "ok"


def violations(found: Findings) -> list[str]:
    """What delivery promises, and did not keep."""
    stored = found.statuses.keys()
    broken = [f"{one}: accepted, and not in the store (I1)" for one in found.told - stored]
    broken += [f"{one}: the sink took it, and the store does not know it (I10)" for one in found.taken.keys() - stored]
    for message_id, status in found.statuses.items():
        (recipient,) = status.recipients
        if recipient.result.state != "delivered":
            broken.append(f"{message_id}: {recipient.result.state} in the end (I3)")
        elif not found.taken[message_id]:
            broken.append(f"{message_id}: delivered, and the sink never took it (I4)")
        copies = found.taken[message_id]
        unknown = sum(
            outcome.cause == "outcome_unknown"
            for attempt in found.attempts[message_id]
            for outcome in attempt.outcome.values()
        )
        if copies > 1 + unknown:
            broken.append(f"{message_id}: {copies} copies, but {unknown} attempts of unknown outcome (I6)")
        last = Seen(time.monotonic(), time.monotonic(), RANKS[recipient.result.state], recipient.attempts)
        if went_back([*found.seen.get(message_id, ()), last]):
            broken.append(f"{message_id}: its state or its attempts went backwards (I11)")
    if found.damage != "ok":
        broken.append(f"the store is damaged: {found.damage}")
    return broken


def went_back(seen: Iterable[Seen]) -> bool:
    """Whether a later question got an earlier answer. Questions that overlap tell nothing about each other."""
    by_begin = sorted(seen, key=lambda one: one.began)
    by_end = iter(sorted(seen, key=lambda one: one.ended))
    ended = next(by_end, None)
    rank = attempts = 0
    for one in by_begin:
        while ended is not None and ended.ended < one.began:
            rank, attempts = max(rank, ended.rank), max(attempts, ended.attempts)
            ended = next(by_end, None)
        if one.rank < rank or one.attempts < attempts:
            return True
    return False


# The one who kills.


class Worker:
    """One process, started again whenever it was killed."""

    def __init__(self, place: Place, port: int, found: Findings) -> None:
        self._command = [sys.executable, __file__, "--worker", place.where, str(port)]
        self._found = found
        self.accepted_at = 0.0

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read())
        self.accepted_at = 0.0

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._reading  # what it said before it died counts

    async def stop(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self._reading
        return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if not line.endswith(b"\n"):
                return
            what, *words = json.loads(line)
            if what == "accepted":
                self.accepted_at = time.monotonic()
                self._found.told.add(words[0])
            elif what == "seen":
                self._found.seen[words[0]].append(Seen(*words[1:]))
            else:
                self._found.errors.append(words[0])


def owner_among(workers: list[Worker], place: Place) -> Worker | None:
    pid = place.owner()
    return next((worker for worker in workers if worker.process.pid == pid), None)


def numbers(chance: random.Random, processes: int) -> Iterator[int]:
    """How many are killed each time: one, two and all, each as often."""
    while True:
        yield from chance.sample(sorted({1, min(2, processes), processes}), len({1, min(2, processes), processes}))


def victims(workers: list[Worker], count: int, owner: Worker | None, chance: random.Random) -> list[Worker]:
    """So many; the owner is one of them more often than not."""
    chosen = chance.sample(workers, count)
    if owner is not None and owner not in chosen and chance.random() < 0.6:
        chosen[0] = owner
    return chosen


async def accepting_again(workers: list[Worker], since: float, patience: float = 30.0) -> float:
    """Seconds until one of these processes accepted something after this moment."""
    while not any(worker.accepted_at > since for worker in workers):
        if time.monotonic() > since + patience:
            return patience
        await asyncio.sleep(0.005)
    return max(worker.accepted_at for worker in workers) - since


@dataclass(slots=True)
class Report:
    processes: int
    kills: int = 0
    rounds: int = 0
    owners: int = 0
    takeovers: list[float] = field(default_factory=list[float])
    seconds: float = 0.0


def temper(chance: random.Random) -> Callable[[object], str | None]:
    """A sink that defers one in twenty."""
    return lambda _: "451 4.3.0 not now" if chance.random() < 0.05 else None


async def run(place: Place, processes: int, kills: int, chance: random.Random) -> tuple[Report, Findings]:
    report, found = Report(processes), Findings()
    began = time.monotonic()
    async with SMTPServer({"RCPT": temper(chance)}) as sink:
        workers = [Worker(place, sink.port, found) for _ in range(processes)]
        await asyncio.gather(*(worker.start() for worker in workers))
        await accepting_again(workers, began)
        counts = numbers(chance, processes)
        while report.kills < kills:
            await accepting_again(workers, time.monotonic())
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            owner = owner_among(workers, place)
            await _kill(victims(workers, next(counts), owner, chance), workers, owner, report)
        await accepting_again(workers, time.monotonic())
        for worker in workers:  # one after the other: the last ones take over from the first
            assert await worker.stop() == 0, "a worker failed; see its messages above"
        async with Mailstrom(config(sink.port), place.storage()) as mailer:
            async with asyncio.timeout(120):
                while await mailer.query_recent(limit=1):  # noqa: ASYNC110 - nothing tells of all of them
                    await asyncio.sleep(0.1)
            await _ask(mailer, sink, place, found)
    report.seconds = time.monotonic() - began
    return report, found


async def _kill(chosen: list[Worker], workers: list[Worker], owner: Worker | None, report: Report) -> None:
    survivors = [worker for worker in workers if worker not in chosen and worker.accepted_at]  # not one that starts
    killed_at = time.monotonic()
    await asyncio.gather(*(worker.kill() for worker in chosen))
    report.rounds += 1
    report.kills += len(chosen)
    report.owners += owner in chosen
    if owner in chosen and survivors:
        report.takeovers.append(await accepting_again(survivors, killed_at))
    await asyncio.gather(*(worker.start() for worker in chosen))


async def _ask(mailer: Mailstrom, sink: SMTPServer, place: Place, found: Findings) -> None:
    stored, found.damage = await place.look()
    for message_id in stored:
        found.statuses[message_id] = await mailer.query_status(message_id)
        found.attempts[message_id] = await mailer.query_attempts(message_id)
    found.taken.update(message.email["Message-ID"].strip("<>") for message in sink.messages)


def show(report: Report, found: Findings, broken: list[str]) -> None:
    takeovers = sorted(report.takeovers)
    duplicates = sum(count - 1 for count in found.taken.values())
    rows = {
        "processes": report.processes,
        "kills": f"{report.kills} in {report.rounds} rounds" + f", {report.owners} of the owner" * bool(report.owners),
        "seconds": f"{report.seconds:.0f}",
        "accepted, and told so": len(found.told),
        "in the store": len(found.statuses),
        "statuses that workers saw": sum(map(len, found.seen.values())),
        "taken by the sink": found.taken.total(),
        "copies beyond the first, each of an attempt of unknown outcome": duplicates,
        "calls that raised": len(found.errors),
        "violations": len(broken),
    }
    if takeovers:
        median, worst = takeovers[len(takeovers) // 2], takeovers[-1]
        rows["others accept again after the owner's death"] = f"{median:.2f} s median, {worst:.2f} s at most"
    for name, value in rows.items():
        print(f"{name:64} {value}")
    for line in [*broken[:20], *(f"raised: {text}" for text, _ in Counter(found.errors).most_common(5))]:
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many processes to kill, at least")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--dsn", help="of a PostgreSQL database that has no queue yet, in place of a SQLite file")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--worker", nargs=2, metavar=("PLACE", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(work(Place(options.worker[0]), int(options.worker[1])))
        return 0
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(options.dsn or str(Path(folder) / "mail.db"))
        report, found = asyncio.run(run(place, options.processes, options.kills, random.Random(seed)))
    broken = violations(found)
    show(report, found, broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
