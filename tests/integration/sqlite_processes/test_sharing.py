"""One process owns the file, and another one works with it across the socket."""

import asyncio
import socket
import stat
from contextlib import suppress

import pytest

from mailstrom_async import AlreadyQueued, MailerStateError, QueueFull, StorageError, StorageInUse
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.storage._sqlite import follower as follower_room
from mailstrom_async.storage._sqlite import share
from mailstrom_async.storage._sqlite.calls import Status
from mailstrom_async.storage._sqlite.file_lock import locked
from mailstrom_async.storage._sqlite.socket import is_trusted, socket_of
from mailstrom_async.storage._sqlite.wire import ANSWER, FAULT, GREETING, Packed, Splitter, frame
from mailstrom_async.testing._contract.ground import LEASE, NOW, email, states_of

from .conftest import becomes, opened, role, scripted_owner


@pytest.mark.rule("C13", expected="several processes over one file have one queue")
async def test_what_one_accepts_all_know(owner, follower):
    """Row C13: accepted anywhere, a message is in the one queue that there is."""
    await follower.enqueue([email("followed@example.org")])
    await owner.enqueue([email("owned@example.org")])

    assert (role(owner), role(follower)) == ("owner", "follower")
    assert states_of(await owner.status("followed@example.org")) == {"ada@example.net": "queued"}
    assert states_of(await follower.status("owned@example.org")) == {"ada@example.net": "queued"}


@pytest.mark.rule("C13", expected="no message is attempted by two at once")
async def test_only_the_owner_delivers(owner, follower):
    """Row C13, I15: a follower is given nothing to deliver, so no message is attempted twice at once."""
    await follower.enqueue([email()])
    (entry,) = await owner.upcoming(10)

    claimed_by_follower = await follower.claim([entry.delivery_id], owner="two", now=NOW, lease_until=NOW)
    claimed_by_owner = await owner.claim([entry.delivery_id], owner="one", now=NOW, lease_until=NOW)

    assert await follower.upcoming(10) == []
    assert claimed_by_follower == []
    assert len(claimed_by_owner) == 1


async def test_a_follower_claims_nothing_as_it_is_accepted(owner, follower):
    """It hands the mail to the owner, whose engine hears of it."""
    called = asyncio.Event()
    owner.watch(called.set)
    entries = await follower.enqueue_claimed(email(), owner="two", lease_until=NOW + LEASE)
    await asyncio.wait_for(called.wait(), 20)

    assert entries == []
    assert len(await owner.upcoming(10)) == 1


async def test_the_owner_is_called_when_a_follower_has_queued_something(owner, follower):
    """Its engine sleeps until the next delivery that it knows of; this one it could not know."""
    called = asyncio.Event()
    owner.watch(called.set)
    await follower.enqueue([email()])

    await asyncio.wait_for(called.wait(), 20)


async def test_the_owner_is_called_when_a_follower_has_hastened_something(owner, follower):
    """As for what was queued."""
    await owner.enqueue([email()])
    called = asyncio.Event()
    owner.watch(called.set)
    await follower.hasten(email().prepared.message_id, NOW)

    await asyncio.wait_for(called.wait(), 20)


async def test_errors_cross_the_socket_whole(owner, follower):
    """What the caller may ask of them is in them."""
    await owner.enqueue([email()])

    with pytest.raises(AlreadyQueued) as known:
        await follower.enqueue([email()])
    with pytest.raises(QueueFull) as full:
        await follower.enqueue([email("2@example.org")], queue_size=1)

    assert known.value.message_id == email().prepared.message_id
    assert full.value.queue_size == 1


async def test_many_calls_at_once_each_get_their_own_answer(owner, follower):
    """They follow one another on one connection without waiting, reads overtake writes, and nothing is mixed up."""
    ids = [f"{number}@example.org" for number in range(500)]

    async def send_and_ask(message_id: str) -> str:
        await follower.enqueue([email(message_id)])
        status = await follower.status(message_id)
        return status.message_id

    assert await asyncio.gather(*map(send_and_ask, ids)) == ids
    assert len(await owner.upcoming(1000)) == 500


async def test_large_contents_cross_byte_for_byte(owner, follower):
    """In many pieces, several at once, more than one guest may have waiting."""
    contents = [bytes(range(256)) * 4096 * 12 + b"%d" % number for number in range(4)]
    acceptances = [email(f"{number}@example.org", content=content) for number, content in enumerate(contents)]
    await asyncio.gather(*(follower.enqueue([acceptance]) for acceptance in acceptances))

    prepared = await asyncio.gather(*(follower.prepared(f"{number}@example.org") for number in range(4)))

    assert [one.content for one in prepared] == contents


async def test_large_and_small_contents_cross_beside_one_another(owner, follower):
    """Row C19: a large one goes in pieces, as the owner takes them, and nothing comes in between them."""
    sizes = [3_000_000, 10, 300_000, 20, 5_000_000, 30, 40]
    sent = [email(f"{size}@example.org", content=bytes([size % 251]) * size) for size in sizes]
    await asyncio.gather(*(follower.enqueue([one]) for one in sent))

    for one in sent:
        assert (await owner.prepared(one.prepared.message_id)).content == one.prepared.content


async def test_a_cancelled_call_leaves_the_connection_as_it_is(owner, follower):
    """Row C20: its answer comes, and nobody wants it; the next call gets its own."""
    for number in range(20):
        sending = asyncio.ensure_future(follower.enqueue([email(f"{number}@example.org")]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    status = await follower.status("0@example.org")

    assert role(follower) == "follower"
    assert status is None or status.message_id == "0@example.org"


async def test_nobody_else_may_connect(owner, path):
    """The socket has the mode of the file: who may not read the mail may not ask for it either."""
    assert stat.S_IMODE(socket_of(path).stat().st_mode) == 0o600


async def test_who_may_write_the_file_may_share_it(path):
    """A file that a group works with has a socket for that group."""
    async with opened(path):
        pass
    path.chmod(0o660)
    async with opened(path):
        for beside in (socket_of(path), path.with_name("mail.db.lock")):
            assert stat.S_IMODE(beside.stat().st_mode) == 0o660


async def test_a_lock_file_that_somebody_removes_does_not_make_a_second_owner(path, monkeypatch):
    """As a cleaning script may do: who follows stays with the owner, and who comes finds it."""
    monkeypatch.setattr(follower_room, "LOOK_SECONDS", 0.01)
    async with opened(path) as first, opened(path) as second:
        path.with_name("mail.db.lock").unlink()
        async with opened(path) as third:
            looked = asyncio.Event()
            asyncio.get_running_loop().call_later(0.05, looked.set)
            await looked.wait()

            assert [role(storage) for storage in (first, second, third)] == ["owner", "follower", "follower"]


async def test_the_socket_goes_with_the_owner(path):
    """Nothing but the lock file and the store is left when all is closed."""
    async with opened(path):
        assert socket_of(path).exists()

    assert sorted(entry.name for entry in path.parent.iterdir()) == ["mail.db", "mail.db.lock"]


async def test_a_path_too_long_for_a_socket_is_shared_as_well(tmp_path):
    """The address of a socket holds about a hundred bytes, a path four thousand."""
    folder = tmp_path.joinpath(*["deep" * 10] * 6)
    folder.mkdir(parents=True)
    async with opened(folder / "mail.db"), opened(folder / "mail.db") as second:
        await second.enqueue([email()])

        assert role(second) == "follower"


async def test_a_name_too_long_for_a_socket_serves_one_process(tmp_path, caplog, monkeypatch):
    """It says so in the log, and the second one is told why it gets nothing."""
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)
    path = tmp_path / ("m" * 120)
    async with opened(path) as first:
        await first.enqueue([email()])
        with pytest.raises(StorageInUse, match="too long for a socket"):
            await SQLiteStorage(path).open(NOW)

    assert "can't be shared" in caplog.text


async def test_a_socket_that_a_dead_owner_left_is_replaced(path):
    """Its file outlives a process that is killed."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_of(path)))
    async with opened(path), opened(path) as second:
        assert role(second) == "follower"


@pytest.mark.parametrize(
    ("socket_owner", "trusted"),
    [(1000, True), (1001, True), (0, True), (1002, False)],
    ids=["our own", "the file's owner", "root", "somebody else"],
)
def test_a_socket_of_a_stranger_is_not_trusted(socket_owner, trusted):
    """In a directory that all may write, somebody else could wait there for our mail."""
    assert is_trusted(socket_owner, file_owner=1001, we=1000) == trusted


async def test_a_guest_that_talks_nonsense_is_cut_off_alone(owner, follower, path, caplog):
    """The others don't notice."""
    reader, writer = await asyncio.open_unix_connection(socket_of(path))
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert await asyncio.wait_for(reader.read(), 20) == GREETING
    assert "cut off" in caplog.text
    writer.close()
    await follower.enqueue([email()])


async def test_a_call_that_nobody_can_read_is_answered_and_not_quoted_in_the_log(owner, path, caplog):
    """An address in it may be a hidden one."""
    reader, writer = await asyncio.open_unix_connection(socket_of(path))
    for kind in (2, 99):
        writer.write(frame(kind, kind, Packed(b'["hidden@example.net"]')))
    assert await asyncio.wait_for(reader.readline(), 20) == GREETING
    splitter, answers = Splitter(), []
    while len(answers) < 2:
        answers += splitter.feed(await asyncio.wait_for(reader.read(1000), 20))

    assert [(answer.number, answer.kind) for answer in answers] == [(2, FAULT), (99, FAULT)]
    assert "can't be read" in caplog.text
    assert "hidden" not in caplog.text
    writer.close()


async def test_a_call_that_makes_no_sense_is_not_sent(owner, follower):
    """Nor sent again and again, with what others ask meanwhile."""
    with pytest.raises(ValueError, match="Expected `int`"):
        await follower.recent(None, "many")
    await follower.enqueue([email()])

    assert len(await owner.recent(None, 10)) == 1


async def test_an_answer_that_cannot_be_read_fails_its_call(path):
    """Another version, perhaps; the connection stays."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        splitter = Splitter()
        while data := await reader.read(1000):
            for number, kind, _ in splitter.feed(data):
                writer.write(frame(number, ANSWER, Packed(b"{}" if kind != Status.kind else b"null")))

    async with scripted_owner(path, answer):
        storage = SQLiteStorage(path)
        await storage.open(NOW)
        with pytest.raises(StorageError, match="what its owner answered can't be read"):
            await storage.recent(None, 10)
        assert await storage.status("1@example.org") is None
        await storage.aclose()


async def test_an_owner_that_talks_nonsense_is_left(path, caplog):
    """A follower looks for another one then, and the call is done there."""

    left = asyncio.Event()

    async def talk_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.read(1)
        writer.write(b"\xff" * 100)
        with suppress(ConnectionResetError):
            await reader.read()
        left.set()

    async with scripted_owner(path, talk_nonsense):
        storage = SQLiteStorage(path)
        await storage.open(NOW)
        sending = asyncio.ensure_future(storage.enqueue([email()]))
        await left.wait()
    assert "nobody can read" in caplog.text
    assert len(await sending) == 1
    assert role(storage) == "owner"
    await storage.aclose()


async def test_an_owner_of_another_version_is_named(path, monkeypatch):
    """Processes that don't understand each other don't try; the remedy is told."""
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)

    async def speak_the_next_version(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"mailstrom_async sqlite 999\n")

    async with scripted_owner(path, speak_the_next_version):
        with pytest.raises(StorageInUse, match=r"another version of mailstrom_async; restart all processes"):
            await SQLiteStorage(path).open(NOW)


async def test_an_owner_that_can_not_be_reached_is_named(path, monkeypatch):
    """The lock is held and there is no socket: a program that locks without sharing."""
    monkeypatch.setattr(share, "PATIENCE_SECONDS", 0.1)
    storage = SQLiteStorage(path)
    with locked(path), pytest.raises(StorageInUse, match=r"open in another process \(\d+\) .* can't be reached"):
        await storage.open(NOW)

    assert role(storage) == "closed"
    await storage.open(NOW)
    await storage.aclose()


async def test_an_owner_that_says_nothing_is_not_waited_for_long(path, monkeypatch):
    """It may be stopped in a debugger: the caller hears that, and may send again with the same Message-ID."""
    monkeypatch.setattr(follower_room, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(follower_room, "LOOK_SECONDS", 0.05)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)

    async with scripted_owner(path, say_nothing):
        storage = SQLiteStorage(path)
        await storage.open(NOW)
        with pytest.raises(StorageError, match=r"has not answered .* not known"):
            await storage.enqueue([email()])
        await storage.aclose()


async def test_an_owner_without_an_engine_leaves_the_file_to_one_that_delivers(path):
    """Web processes that only queue, and a worker that delivers: the worker gets the file, whoever was first."""
    async with opened(path) as web, opened(path) as worker:
        assert await worker.upcoming(10) == []  # its engine looks for something to do
        await becomes(worker, "owner")
        await becomes(web, "follower")
        await web.enqueue([email()])

        assert len(await worker.upcoming(10)) == 1


async def test_an_owner_whose_engine_runs_keeps_the_file(owner, follower):
    """Both could deliver; it stays as it is."""
    await owner.upcoming(10)
    await follower.upcoming(10)
    await follower.enqueue([email()])

    assert (role(owner), role(follower)) == ("owner", "follower")


async def test_a_closed_follower_says_so(owner, path):
    """As any closed store."""
    storage = SQLiteStorage(path)
    await storage.open(NOW)
    await storage.aclose()

    with pytest.raises(MailerStateError, match="is not open"):
        await storage.status("1@example.org")
