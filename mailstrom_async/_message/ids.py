"""Message-IDs and dates: what a message is known by, and when it was written."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from mailstrom_async._message.place import Place

ID_LIMIT = 900
"""Characters, so that "References: " and the angle brackets fit in the line."""

# RFC 5322 section 3.6.4.
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_NEW_ID = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*@(?:{_ATEXT}(?:\.{_ATEXT})*|\[[!-Z^-~]*\])")
# What others put in theirs is no concern of ours, as long as it stays between its brackets.
_FOREIGN_ID = re.compile(r"<([!-;=?-~]+)>")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Stamp(NamedTuple):
    """What the mailer adds to every message: when, by chance, and by whom.

    Attributes:
        now: Aware; for a message without a date.
        token: Random text of letters and digits, for a message without a Message-ID and for MIME boundaries.
        helo_name: The name of this host, or an address literal.
    """

    now: datetime
    token: str
    helo_name: str

    @property
    def message_id(self) -> str:
        # The milliseconds first, so that new ones are neighbours in the index of a store: in an index of a million
        # random ones each would be written into a page of its own.
        return f"{int(self.now.timestamp() * 1000):x}.{self.token}@{self.helo_name}"


def check_id(place: Place, text: str, stamp: Stamp) -> str:
    """A Message-ID that the caller chose, without its angle brackets.

    Raises:
        InvalidEmail: It is none.
    """
    bare = text[1:-1] if text.startswith("<") and text.endswith(">") else text
    if _NEW_ID.fullmatch(bare) is None or len(bare) > ID_LIMIT:
        raise place.error(
            f"{place.quote(text)} is not a Message-ID: write left@right, for instance order-4711@{stamp.helo_name}, of "
            f"letters, digits, dots and !#$%&'*+/=?^_`{{|}}~-, at most {ID_LIMIT} characters"
        )
    return bare


def foreign_id(place: Place, text: str) -> str:
    """The Message-ID of a message that came whole, without its angle brackets.

    Raises:
        InvalidEmail: It is none, or more than one.
    """
    match = _FOREIGN_ID.fullmatch(text.strip(" \t"))
    if match is None or len(match[1]) > ID_LIMIT:
        raise place.error(f"{place.quote(text)} is not a Message-ID: write <left@right>, or leave it out for a new one")
    return match[1]


def referred_ids(place: Place, value: str | Sequence[str]) -> list[str]:
    """Message-IDs of other messages, with their angle brackets, as In-Reply-To and References write them.

    Raises:
        InvalidEmail: One of them is none.
    """
    texts = value.split() if isinstance(value, str) else [part for text in value for part in text.split()]
    ids: list[str] = []
    for text in texts:
        bracketed = text if text.startswith("<") else f"<{text}>"
        if _FOREIGN_ID.fullmatch(bracketed) is None or len(bracketed) > ID_LIMIT:
            raise place.error(f"{place.quote(text)} is not a Message-ID; write left@right, several with blanks between")
        ids.append(bracketed)
    return ids


def format_date(place: Place, moment: datetime) -> str:
    """A moment as the Date field writes it (RFC 5322 section 3.3).

    Raises:
        InvalidEmail: Nothing that RFC 5322 has a form for.
    """
    text = moment.isoformat(" ", "seconds")
    if len(text) != len("2026-11-28 14:26:22+01:00"):  # no offset, or one with seconds
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:
            raise place.error(f"{moment.isoformat()} can't be written as a date") from None
        text = moment.isoformat(" ", "seconds")
    if moment.year < 1900:
        raise place.error(f"{moment.isoformat()} can't be written as a date: RFC 5322 knows none before 1900")
    return (
        f"{_DAYS[moment.weekday()]}, {text[8:10]} {_MONTHS[moment.month - 1]} {text[:4]} "
        f"{text[11:19]} {text[19:22]}{text[23:]}"
    )


def first_repeated(message_ids: Sequence[str]) -> str | None:
    """The first that is there a second time."""
    seen: set[str] = set()
    for message_id in message_ids:
        if message_id in seen:
            return message_id
        seen.add(message_id)
    return None
