"""Between rows and words: recipients, messages, results."""

from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import TypeAdapter

from mailstrom_async._envelope import Due, PendingRecipient, QueuedMessage, RecipientState
from mailstrom_async._status import DeliveryResult, Queued
from mailstrom_async.storage._postgres.connection import Row, Session
from mailstrom_async.storage._rules import lane_of

UNFINISHED = "state NOT IN ('delivered', 'failed')"

_QUEUED = Queued()
_result: TypeAdapter[DeliveryResult] = TypeAdapter(DeliveryResult)


def can_be_text(text: str) -> bool:
    """Whether PostgreSQL can hold a text at all: it has no NUL, and no half of a surrogate pair."""
    return "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def to_result(text: str | None) -> DeliveryResult:
    return _QUEUED if text is None else _result.validate_json(text)


def to_due(row: Row) -> Due:
    """An entry from (due_at, id, destination, size, lane)."""
    due_at, delivery_id, destination, size, lane = row
    return Due(due_at, delivery_id, destination, size, lane_of(lane))


async def pending_recipients(session: Session, deliveries: Sequence[int]) -> dict[int, tuple[PendingRecipient, ...]]:
    """The recipients of deliveries that are not final, in the order of the envelope."""
    rows = await session.fetch(
        "SELECT delivery, address, state, attempts FROM mailstrom.recipients"  # noqa: S608 - no text from outside
        f" WHERE delivery = ANY($1::bigint[]) AND {UNFINISHED} ORDER BY delivery, position",
        deliveries,
    )
    pending: dict[int, list[PendingRecipient]] = {}
    for delivery, address, state, attempts in rows:
        pending.setdefault(delivery, []).append(PendingRecipient(address, cast(RecipientState, state), attempts))
    return {delivery: tuple(recipients) for delivery, recipients in pending.items()}


async def queued_messages(session: Session, lanes: Mapping[int, int]) -> dict[int, QueuedMessage]:
    """Messages with their content; those are missing whose content is.

    Args:
        lanes: The lane of each, by its key.
    """
    rows = await session.fetch(
        "SELECT key, message_id, sender, content, smtputf8, eight_bit, queued_at, expires_at"
        " FROM mailstrom.messages JOIN mailstrom.contents ON message = key WHERE key = ANY($1::bigint[])",
        list(lanes),
    )
    return {
        key: QueuedMessage(
            key=key,
            message_id=message_id,
            sender=sender,
            content=content,
            smtputf8=smtputf8,
            eight_bit=eight_bit,
            queued_at=queued_at,
            expires_at=expires_at,
            lane=lane_of(lanes[key]),
        )
        for key, message_id, sender, content, smtputf8, eight_bit, queued_at, expires_at in rows
    }
