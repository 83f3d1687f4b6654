"""What a batch writes, as triggers of temporary views: an INSERT into such a view does all of it in one step.

Each step of a statement lets go of the interpreter's lock and has to get it back from the event loop's thread. With a
statement for each table, a batch spent more time on that than on its rows, and made the event loop wait as often.

The values are JSON: arrays of arrays, whose columns are numbered here as bulk.py writes them. A trigger fails as
a whole, with nothing done.
"""

import sqlite3


def make_batches(connection: sqlite3.Connection) -> None:
    """Give a connection its views. They belong to it, and are no part of the file."""
    for statement in (_ACCEPTED, _ACCEPT, _HELD, _RECORDED, _RECORD):
        connection.execute(statement)


def column(index: int) -> str:
    """A column of the array that `json_each(...) AS j` gives."""
    return f"json_extract(j.value, '$[{index}]')"


def columns(number: int) -> str:
    return ", ".join(column(index) for index in range(number))


def text(start: int, size: int) -> str:
    """A text in `NEW.texts`, all of which are one blob: as a part of the JSON it would be read again for each column,
    and where a character begins in a long text SQLite finds by counting."""
    return f"CAST(substr(NEW.texts, {column(start)}, {column(size)}) AS TEXT)"


# messages: key, message_id, sender, smtputf8, eight_bit, queued_at, expires_at, number of recipients, where its content
# begins in `contents`, its size. deliveries: id, message, destination, size, due_at, lane. recipients: delivery,
# position, address, written.
_ACCEPTED = """
    CREATE TEMP VIEW accepted (messages, contents, deliveries, recipients, next_delivery) AS SELECT 0, 0, 0, 0, 0
"""

_ACCEPT = f"""
    CREATE TEMP TRIGGER accept INSTEAD OF INSERT ON accepted BEGIN
        INSERT INTO messages SELECT {columns(8)}, NULL, NULL FROM json_each(NEW.messages) AS j;
        INSERT INTO contents SELECT {column(0)}, substr(NEW.contents, {column(8)}, {column(9)})
            FROM json_each(NEW.messages) AS j;
        INSERT INTO deliveries (id, message, destination, size, due_at, lane)
            SELECT {columns(6)} FROM json_each(NEW.deliveries) AS j;
        INSERT INTO recipients (delivery, position, address, written)
            SELECT {columns(3)}, nullif({column(3)}, {column(2)}) FROM json_each(NEW.recipients) AS j;
        UPDATE counters SET unfinished = unfinished + json_array_length(NEW.messages),
            next_message = next_message + json_array_length(NEW.messages), next_delivery = NEW.next_delivery;
    END
"""

# Those of the records whose claim holds, and whose message was not cancelled.
_HELD = """
    CREATE TEMP TABLE held (
        delivery INTEGER PRIMARY KEY,
        message INTEGER NOT NULL,
        due_at INTEGER,
        final INTEGER NOT NULL,          -- recipients that are final now
        final_at INTEGER,
        completes INTEGER NOT NULL DEFAULT 0
    ) STRICT
"""

# records: delivery, owner, attempt, due_at, number of recipients that are final now, since when. attempts: delivery,
# started_at, where its JSON begins in `texts`, its size. results: delivery, address, state, where its JSON begins, its
# size, whether an attempt is counted.
_RECORDED = "CREATE TEMP VIEW recorded (records, attempts, results, texts) AS SELECT 0, 0, 0, 0"

_RECORD = f"""
    CREATE TEMP TRIGGER record INSTEAD OF INSERT ON recorded BEGIN
        DELETE FROM held;
        INSERT INTO held (delivery, message, due_at, final, final_at)
            SELECT d.id, d.message, {column(3)}, {column(4)}, {column(5)}
            FROM json_each(NEW.records) AS j
            CROSS JOIN deliveries AS d ON d.id = {column(0)} CROSS JOIN messages AS m ON m.key = d.message
            WHERE d.owner = {column(1)} AND d.attempt = {column(2)} AND m.cancelled_at IS NULL;
        INSERT INTO attempts (message, started_at, attempt) SELECT h.message, {column(1)}, {text(2, 3)}
            FROM json_each(NEW.attempts) AS j CROSS JOIN held AS h ON h.delivery = {column(0)};
        UPDATE recipients SET state = new.state, result = new.result, attempts = attempts + new.counted
            FROM (SELECT {column(0)} AS delivery, {column(1)} AS address, {column(2)} AS state, {text(3, 4)} AS result,
                {column(5)} AS counted FROM json_each(NEW.results) AS j) AS new
            WHERE recipients.delivery = new.delivery AND recipients.address = new.address
                AND recipients.state NOT IN ('delivered', 'failed') AND new.delivery IN (SELECT delivery FROM held);
        SELECT raise(ABORT, 'a result has no recipient that waits for it') WHERE changes() <> (
            SELECT count(*) FROM json_each(NEW.results) AS j CROSS JOIN held AS h ON h.delivery = {column(0)});
        UPDATE deliveries SET owner = NULL, claimed_at = NULL,
            due_at = (SELECT held.due_at FROM held WHERE held.delivery = deliveries.id)
            WHERE id IN (SELECT delivery FROM held);
        UPDATE messages SET unfinished = unfinished - new.final,
            completed_at = CASE WHEN unfinished <= new.final THEN new.at END
            FROM (SELECT message AS key, sum(final) AS final, max(final_at) AS at
                FROM held WHERE final > 0 GROUP BY message) AS new
            WHERE messages.key = new.key AND completed_at IS NULL;
        UPDATE held SET completes = 1 WHERE message IN (SELECT m.key FROM held AS h CROSS JOIN messages AS m
            ON m.key = h.message WHERE m.completed_at IS NOT NULL AND EXISTS (
            SELECT 1 FROM contents WHERE contents.message = m.key));
        DELETE FROM contents WHERE message IN (SELECT message FROM held WHERE completes);
        UPDATE counters SET unfinished = unfinished - changes();
    END
"""
