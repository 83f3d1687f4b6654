"""What a process may ask of the one that owns the file. Each call runs in the owner, wherever it came from."""

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import TypeAdapter

from mailstrom_async._envelope import Due, Lane, PreparedEmail
from mailstrom_async._immutable import immutable
from mailstrom_async._status import Attempt, MessageStatus
from mailstrom_async.storage._sqlite import queue, reads
from mailstrom_async.storage._sqlite.operations import Operation
from mailstrom_async.storage._sqlite.rows import to_integer, to_time
from mailstrom_async.storage._sqlite.wire import Packed
from mailstrom_async.storage.base import Acceptance

T = TypeVar("T")


class Call(ABC, Generic[T]):
    """One operation of the store, able to travel to the owner, and its answer back. Its fields are the arguments.

    Attributes:
        kind: Its number on the wire.
        answers: The type of its answers, as pydantic takes it.
        writes: It changes the queue.
        hastens: After it, deliveries may be due sooner than the owner's engine knows.
    """

    __slots__ = ()
    kind: ClassVar[int]
    answers: ClassVar[object]
    writes: ClassVar[bool] = False
    hastens: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """The bytes that it writes, about, if they are many."""
        return 0

    @abstractmethod
    def run(self, connection: sqlite3.Connection) -> T:
        """Do it, in the owner, within a transaction."""

    @property
    def operation(self) -> Operation[T]:
        """What the owner's `Operations` are to run; one that can be merged with its neighbours, where there is such."""
        return self.run

    def packed(self) -> Packed:
        return Packed(_json(type(self)).dump_json(self, warnings="error"))  # of another type, it would be refused there

    @classmethod
    def unpacked(cls, packed: Packed) -> Self:
        """Raises ValueError for what `packed` never gives."""
        call: Self = _json(cls).validate_json(packed.head)
        return call

    def pack_answer(self, answer: T) -> Packed:
        return Packed(_json(self.answers).dump_json(answer))

    def unpack_answer(self, packed: Packed) -> T:
        answer: T = _json(self.answers).validate_json(packed.head)
        return answer

    def again(self) -> "Call[T]":
        """The call to make if nobody knows whether this one was done."""
        return self


@immutable()
class Enqueue(Call[list[Due]]):
    """Store messages.

    Attributes:
        repeated: It was sent to an owner that went away over it, and may have been done.
    """

    acceptances: Sequence[Acceptance]
    queue_size: int | None
    repeated: bool = False

    kind = 2
    writes = True
    hastens = True

    @property
    def size(self) -> int:
        return sum([len(acceptance.prepared.content) for acceptance in self.acceptances])

    def run(self, connection: sqlite3.Connection) -> list[Due]:
        if self.repeated and all(_is_stored(connection, acceptance) for acceptance in self.acceptances):
            return []  # done the first time; whoever took the file over since has found it there
        return queue.enqueue(connection, self.acceptances, self.queue_size)

    @property
    def operation(self) -> Operation[list[Due]]:
        return self.run if self.repeated else queue.Enqueue(self.acceptances, self.queue_size)

    def packed(self) -> Packed:
        told = [_to_row(acceptance) for acceptance in self.acceptances]
        head = json.dumps([self.queue_size, self.repeated, told]).encode()
        return Packed(head, b"".join(acceptance.prepared.content for acceptance in self.acceptances))

    @classmethod
    def unpacked(cls, packed: Packed) -> Self:
        queue_size, repeated, told = _json(tuple[int | None, bool, list[_Row]]).validate_json(packed.head)
        acceptances: list[Acceptance] = []
        at = 0
        for row in told:
            size = row[-1]
            acceptances.append(_to_acceptance(row, packed.body[at : at + size]))  # no copy if it is all of it
            at += size
        if at != len(packed.body):
            raise ValueError("the contents are longer or shorter than announced")
        return cls(acceptances, queue_size, repeated)

    def pack_answer(self, answer: list[Due]) -> Packed:
        return Packed()

    def unpack_answer(self, packed: Packed) -> list[Due]:
        return []  # when they are due concerns only the owner, who delivers them

    def again(self) -> "Enqueue":
        return replace(self, repeated=True)


@dataclass(frozen=True, slots=True)
class Status(Call[MessageStatus | None]):
    message_id: str

    kind = 3
    answers = MessageStatus | None

    def run(self, connection: sqlite3.Connection) -> MessageStatus | None:
        return reads.status(connection, self.message_id)


@dataclass(frozen=True, slots=True)
class Recent(Call[list[MessageStatus]]):
    since: datetime | None
    limit: int

    kind = 4
    answers = list[MessageStatus]

    def run(self, connection: sqlite3.Connection) -> list[MessageStatus]:
        return reads.recent(connection, self.since, self.limit)


@dataclass(frozen=True, slots=True)
class Attempts(Call[list[Attempt] | None]):
    message_id: str

    kind = 5
    answers = list[Attempt] | None

    def run(self, connection: sqlite3.Connection) -> list[Attempt] | None:
        return reads.attempts(connection, self.message_id)


@dataclass(frozen=True, slots=True)
class Prepared(Call[PreparedEmail | None]):
    message_id: str

    kind = 6

    def run(self, connection: sqlite3.Connection) -> PreparedEmail | None:
        return reads.prepared(connection, self.message_id)

    def pack_answer(self, answer: PreparedEmail | None) -> Packed:
        if answer is None:
            return Packed(b"null")
        content = answer.content
        return Packed(_json(PreparedEmail).dump_json(answer, exclude={"content"}), content)

    def unpack_answer(self, packed: Packed) -> PreparedEmail | None:
        told: dict[str, Any] | None = json.loads(packed.head)
        if told is None:
            return None
        prepared: PreparedEmail = _json(PreparedEmail).validate_python({**told, "content": packed.body})
        return prepared


@dataclass(frozen=True, slots=True)
class Cancel(Call[MessageStatus | None]):
    message_id: str
    now: datetime

    kind = 7
    answers = MessageStatus | None
    writes = True

    def run(self, connection: sqlite3.Connection) -> MessageStatus | None:
        return queue.cancel(connection, self.message_id, self.now)


@dataclass(frozen=True, slots=True)
class Hasten(Call[list[Due] | None]):
    message_id: str
    now: datetime

    kind = 8
    writes = True
    hastens = True

    def run(self, connection: sqlite3.Connection) -> list[Due] | None:
        return queue.hasten(connection, self.message_id, self.now)

    def pack_answer(self, answer: list[Due] | None) -> Packed:
        return Packed(json.dumps(answer is not None).encode())

    def unpack_answer(self, packed: Packed) -> list[Due] | None:
        return [] if json.loads(packed.head) else None  # as with Enqueue


@dataclass(frozen=True, slots=True)
class Purge(Call[int]):
    """Forget some; to be repeated until there are none."""

    completed_before: datetime

    kind = 9
    answers = int
    writes = True

    def run(self, connection: sqlite3.Connection) -> int:
        return queue.purge(connection, self.completed_before)


@dataclass(frozen=True, slots=True)
class GiveSpaceBack(Call[bool]):
    kind = 10
    answers = bool
    writes = True

    def run(self, connection: sqlite3.Connection) -> bool:
        return queue.give_space_back(connection)


@dataclass(frozen=True, slots=True)
class Offer(Call[bool]):
    """A process with a running engine offers to deliver in place of the owner: does anything stand against that?"""

    kind = 11
    answers = bool

    def run(self, connection: sqlite3.Connection) -> bool:
        claimed = "SELECT EXISTS (SELECT 1 FROM deliveries WHERE owner IS NOT NULL)"
        return bool(connection.execute(claimed).fetchone()[0])


@dataclass(frozen=True, slots=True)
class Arrived(Call[int]):
    """Was this delivery, which a caller has written into a transaction of its own, committed? If so, or if another one
    has got its number meanwhile, the answer is the number of the next one; else 0."""

    delivery_id: int

    kind = 12
    answers = int
    hastens = True

    def run(self, connection: sqlite3.Connection) -> int:
        (reached,) = connection.execute("SELECT next_delivery FROM counters").fetchone()
        return int(reached) if reached > self.delivery_id else 0


CALLS: dict[int, type[Call[Any]]] = {
    call.kind: call
    for call in (Enqueue, Status, Recent, Attempts, Prepared, Cancel, Hasten, Purge, GiveSpaceBack, Offer, Arrived)
}

_Row = tuple[str, str, tuple[str, ...], tuple[str, ...], bool, bool, int, int, int, Lane, int]
"""An acceptance but for the content, of which only the size is told."""


def _to_row(acceptance: Acceptance) -> _Row:
    prepared = acceptance.prepared
    return (
        prepared.message_id,
        prepared.sender,
        prepared.recipients,
        prepared.written,
        prepared.smtputf8,
        prepared.eight_bit,
        to_integer(acceptance.queued_at),
        to_integer(acceptance.due_at),
        to_integer(acceptance.expires_at),
        acceptance.lane,
        len(prepared.content),
    )


def _to_acceptance(row: _Row, content: bytes) -> Acceptance:
    message_id, sender, recipients, written, smtputf8, eight_bit, queued_at, due_at, expires_at, lane, _ = row
    prepared = PreparedEmail(message_id, sender, recipients, content, smtputf8, eight_bit, written)
    return Acceptance(prepared, to_time(queued_at), to_time(due_at), to_time(expires_at), lane)


def _is_stored(connection: sqlite3.Connection, acceptance: Acceptance) -> bool:
    """Whether this very acceptance is in the store, and not another one of the same Message-ID.

    Two calls that differ are told apart by the microsecond in which they were accepted, and by what they hold.
    """
    prepared = acceptance.prepared
    found: tuple[str, int, int, bytes | None] | None = connection.execute(
        "SELECT sender, queued_at, expires_at, content"
        " FROM messages LEFT JOIN contents ON message = key WHERE message_id = ?",
        (prepared.message_id,),
    ).fetchone()
    if found is None:
        return False
    sender, queued_at, expires_at, content = found
    return (
        (sender, queued_at, expires_at)
        == (prepared.sender, to_integer(acceptance.queued_at), to_integer(acceptance.expires_at))
        # Without a content it is completed already.
        and content in (None, prepared.content)
    )


@cache
def _json(kind: Any) -> TypeAdapter[Any]:
    # Made when first used: most processes own their file and never need them.
    return TypeAdapter(kind)
