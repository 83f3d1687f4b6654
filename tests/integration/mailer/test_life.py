"""The mailer's life: entered, hooked into frameworks, closed, entered again, and used where it must not be."""

import asyncio
import os
import subprocess
import threading
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from socket import socket
from textwrap import dedent

import anyio
import pytest

import mailstrom_async
from mailstrom_async import (
    Config,
    DirectDelivery,
    MailerStateError,
    Mailstrom,
    MemoryStorage,
    SQLiteStorage,
    StorageError,
    StorageInUse,
    WorkerStatusChanged,
)
from mailstrom_async.testing import Gate

NOT_OPEN = "the mailer is not open; use `async with mailer:` or its lifespan hook"


async def test_a_mailer_can_be_built_without_an_event_loop_and_touches_nothing(tmp_path):
    """At import time there is no loop: building makes no file, no thread and no socket."""
    built: list[Mailstrom] = []
    threads = threading.active_count()

    def at_import_time() -> None:
        built.append(Mailstrom(Config(helo_name="a.example.org"), SQLiteStorage(tmp_path / "mail.db")))

    thread = threading.Thread(target=at_import_time)
    thread.start()
    thread.join()

    assert repr(built[0]) == "<Mailstrom a.example.org [stopped]>"
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads


async def test_the_lifespan_opens_and_closes(build, email, server):
    """FastAPI, Starlette and Litestar: open while the application runs."""
    mailer = build()
    async with mailer.lifespan(object()) as state:
        assert state is None
        assert mailer.worker_status.state == "running"
        await mailer.wait(await mailer.send_email(email()))

    assert mailer.worker_status.state == "stopped"
    assert server.received == 1


async def test_the_cleanup_context_opens_and_closes(build, email, server):
    """aiohttp: an async generator that yields once."""
    mailer = build()
    context = mailer.cleanup_ctx(object())
    await anext(context)
    assert mailer.worker_status.state == "running"
    await mailer.wait(await mailer.send_email(email()))
    with pytest.raises(StopAsyncIteration):
        await anext(context)

    assert mailer.worker_status.state == "stopped"
    assert server.received == 1


async def test_opened_in_one_task_and_closed_in_another(build, email):
    """Frameworks enter and leave a lifespan in tasks of their own choosing."""
    mailer = build()
    await asyncio.create_task(mailer.__aenter__())
    await asyncio.create_task(mailer.send_email(email()))
    await asyncio.create_task(mailer.aclose())

    assert mailer.worker_status.state == "stopped"


async def test_entering_twice_is_an_error_that_changes_nothing(build, email):
    """The second one is told; the first one goes on."""
    async with build() as mailer:
        with pytest.raises(MailerStateError, match="already open; leave it before entering it again"):
            await mailer.__aenter__()

        assert (await mailer.wait(await mailer.send_email(email()))).succeeded


async def test_it_can_be_entered_again_after_it_was_left(build, email, server):
    """A second life goes on where the first one ended."""
    mailer = build()
    async with mailer:
        first = await mailer.send_email(email())
        await mailer.wait(first)
    async with mailer:
        assert (await mailer.query_status(first)).succeeded
        await mailer.wait(await mailer.send_email(email()))

    assert server.received == 2


@pytest.mark.parametrize("life", ["before", "after"])
@pytest.mark.parametrize(
    "use",
    [
        lambda mailer, email: mailer.send_email(email),
        lambda mailer, email: mailer.send_emails([email]),
        lambda mailer, email: mailer.query_status("1@example.org"),
        lambda mailer, email: mailer.query_recent(),
        lambda mailer, email: mailer.query_attempts("1@example.org"),
        lambda mailer, email: mailer.query_prepared("1@example.org"),
        lambda mailer, email: mailer.wait("1@example.org"),
        lambda mailer, email: mailer.cancel("1@example.org"),
        lambda mailer, email: mailer.retry_now("1@example.org"),
        lambda mailer, email: mailer.start(),
        lambda mailer, email: mailer.pause(),
        lambda mailer, email: mailer.events().__aenter__(),
    ],
    ids=[
        "send",
        "sends",
        "status",
        "recent",
        "attempts",
        "prepared",
        "wait",
        "cancel",
        "retry",
        "start",
        "pause",
        "on",
    ],
)
async def test_a_mailer_that_is_not_open_says_so(build, email, use, life):
    """Whatever is asked of it before or after its life: one error, which names the remedy."""
    mailer = build()
    if life == "after":
        async with mailer:
            pass

    with pytest.raises(MailerStateError, match=NOT_OPEN):
        await use(mailer, email())


async def test_closing_twice_does_nothing(build):
    """`aclose` is safe to call again, and before the mailer was ever open."""
    mailer = build()
    await mailer.aclose()
    async with mailer:
        await mailer.aclose()
        await mailer.aclose()

    assert mailer.worker_status.state == "stopped"


async def test_another_event_loop_is_told(build, email):
    """A mailer belongs to the loop that it was opened on."""
    async with build() as mailer:

        def elsewhere() -> None:
            asyncio.run(mailer.send_email(email()))

        with pytest.raises(MailerStateError, match="opened on another event loop"):
            await asyncio.to_thread(elsewhere)


FORK = """
    import asyncio, os, sys
    from mailstrom_async import Config, Email, MailerStateError, Mailstrom, SQLiteStorage

    async def main():
        mailer = Mailstrom(Config(helo_name="a.example.org"), SQLiteStorage(sys.argv[1]), deliver=False)
        email = Email(from_="a@example.org", to="b@example.net", text="Hello")
        async with mailer:
            await mailer.send_email(email)
            if os.fork() == 0:
                try:
                    asyncio.run(mailer.send_email(email))
                except MailerStateError as error:
                    print(error, flush=True)
                os._exit(0)
            os.wait()
            await mailer.send_email(email)
            print(len(await mailer.query_recent()), flush=True)
        # Built before the fork and opened after it: each process has its own life, and its own Message-IDs.
        if os.fork() == 0:
            asyncio.run(once(mailer, email))
            os._exit(0)
        os.wait()
        await once(mailer, email)

    async def once(mailer, email):
        async with mailer:
            await mailer.send_email(email)
            print(len(await mailer.query_recent()), flush=True)

    asyncio.run(main())
"""


def test_a_fork_is_told(tmp_path, python):
    """A child that uses its parent's open mailer gets an error; the parent goes on; opened after a fork it works."""
    project = Path(mailstrom_async.__file__).parents[1]
    ended = subprocess.run(
        [python, "-W", "ignore::DeprecationWarning", "-c", dedent(FORK), str(tmp_path / "mail.db")],
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "the mailer was opened before a fork; make one, with its storage, in each process",
        "2",
        "3",
        "4",
    ]


def test_a_mailer_of_a_closed_event_loop_says_what_to_do(email):
    """Whatever it is asked for, even to be entered again."""
    mailer = Mailstrom(Config(helo_name="app.example.org"), MemoryStorage(), deliver=False)
    asyncio.run(mailer.__aenter__())
    for ask in (mailer.__aenter__, mailer.aclose, partial(mailer.send_email, email())):
        with pytest.raises(MailerStateError, match=r"event loop that is closed; make a new one"):
            asyncio.run(ask())


async def test_two_mailers_with_the_same_store_are_told(build, storage):
    """One store object serves one mailer at a time; the first one is not disturbed."""
    async with build() as first:
        with pytest.raises(MailerStateError, match="open already"):
            await build().__aenter__()

        assert first.worker_status.state == "running"
        assert await first.query_recent() == []


async def test_a_start_that_fails_leaves_nothing_open(build, tmp_path):
    """A database that can't be made: the error tells, and the mailer can be entered when the trouble is over."""
    folder = tmp_path / "missing"
    mailer = build(SQLiteStorage(folder / "mail.db"))
    with pytest.raises(StorageError, match="the directory must exist"):
        await mailer.__aenter__()
    assert mailer.worker_status.state == "stopped"

    folder.mkdir()
    async with mailer:
        assert mailer.worker_status.state == "running"


async def test_a_resolver_that_is_down_is_a_start_in_degraded(build, email, server, storage, clock):
    """Nobody answers at the nameserver: mail is accepted, the state says what ails, and it heals by itself."""
    with closing(socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    settings = build()._config
    delivery = DirectDelivery(
        port=settings.delivery.port, nameservers=(f"127.0.0.1:{port}",), allowed_networks=("127.0.0.0/8",)
    )
    short = settings.timeouts.model_copy(update={"dns": timedelta(seconds=0.5)})
    async with build(delivery=delivery, timeouts=short) as mailer, mailer.events(WorkerStatusChanged) as changes:
        message_id = await mailer.send_email(email())
        status = await mailer.wait(message_id, until="attempted")
        assert status.recipients[0].result.state == "deferred"
        assert status.recipients[0].result.cause == "dns"
        assert (await anext(changes)).status.state == "degraded"
        assert "resolver" in mailer.worker_status.reason
    async with build() as mailer:
        clock.advance(timedelta(hours=1))
        assert (await mailer.wait(message_id)).succeeded
        assert mailer.worker_status.state == "running"


async def test_a_second_process_gets_a_clear_error_or_is_served(build, tmp_path, email):
    """Two stores over one file: the second one is told who has it, or both serve it."""
    path = tmp_path / "mail.db"
    async with build(SQLiteStorage(path)) as first:
        second = build(SQLiteStorage(path), deliver=False)
        try:
            async with second:
                message_id = await second.send_email(email())
                assert (await first.wait(message_id)).succeeded
        except StorageInUse as error:
            assert str(os.getpid()) in str(error)  # noqa: PT017 - one of two allowed endings
            assert second.worker_status.state == "stopped"


async def test_the_context_manager_lets_errors_of_the_application_pass(build, storage):
    """What goes wrong inside is not swallowed, and everything is closed."""
    mailer = build()
    with pytest.raises(ZeroDivisionError):
        async with mailer:
            raise ZeroDivisionError

    assert mailer.worker_status.state == "stopped"
    await storage.open(mailer._clock.now())
    await storage.aclose()


async def test_a_cancelled_start_leaves_nothing_open(internet, tmp_path):
    """A server that is stopped while it starts: entered anew, all works."""
    storage = SQLiteStorage(tmp_path / "mail.db")
    mailer = Mailstrom(Config(helo_name="a.example.org", delivery=internet.delivery), storage)
    starting = asyncio.create_task(mailer.__aenter__())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])

    async with mailer:
        assert mailer.worker_status.state == "running"


class SlowToClose(MemoryStorage):
    """A store that answers for a while after it was asked to close."""

    async def aclose(self) -> None:
        await anyio.wait_all_tasks_blocked()
        await super().aclose()


async def test_what_waits_for_a_status_is_told_of_the_end(build, email, server):
    """`wait` of a message that is not completed ends with an error when the mailer closes, and never hangs."""
    server.script["RCPT"] = "450 4.2.1 later"
    mailer = build(SlowToClose())
    async with mailer:
        message_id = await mailer.send_email(email())
        await mailer.wait(message_id, until="attempted")
        waiting = asyncio.create_task(mailer.wait(message_id))
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        with pytest.raises(MailerStateError):
            await waiting


async def test_readers_of_events_end_with_the_mailer(build, email, server):
    """The loop over events ends, with what was recorded before."""
    server.script["end of data"] = gate = Gate()
    mailer = build()
    seen = []

    async def read(ready: asyncio.Event) -> None:
        async with mailer.events() as events:
            ready.set()
            seen.extend([type(event).__name__ async for event in events])

    async with mailer:
        ready = asyncio.Event()
        reading = asyncio.create_task(read(ready))
        await ready.wait()
        await mailer.send_email(email())
        await gate.reached()
        gate.open()
    async with asyncio.timeout(10):
        await reading

    assert seen == ["MessageQueued", "RecipientDelivered", "MessageCompleted", "WorkerStatusChanged"]


async def test_a_paused_mailer_accepts_and_a_started_one_delivers(build, email, server):
    """`deliver=False`, `start` and `pause` switch delivery; the state tells."""
    async with build(deliver=False) as mailer:
        assert mailer.worker_status.state == "paused"
        first = await mailer.send_email(email())
        assert (await mailer.query_status(first)).recipients[0].result.state == "queued"

        await mailer.start()
        await mailer.start()
        assert mailer.worker_status.state == "running"
        await mailer.wait(first)

        await mailer.pause()
        await mailer.pause()
        assert mailer.worker_status.state == "paused"
        second = await mailer.send_email(email())
        assert (await mailer.query_status(second)).recipients[0].result.state == "queued"
        assert server.received == 1


async def test_a_memory_store_serves_one_mailer_after_another():
    """What the store holds outlives the mailer."""
    storage = MemoryStorage()
    for _ in range(2):
        async with Mailstrom(Config(helo_name="a.example.org"), storage, deliver=False) as mailer:
            await mailer.query_recent()
