"""What is done for many rows at once leaves the same behind as row by row."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailstrom_async import PreparedEmail, Reply
from mailstrom_async._queue.recipient import cancelled
from mailstrom_async._status import Attempt, Deferred, Delivered, Outcome
from mailstrom_async.storage import Acceptance, Due, Record
from mailstrom_async.storage._sqlite import bulk, queue
from mailstrom_async.storage._sqlite.batches import make_batches
from mailstrom_async.storage._sqlite.errors import Unusual
from mailstrom_async.storage._sqlite.file import open_file
from mailstrom_async.storage._sqlite.rows import LARGE, to_result

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
REPLY = Reply(code=250, enhanced=None, text="taken as 1", command="end of data", host="mx.example.net")


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    """Two empty stores."""
    both = open_file(tmp_path / "bulk.db"), open_file(tmp_path / "rows.db")
    make_batches(both[0])
    yield both
    for connection in both:
        connection.close()


def acceptance(number: int, *recipients: str) -> Acceptance:
    prepared = PreparedEmail(
        message_id=f"{number}@example.org",
        sender="app@example.org",
        recipients=recipients or (f"r{number}@example.net", "jörg@example.com"),
        content=b"Subject: %d\r\n\r\n\x00\xff" % number + b"x" * number,
        smtputf8=True,
        written=tuple(f"Name <{recipient}>" for recipient in recipients) if number % 2 else (),
    )
    return Acceptance(prepared, NOW, NOW, NOW + timedelta(days=1))


def enqueued(connection: sqlite3.Connection, acceptances: list[Acceptance]) -> list[list[Due]]:
    """For each its entries."""
    return [dues for _, dues in bulk.enqueue(connection, acceptances)]


def dump(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = ("counters", "messages", "contents", "deliveries", "recipients", "attempts")
    return {table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables}


def record_of(delivery, *, deferred: bool) -> Record:
    if deferred:
        result = Deferred(cause="smtp", enhanced="4.2.0", reason='it said "später"', next_attempt_at=LATER)
        outcome = Outcome(state="deferred", cause="smtp", enhanced="4.2.0", reason="later")
    else:
        result = Delivered(reply=REPLY, host="mx.example.net", tls=None, delivered_at=LATER)
        outcome = Outcome(state="delivered", enhanced="2.0.0", reason="taken", reply=REPLY)
    addresses = [recipient.address for recipient in delivery.recipients]
    attempt = Attempt(
        started_at=NOW,
        duration=timedelta(seconds=1),
        recipients=tuple(addresses),
        destination=delivery.destination,
        outcome=dict.fromkeys(addresses, outcome),
    )
    return Record(delivery, dict.fromkeys(addresses, result), LATER if deferred else None, attempt)


def test_a_life_in_bulk_is_the_same_as_one_row_by_row(databases):
    """Accepted, claimed, deferred or delivered, completed: after each step the tables are the same."""
    one, other = databases
    acceptances = [acceptance(number) for number in range(1, 21)]
    dues = enqueued(one, acceptances)
    assert dues == [queue.enqueue(other, [accepted], None) for accepted in acceptances]
    assert dump(one) == dump(other)

    ids = [due.delivery_id for message in dues for due in message]
    claims = bulk.claim(one, ids, "me", NOW, LATER)
    assert claims == [each for one_id in ids for each in queue.Claim([one_id], "me", NOW, LATER)(other)]
    assert dump(one) == dump(other)

    records = [record_of(claim, deferred=claim.id % 3 == 0) for claim in claims]
    recorded = bulk.record(one, records)
    assert [recorded[claim.id] for claim in claims] == [queue._record(other, record) for record in records]
    assert dump(one) == dump(other)
    assert {True, False} == {made.completed for made in recorded.values()}


def test_what_is_claimed_as_it_is_accepted_is_as_if_it_was_claimed_afterwards(databases):
    """Alone, among others that are not, and row by row: the same claims, and the same is left behind."""
    one, other = databases
    acceptances = [acceptance(number, "a@example.net", "b@example.net") for number in range(1, 5)]
    operations = [
        queue.Enqueue(acceptances[:1], None),
        queue.EnqueueClaimed(acceptances[1], None, "me", LATER),
        queue.Enqueue(acceptances[2:3], None),
        queue.EnqueueClaimed(acceptances[3], None, "me", LATER),
    ]
    made = queue.Enqueue.merge(one, operations)
    dues = [queue.enqueue(other, [accepted], None) for accepted in acceptances]
    claims = queue.Claim([dues[1][0].delivery_id, dues[3][0].delivery_id], "me", NOW, LATER)(other)

    assert made == [dues[0], claims[0], dues[2], claims[1]]
    assert dump(one) == dump(other)
    assert [claim.message.message_id for claim in claims] == ["2@example.org", "4@example.org"]

    alone = queue.EnqueueClaimed(acceptance(5, "c@example.com"), None, "me", LATER)
    assert alone(other) == queue.Enqueue.merge(one, [alone])[0]
    assert dump(one) == dump(other)


def test_deliveries_are_numbered_on_over_messages():
    """One for each destination, and each content is found behind those before it."""
    rows = bulk.rows_of([acceptance(1), acceptance(2, "a@example.net", "b@example.net")], 10, 100)

    assert [(row[0], row[8], row[9]) for row in rows.messages] == [(10, 1, 17), (11, 18, 18)]
    assert [row[:3] for row in rows.deliveries] == [
        (100, 10, "example.net"),
        (101, 10, "example.com"),
        (102, 11, "example.net"),
    ]
    assert [row[:3] for row in rows.recipients[2:]] == [(102, 0, "a@example.net"), (102, 1, "b@example.net")]
    assert rows.next_delivery == 103
    assert [[due.delivery_id for due in dues] for dues in rows.dues] == [[100, 101], [102]]


def test_a_known_message_makes_a_batch_unusual(databases):
    """Each is then accepted by itself, and only the known one is refused."""
    one, _ = databases
    enqueued(one, [acceptance(1)])
    for batch in ([acceptance(2), acceptance(1)], [acceptance(3), acceptance(3)]):
        with pytest.raises(Unusual):
            queue.Enqueue.merge(one, [queue.Enqueue([accepted], None) for accepted in batch])

    assert len(dump(one)["messages"]) == 1


def test_only_what_is_due_and_nobodys_is_claimed(databases):
    """As one by one: what is claimed, not yet due, unknown or without its body is passed over."""
    one, _ = databases
    (first,), (second,), (third,), (fourth,) = enqueued(one, [acceptance(n, "a@example.net") for n in range(1, 5)])
    one.execute("UPDATE deliveries SET due_at = due_at + 1 WHERE id = ?", (second.delivery_id,))
    one.execute("DELETE FROM contents WHERE message = 3")
    bulk.claim(one, [fourth.delivery_id], "me", NOW, LATER)
    ids = [due.delivery_id for due in (first, second, third, fourth)]
    claims = bulk.claim(one, [*ids, 99, first.delivery_id], "you", NOW, LATER)

    assert [claim.id for claim in claims] == [first.delivery_id]


def test_lost_claims_and_cancelled_messages_are_left_to_the_rows(databases):
    """What needs a closer look is not touched."""
    one, _ = databases
    dues = enqueued(one, [acceptance(n, "a@example.net") for n in range(1, 5)])
    claims = bulk.claim(one, [due.delivery_id for (due,) in dues], "me", NOW, LATER)
    one.execute("UPDATE deliveries SET owner = 'you' WHERE id = ?", (claims[0].id,))
    queue.cancel(one, "2@example.org", NOW)
    before = dump(one)["recipients"][:2]
    recorded = bulk.record(one, [record_of(claim, deferred=False) for claim in claims])

    assert sorted(recorded) == [claims[2].id, claims[3].id]
    assert dump(one)["recipients"][:2] == before


def test_a_result_for_whom_nobody_waits_undoes_the_whole_batch(databases):
    """A final result stays: row by row it is seen which one that is, and the others are written."""
    one, _ = databases
    dues = enqueued(one, [acceptance(n, "a@example.net") for n in range(1, 4)])
    claims = bulk.claim(one, [due.delivery_id for (due,) in dues], "me", NOW, LATER)
    one.execute("UPDATE recipients SET state = 'delivered' WHERE delivery = ?", (claims[1].id,))
    before = dump(one)
    records = [record_of(claim, deferred=False) for claim in claims]

    with pytest.raises(sqlite3.IntegrityError, match="no recipient that waits"):
        bulk.record(one, records)
    assert dump(one) == before

    assert all(recorded.accepted for recorded in queue.Recording(records)(one))
    assert [row[4] for row in dump(one)["recipients"]] == ["delivered"] * 3


def test_several_deliveries_of_a_message_that_end_together_complete_it_once(databases):
    """The last of them tells that it is completed, and the queue is shorter by one message."""
    one, _ = databases
    [dues] = enqueued(one, [acceptance(1, "a@example.net", "b@example.com", "c@example.org")])
    claims = bulk.claim(one, [due.delivery_id for due in dues], "me", NOW, LATER)
    recorded = bulk.record(one, [record_of(claim, deferred=False) for claim in claims])

    assert [recorded[claim.id].completed for claim in claims] == [False, False, True]
    assert dump(one)["counters"][0][1] == 0
    assert dump(one)["contents"] == []


@pytest.mark.parametrize("reason", ["a\0b", 'ein "später" \U0001f4ec', "{}[],"])
def test_a_reason_may_hold_whatever_a_text_does(databases, reason):
    """Also what means something to SQLite's JSON, as NUL does: it is stored as row by row."""
    one, other = databases
    stored = []
    for connection, enqueue, record in (
        (one, enqueued, lambda records: bulk.record(one, records)),
        (other, lambda db, both: queue.enqueue(db, both, None), lambda records: queue.Recording(records)(other)),
    ):
        enqueue(connection, [acceptance(1, "a@example.net"), acceptance(2, "a@example.net")])
        claims = queue.Claim([1, 2], "me", NOW, LATER)(connection)
        ended = cancelled(NOW).model_copy(update={"reason": reason})
        record([record_of(claims[0], deferred=False), Record(claims[1], {"a@example.net": ended}, None, None)])
        stored.append(dump(connection))

    assert stored[0] == stored[1]
    assert to_result(stored[0]["recipients"][1][6]).reason == reason


def test_what_has_no_json_is_unusual(databases):
    """Lone surrogates are no text to SQLite: they go row by row, where they are handled."""
    one, _ = databases
    enqueued(one, [acceptance(1, "a@example.net"), acceptance(2, "a@example.net")])
    claims = bulk.claim(one, [1, 2], "me", NOW, LATER)
    bad = cancelled(NOW).model_copy(update={"reason": "a\ud800b"})

    with pytest.raises(Unusual):
        bulk.record(one, [record_of(claims[0], deferred=False), Record(claims[1], {"a@example.net": bad}, None, None)])


@pytest.mark.parametrize("size", [LARGE, LARGE + 1, 3 * LARGE + 7])
def test_a_large_content_is_stored_and_claimed_byte_for_byte(databases, size):
    """Row C19: it goes in and out piece by piece, without a copy for SQLite; alone or in company."""
    connection, _ = databases
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    large = acceptance(1, "a@example.net")
    large = replace(large, prepared=replace(large.prepared, content=content))
    if size > LARGE:
        with pytest.raises(Unusual):
            enqueued(connection, [large])
    dues = queue.Enqueue([large, acceptance(2, "a@example.net")], None)(connection)
    [claims] = queue.Claim.merge(connection, [queue.Claim([due.delivery_id for due in dues], "me", NOW, LATER)])

    assert {claim.message.message_id: claim.message.content for claim in claims}["1@example.org"] == content
    assert len(claims) == 2
