"""Accepting mail: one statement for many messages, and many callers for one statement."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mailstrom_async._envelope import LANES, domain_of
from mailstrom_async._errors import AlreadyQueued, MailstromError, QueueFull, StorageError
from mailstrom_async._message.ids import first_repeated
from mailstrom_async.storage._postgres.connection import Connections, Session
from mailstrom_async.storage._postgres.errors import ConnectionLost
from mailstrom_async.storage._postgres.rows import to_due
from mailstrom_async.storage.base import Acceptance, Due

BATCH = 256
BATCH_BYTES = 4 * 1024 * 1024
AT_A_TIME = 2
"""Batches under way at a time: while the server commits one, the next is on the wire."""

PARAMETERS = {
    "message_ids": "text[]",
    "senders": "text[]",
    "smtputf8": "boolean[]",
    "eight_bit": "boolean[]",
    "queued_at": "timestamptz[]",
    "expires_at": "timestamptz[]",
    "due_at": "timestamptz[]",
    "lanes": "smallint[]",
    "counts": "integer[]",
    "contents": "bytea[]",
    "numbers": "integer[]",
    "destinations": "text[]",
    "positions": "integer[]",
    "addresses": "text[]",
    "written": "text[]",
}
"""Of `STATEMENT`, with their types; the first ten have an entry for each message, the next five for each recipient."""

STATEMENT = """
    WITH mail AS MATERIALIZED (
        SELECT * FROM ROWS FROM (
            unnest({message_ids}), unnest({senders}), unnest({smtputf8}), unnest({eight_bit}), unnest({queued_at}),
            unnest({expires_at}), unnest({due_at}), unnest({lanes}), unnest({counts}), unnest({contents})
        ) WITH ORDINALITY AS mail (
            message_id, sender, smtputf8, eight_bit, queued_at, expires_at, due_at, lane, recipients, content, number)
    ), rcpt AS MATERIALIZED (
        SELECT * FROM ROWS FROM (
            unnest({numbers}), unnest({destinations}), unnest({positions}), unnest({addresses}), unnest({written})
        ) AS rcpt (number, destination, position, address, written)
    ), inserted AS (
        INSERT INTO mailstrom.messages
            (message_id, sender, smtputf8, eight_bit, queued_at, expires_at, unfinished)
        SELECT message_id, sender, smtputf8, eight_bit, queued_at, expires_at, recipients FROM mail ORDER BY number
        ON CONFLICT (message_id) DO NOTHING
        RETURNING key, message_id
    ), new AS MATERIALIZED (
        SELECT key, number, due_at, lane, content FROM inserted JOIN mail USING (message_id)
    ), bodies AS (
        INSERT INTO mailstrom.contents (message, content) SELECT key, content FROM new
    ), waiting AS (
        INSERT INTO mailstrom.deliveries (message, destination, size, due_at, lane)
        SELECT key, destination, octet_length(content), due_at, lane
        FROM new
        JOIN (SELECT number, destination, min(position) AS first FROM rcpt GROUP BY number, destination) AS line
            USING (number)
        ORDER BY number, first
        RETURNING id, message, destination, size, due_at, lane
    ), lined_up AS (
        INSERT INTO mailstrom.recipients (delivery, position, address, written)
        SELECT waiting.id, position, address, nullif(rcpt.written, address)
        FROM waiting
        JOIN new ON new.key = waiting.message
        JOIN rcpt ON rcpt.number = new.number AND rcpt.destination = waiting.destination
    )
    SELECT new.number, waiting.due_at, waiting.id, waiting.destination, waiting.size, waiting.lane
    FROM waiting JOIN new ON new.key = waiting.message ORDER BY waiting.id
"""
"""Stores messages whose Message-ID is not known yet, and leaves out those whose is. Its parameters are written as each
driver wants them; without them it is the same for our own connections and for our callers'."""

STATEMENT_HERE = STATEMENT.format(
    **{name: f"CAST(${number} AS {type_})" for number, (name, type_) in enumerate(PARAMETERS.items(), 1)}
)

_KNOWN = "SELECT message_id FROM mailstrom.messages WHERE message_id = ANY($1::text[])"

# One at a time, or two could each see the last free place.
_LOCK_SIZE = "SELECT pg_advisory_xact_lock(hashtextextended('mailstrom_async size of ' || $1, 0))"

SIZE = """
    SELECT count(*) FROM (SELECT FROM mailstrom.messages WHERE completed_at IS NULL LIMIT $1) AS unfinished
"""


def parameters(acceptances: Sequence[Acceptance]) -> Mapping[str, object]:
    """The values of `PARAMETERS` for what is to be stored."""
    prepared = [acceptance.prepared for acceptance in acceptances]
    recipients = [
        (number, domain_of(address), position, address, written)
        for number, email in enumerate(prepared, 1)
        for position, (address, written) in enumerate(zip(email.recipients, email.written, strict=True))
    ]
    numbers, destinations, positions, addresses, writings = map(list, zip(*recipients, strict=True))
    return {
        "message_ids": [email.message_id for email in prepared],
        "senders": [email.sender for email in prepared],
        "smtputf8": [email.smtputf8 for email in prepared],
        "eight_bit": [email.eight_bit for email in prepared],
        "queued_at": [acceptance.queued_at for acceptance in acceptances],
        "expires_at": [acceptance.expires_at for acceptance in acceptances],
        "due_at": [acceptance.due_at for acceptance in acceptances],
        "lanes": [LANES.index(acceptance.lane) for acceptance in acceptances],
        "counts": [len(email.recipients) for email in prepared],
        "contents": [email.content for email in prepared],
        "numbers": numbers,
        "destinations": destinations,
        "positions": positions,
        "addresses": addresses,
        "written": writings,
    }


class _Waiting(NamedTuple):
    acceptances: Sequence[Acceptance]
    queue_size: int | None
    future: asyncio.Future[list[Due]]

    @property
    def size(self) -> int:
        return sum(len(acceptance.prepared.content) for acceptance in self.acceptances)

    @property
    def message_ids(self) -> list[str]:
        return [acceptance.prepared.message_id for acceptance in self.acceptances]

    def settle(self, outcome: list[Due] | MailstromError) -> None:
        if self.future.done():  # cancelled meanwhile
            return
        if isinstance(outcome, MailstromError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


_Outcomes = list[list[Due] | MailstromError]


class Accepting:
    """Callers wait here until one of a few tasks takes all of them into its next statement: they share its commit."""

    def __init__(self, connections: Connections, on_stored: Callable[[], None]) -> None:
        self._connections = connections
        self._on_stored = on_stored
        self._queue: deque[_Waiting] = deque()
        self._serving: set[asyncio.Task[None]] = set()

    async def accept(self, acceptances: Sequence[Acceptance], queue_size: int | None) -> list[Due]:
        """Store messages, all or none; returns after the commit. Raises as `Storage.enqueue` does."""
        if not acceptances:
            return []
        waiting = _Waiting(acceptances, queue_size, asyncio.get_running_loop().create_future())
        if (twice := first_repeated(waiting.message_ids)) is not None:
            raise AlreadyQueued(twice)
        self._queue.append(waiting)
        if len(self._serving) < AT_A_TIME:
            task = asyncio.create_task(self._serve())
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        return await waiting.future

    async def finish(self) -> None:
        """Return when all that waits is stored or refused."""
        while self._serving:
            await asyncio.wait(set(self._serving))

    async def _serve(self) -> None:
        while batch := self._take():
            outcomes = await self._outcomes(batch)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.settle(outcome)
            if any(isinstance(outcome, list) for outcome in outcomes):
                self._on_stored()

    def _take(self) -> list[_Waiting]:
        """The next batch. Single messages go together; several that must be stored all or none go alone."""
        batch: list[_Waiting] = []
        seen: set[str] = set()
        size = 0
        while self._queue and len(batch) < BATCH and size < BATCH_BYTES:
            first = self._queue[0]
            if first.future.cancelled():
                # Whoever gave up before this moment finds nothing done; later it is done all the same.
                self._queue.popleft()
                continue
            alone = len(first.acceptances) > 1
            if batch and (alone or first.queue_size != batch[0].queue_size or not seen.isdisjoint(first.message_ids)):
                break
            batch.append(self._queue.popleft())
            if alone:
                break
            seen.update(first.message_ids)
            size += first.size
        # All processes in one order, so that two with the same Message-IDs never wait for each other.
        batch.sort(key=lambda waiting: waiting.message_ids[0])
        return batch

    async def _outcomes(self, batch: Sequence[_Waiting]) -> _Outcomes:
        """Store a batch; for each of it the entries, or the error to raise."""

        async def store(session: Session) -> _Outcomes:
            return await self._store(session, batch)

        try:
            if len(batch[0].acceptances) > 1 or batch[0].queue_size is not None:
                return await self._connections.transact(store)
            return await self._connections.run(store)
        except ConnectionLost as lost:
            return [_unanswered(lost, waiting.message_ids) for waiting in batch]
        except MailstromError as refusal:
            return [refusal for _ in batch]
        except Exception as fault:  # noqa: BLE001 - whatever it is, this task goes on and the callers hear of it
            error = StorageError(f"{self._connections.address.name}: nothing of this was stored: {fault!r}")
            return [error for _ in batch]

    async def _store(self, session: Session, batch: Sequence[_Waiting]) -> _Outcomes:
        queue_size = batch[0].queue_size
        if queue_size is None:
            return await self._insert(session, batch)
        await session.execute(_LOCK_SIZE, session.schema)
        [(unfinished,)] = await session.fetch(SIZE, queue_size)
        room = queue_size - unfinished
        if sum(len(waiting.acceptances) for waiting in batch) <= room:
            return await self._insert(session, batch)
        # Who repeats a message is told that it is known, and not to come again later.
        asked = [message_id for waiting in batch for message_id in waiting.message_ids]
        known = {row[0] for row in await session.fetch(_KNOWN, asked)}
        fitting = [waiting for waiting in batch if known.isdisjoint(waiting.message_ids)][:room]
        if sum(len(waiting.acceptances) for waiting in fitting) > room:
            fitting = []
        stored = iter(await self._insert(session, fitting) if fitting else [])
        return [
            next(stored)
            if waiting in fitting
            else AlreadyQueued(repeated)
            if (repeated := next((one for one in waiting.message_ids if one in known), None)) is not None
            else QueueFull(queue_size)
            for waiting in batch
        ]

    async def _insert(self, session: Session, batch: Sequence[_Waiting]) -> _Outcomes:
        acceptances = [acceptance for waiting in batch for acceptance in waiting.acceptances]
        values = parameters(acceptances)
        stored: dict[int, list[Due]] = {}
        for number, *entry in await session.fetch(STATEMENT_HERE, *values.values()):
            stored.setdefault(number, []).append(to_due(entry))
        missing = [
            acceptance.prepared.message_id for number, acceptance in enumerate(acceptances, 1) if number not in stored
        ]
        if len(batch) == 1:
            if missing:
                raise AlreadyQueued(missing[0])  # and undo the rest of it
            return [[due for entries in stored.values() for due in entries]]
        return [stored.get(number, AlreadyQueued(waiting.message_ids[0])) for number, waiting in enumerate(batch, 1)]


def _unanswered(lost: ConnectionLost, message_ids: Sequence[str]) -> StorageError:
    if not lost.midway:
        return StorageError(f"{lost}; nothing of this was stored: send it again")
    # Whoever let us choose the Message-ID has it from nowhere else.
    first, *more = message_ids
    named = f"Message-IDs, of which {first!r} is the first of {len(message_ids)}" if more else f"Message-ID {first!r}"
    return StorageError(
        f"{lost}; whether this was stored is not known: send it again, with the same {named}, "
        "and AlreadyQueued means that it was"
    )
