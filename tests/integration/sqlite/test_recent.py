"""What was just accepted is claimed without being read again, and is the same as if it were."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailstrom_async import PreparedEmail
from mailstrom_async.storage import Acceptance, SQLiteStorage
from mailstrom_async.storage._sqlite import queue, share
from mailstrom_async.storage._sqlite import recent as recent_room
from mailstrom_async.storage._sqlite.file import open_file
from mailstrom_async.storage._sqlite.recent import KEPT_SECONDS, Recent

from .conftest import Query

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = NOW + timedelta(minutes=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_file(tmp_path / "mail.db")
    yield connection
    connection.close()


def acceptance(number: int, *, size: int = 10) -> Acceptance:
    prepared = PreparedEmail(
        message_id=f"{number}@example.org",
        sender="app@example.org",
        recipients=("ada@example.net", f"r{number}@example.com", "bob@example.net"),
        content=b"%d" % number + b"x" * size,
        eight_bit=True,
    )
    return Acceptance(prepared, NOW, NOW, NOW + timedelta(days=1))


async def kept(database: sqlite3.Connection, *acceptances: Acceptance) -> tuple[Recent, list[int]]:
    """What is known of these once they are in the store, and their deliveries."""
    recent = Recent()
    dues = queue.enqueue(database, acceptances, None)
    recent.add(acceptances, dues, 1000.0)
    return recent, [due.delivery_id for due in dues]


def claim(database, ids, fresh, owner="me"):
    """The claims of what a store has kept."""
    [claims] = queue.Claim.merge(database, [queue.Claim(ids, owner, NOW, LEASE, fresh)])
    return claims


async def test_a_claim_of_what_was_just_accepted_is_the_same_as_if_it_were_read(database):
    """Every field, over several destinations, and deliveries of one message share it."""
    recent, ids = await kept(database, acceptance(1), acceptance(2))

    with_it = claim(database, ids, recent.take(ids))
    queue.release(database, with_it, NOW)
    without = claim(database, ids, {})

    assert with_it == without
    assert len(with_it) == 4
    assert with_it[0].message is with_it[1].message


async def test_what_is_kept_is_taken_instead_of_what_is_read(database):
    """The contents in the file are not even looked at."""
    recent, ids = await kept(database, acceptance(1))
    database.execute("DELETE FROM contents")

    assert len(claim(database, ids, recent.take(ids))) == 2


async def test_what_was_cancelled_since_is_not_claimed(database):
    """Rows C24, I11: the store decides, what is kept only saves the reading."""
    recent, ids = await kept(database, acceptance(1), acceptance(2))
    queue.cancel(database, "1@example.org", NOW)

    claims = claim(database, ids, recent.take(ids))

    assert {claimed.message.message_id for claimed in claims} == {"2@example.org"}


async def test_what_was_attempted_since_is_read_anew(database):
    """Its recipients may have results; only the store knows which."""
    recent, ids = await kept(database, acceptance(1))
    claim(database, ids, {}, owner="somebody")
    queue.take_up(database, NOW)  # as after a crash

    claims = claim(database, ids, recent.take(ids))

    assert [claimed.attempt for claimed in claims] == [2, 2]
    assert {recipient.state for claimed in claims for recipient in claimed.recipients} == {"deferred"}


async def test_ids_of_another_message_are_read_anew(database, tmp_path):
    """The file was put in another's place: what is kept is not what it holds."""
    recent, ids = await kept(database, acceptance(1))
    other = open_file(tmp_path / "other.db")
    queue.enqueue(other, [acceptance(9)], None)

    claims = claim(other, ids, recent.take(ids))
    other.close()

    assert {claimed.message.message_id for claimed in claims} == {"9@example.org"}


async def test_what_waits_for_its_time_is_not_kept(database):
    """It would only take the room of what is needed now."""
    later = replace(acceptance(1), due_at=NOW + timedelta(hours=1))
    recent, ids = await kept(database, later)

    assert recent.take(ids) == {}


async def test_no_more_is_kept_than_there_is_room_for(database, monkeypatch):
    """Memory stays bounded; what was taken makes room."""
    monkeypatch.setattr(recent_room, "ROOM", 50)
    one, two = acceptance(1, size=20), acceptance(2, size=20)
    recent, ids = await kept(database, one, two)  # two destinations each, 21 bytes: two fit
    assert list(recent.take(ids)) == ids[:2]

    recent.add([two], queue.enqueue(database, [acceptance(3)], None), 1000.0)

    assert len(recent.take([ids[-1] + 1, ids[-1] + 2])) == 2


async def test_what_nobody_claims_is_kept_no_longer_than_a_moment(database, monkeypatch):
    """Cancelled mail, say, does not fill the room for ever; what makes room is the oldest."""
    monkeypatch.setattr(recent_room, "ROOM", 63)
    recent, ids = await kept(database, acceptance(1, size=20))  # two destinations, 21 bytes each
    later = [queue.enqueue(database, [acceptance(number)], None) for number in (2, 3, 4)]
    recent.add([acceptance(2)], later[0], 1000.0 + KEPT_SECONDS)
    assert len(recent.take([ids[0]])) == 1  # it may be claimed still

    recent.add([acceptance(3)], later[1], 1000.0 + 2 * KEPT_SECONDS)
    assert recent.take(ids) == {}
    recent.add([acceptance(4)], later[2], 1000.0 + 3 * KEPT_SECONDS)

    assert len(recent.take([due.delivery_id for dues in later[1:] for due in dues])) == 4


async def test_a_store_that_delivers_claims_what_it_has_just_accepted_without_reading_it(
    store: SQLiteStorage, query: Query
):
    """The contents in the file are not even looked at."""
    await store.upcoming(10)
    dues = await store.enqueue([acceptance(1)])
    query("DELETE FROM contents")

    claims = await store.claim([due.delivery_id for due in dues], owner="me", now=NOW, lease_until=LEASE)

    assert [claimed.message.content for claimed in claims] == [acceptance(1).prepared.content] * 2


async def test_a_store_that_delivers_no_more_keeps_nothing(store: SQLiteStorage, monkeypatch: pytest.MonkeyPatch):
    """What was kept when delivery was paused would stay for as long as that lasts."""
    await store.upcoming(10)
    dues = await store.enqueue([acceptance(1)])
    monkeypatch.setattr(share, "IDLE_SECONDS", 0.0)
    dues += await store.enqueue([acceptance(2)])

    assert store._recent.take([due.delivery_id for due in dues]) == {}
