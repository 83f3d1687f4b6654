"""The table: which programs are run, and which rows their figures fill.

A program is one run of something, in a process of its own: it takes how much of its full work to do (1.0, or less for a
quick look), and gives its figures. The programs of a group take turns, so that a quiet minute is quiet for all.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import bare
import crowd
import flat
import imports
import large
import million
import postfix
import processes
import rtt
import sick
import throughput
from result import Figure, Row
from sink import sink
from throughput import Load

Program = Callable[[float], dict[str, Any]]
ALONE = "healthy alone"
SICKNESSES = ("hanging", "slow (0.4 s a mail)", "flapping", "421 after three mails")
"""Names of tests/bench/sick.py."""
LARGE = 25 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Group:
    """What is measured together.

    Attributes:
        programs: The names of its programs, in the order in which they take turns.
        by_default: It belongs to the table; others are run only when they are asked for by name.
    """

    name: str
    rows: Sequence[Row]
    by_default: bool = True

    @property
    def programs(self) -> list[str]:
        return list(dict.fromkeys(program for row in self.rows for program in row.programs))


def ours(message: str, count: int, *, uvloop: bool = False, accept_only: bool = False, signed: bool = False) -> Program:
    return lambda share: throughput.measure(Load(message, part(count, share), uvloop, accept_only, signed))


def through_postfix(count: int, size: int, *, hold: bool = False) -> Program:
    """Accepted into Postfix's queue over SMTP and delivered from there, with its default settings."""

    def run(share: float) -> dict[str, float]:
        with sink() as port, postfix.running(port, hold=hold) as server:
            return {"rate": part(count, share) / server.carry(part(count, share), size, wait=not hold)}

    return run


def part(count: int, share: float) -> int:
    return max(round(count * share), 10)


def one_large() -> dict[str, float]:
    with sink() as port:
        figures = asyncio.run(large.send("Email", "sqlite", False, LARGE, port))
    return {"block_ms": figures["block"] * 1e3, "memory": figures["memory"], "seconds": figures["seconds"]}


def healthy(kind: str) -> dict[str, Any]:
    """How long mail to healthy destinations takes while most of the queue is for one with this sickness."""
    latencies = sick.run(kind)
    p50, p99 = (throughput.percentile(latencies, share) * 1e3 for share in (0.5, 0.99))
    return {"p50_ms": p50, "p99_ms": p99, "latencies_s": [round(each, 5) for each in latencies]}


PROGRAMS: dict[str, Program] = {
    "Postfix, 2 KiB": through_postfix(3000, 2048),
    "aiosmtplib, 2 KiB": lambda share: bare.measure(part(4000, share)),
    "ready bytes, 2 KiB": ours("ready", 10_000),
    "ready bytes, 2 KiB, uvloop": ours("ready", 10_000, uvloop=True),
    "ready bytes, 2 KiB, two files": lambda share: processes.measure(part(10_000, share), shared=False),
    "ready bytes, 2 KiB, one file": lambda share: processes.measure(part(10_000, share), shared=True),
    "Email, 2 KiB": ours("small", 8000),
    "Email, 2 KiB, DKIM": ours("small", 5000, signed=True),
    "Postfix, 50 KiB": through_postfix(1500, 51_200),
    "Email, 50 KiB": ours("large", 3000),
    "ready bytes, 50 KiB": ours("ready50", 4000),
    "Postfix, HOLD": through_postfix(3000, 2048, hold=True),
    "accept only": ours("ready", 20_000, accept_only=True),
    "25 MB": lambda _: one_large(),
    "crowd": lambda _: asyncio.run(crowd.measure(10_000)),
    "import": lambda _: imports.measure(7),
    "million": lambda share: million.measure(part(1_000_000, share)),
    **{f"100 ms, {kind}": lambda share, kind=kind: rtt.measure(kind, share) for kind in rtt.COUNTS},
    **{f"sick: {kind}": lambda _, kind=kind: healthy(kind) for kind in (ALONE, *SICKNESSES)},
    "flat": lambda share: flat.measure(timedelta(minutes=10 * share)),
}

RATE_2, RATE_HOLD = Figure("Postfix, 2 KiB"), Figure("Postfix, HOLD")

GROUPS = [
    Group(
        "2 KiB",
        [
            Row(
                "durable end to end, ready bytes 2 KiB, asyncio / Postfix", Figure("ready bytes, 2 KiB"), RATE_2, 6, 10
            ),
            Row("the same on uvloop / Postfix", Figure("ready bytes, 2 KiB, uvloop"), RATE_2, 10, 20),
            Row("the same in two processes, a file each / Postfix", Figure("ready bytes, 2 KiB, two files"), RATE_2),
            Row("the same in two processes, one file / Postfix", Figure("ready bytes, 2 KiB, one file"), RATE_2),
            Row(
                "the same on asyncio / bare aiosmtplib loop, 16 connections, nothing stored",
                Figure("ready bytes, 2 KiB"),
                Figure("aiosmtplib, 2 KiB"),
                1.5,
                2.5,
            ),
            Row("Email composed in send_email, text 2 KiB / Postfix", Figure("Email, 2 KiB"), RATE_2, 4.5, 8),
            Row("the same with RSA-2048 DKIM / Postfix", Figure("Email, 2 KiB, DKIM"), RATE_2, 2.4, 4),
            Row(
                "lateness of a 1 ms timer at full speed, p99, 2 KiB",
                Figure("ready bytes, 2 KiB", "late_p99_ms"),
                must=5,
                aim=2,
                unit="ms",
            ),
        ],
    ),
    Group(
        "50 KiB",
        [
            Row("50 KiB with attachment, composed / Postfix", Figure("Email, 50 KiB"), Figure("Postfix, 50 KiB"), 3, 5),
            Row(
                "lateness of a 1 ms timer at full speed, p99, 50 KiB",
                Figure("ready bytes, 50 KiB", "late_p99_ms"),
                must=10,
                aim=5,
                unit="ms",
            ),
        ],
    ),
    Group(
        "accept",
        [
            Row("accept only, 100 callers / Postfix accepting into HOLD", Figure("accept only"), RATE_HOLD, 15, 30),
            Row(
                "accept only, 100 callers, p99 of a call",
                Figure("accept only", "accept_p99_ms"),
                must=20,
                aim=5,
                unit="ms",
            ),
        ],
    ),
    Group(
        "100 ms",
        [
            Row(
                "one connection at 100 ms round trip, server with PIPELINING / aiosmtplib",
                Figure("100 ms, pipelining"),
                Figure("100 ms, aiosmtplib"),
                must=4,
                aim=4,
            ),
            Row(
                "the same, server with CHUNKING, Limits.bdat_window=16 / aiosmtplib",
                Figure("100 ms, chunking"),
                Figure("100 ms, aiosmtplib"),
                aim=50,
            ),
        ],
    ),
    Group(
        "25 MB",
        [
            Row(
                "longest block of the loop while a 25 MB mail is accepted and sent",
                Figure("25 MB", "block_ms"),
                must=50,
                aim=10,
                unit="ms",
            )
        ],
    ),
    Group(
        "crowd",
        [
            Row(
                "one message to 10,000 recipients in 50 domains: accepted",
                Figure("crowd", "accept_s"),
                must=1,
                aim=0.2,
                unit="s",
            ),
            Row("the same: status query", Figure("crowd", "status_ms"), must=100, aim=20, unit="ms"),
        ],
    ),
    Group(
        "import",
        [
            Row(
                "import mailstrom_async beyond its four given packages",
                Figure("import", "import_ms"),
                must=60,
                aim=30,
                unit="ms",
            ),
            Row(
                "... and of Config, Email, Mailstrom and SQLiteStorage from it",
                Figure("import", "names_ms"),
                unit="ms",
            ),
        ],
    ),
    Group(
        "million",
        [
            Row("memory for 1,000,000 queued", Figure("million", "memory_mib"), must=50, aim=20, unit="MiB"),
            Row("first delivery after a start with 1,000,000 queued", Figure("million", "first_s"), must=2, unit="s"),
            Row(
                "accepting with 1,000,000 queued, beside the beginning: how much slower",
                Figure("million", "slower"),
                must=1.5,
                unit="x",
            ),
            Row("claiming 100 of 1,000,000", Figure("million", "claim_ms"), must=10, unit="ms"),
        ],
    ),
    Group(
        "sick",
        [
            Row(
                f"p99 of healthy mail, 90 % of the queue is for a sick one: {kind} / alone",
                Figure(f"sick: {kind}", "p99_ms"),
                Figure(f"sick: {ALONE}", "p99_ms"),
                must=1.5,
                unit="ms",
            )
            for kind in SICKNESSES
        ],
    ),
    Group(
        "flat",
        [
            Row(
                "10 minutes of accepting faster than delivering: memory grows by",
                Figure("flat", "grown_mib"),
                must=50,
                unit="MiB",
            )
        ],
        by_default=False,
    ),
]
