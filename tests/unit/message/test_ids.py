"""Message-IDs and dates."""

from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest

from mailstrom_async import InvalidEmail
from mailstrom_async._message.ids import Stamp, check_id, first_repeated, foreign_id, format_date, referred_ids
from mailstrom_async._message.place import Place

DATE = Place("date")
STAMP = Stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "t0ken", "mail.example.org")


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(1997, 11, 21, 9, 55, 6, tzinfo=timezone(timedelta(hours=-6))), "Fri, 21 Nov 1997 09:55:06 -0600"),
        (datetime(2026, 3, 1, tzinfo=UTC), "Sun, 01 Mar 2026 00:00:00 +0000"),
        (
            datetime(2026, 3, 1, 5, 45, tzinfo=timezone(timedelta(hours=5, minutes=45))),
            "Sun, 01 Mar 2026 05:45:00 +0545",
        ),
        (datetime(2026, 3, 1, tzinfo=timezone(-timedelta(minutes=30))), "Sun, 01 Mar 2026 00:00:00 -0030"),
        (datetime(2026, 3, 1, 0, 0, 59, tzinfo=timezone(timedelta(seconds=59))), "Sun, 01 Mar 2026 00:00:00 +0000"),
    ],
)
def test_a_date_is_written_as_rfc_5322_has_it(moment, expected):
    """English names, whatever the locale; an offset of seconds has no form, so that is UTC."""
    assert format_date(DATE, moment) == expected
    assert parsedate_to_datetime(expected) == moment


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1899, 12, 31, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1, seconds=1))),
    ],
)
def test_a_date_that_has_no_form_is_refused(moment):
    """RFC 5322 section 3.3 begins with 1900."""
    with pytest.raises(InvalidEmail, match="date: "):
        format_date(DATE, moment)


@pytest.mark.parametrize(
    "text", ["order-4711@example.org", "<order-4711@example.org>", "a.b@[192.0.2.1]", "a" * 888 + "@example.org"]
)
def test_a_chosen_message_id_is_kept(text):
    """With or without its brackets."""
    assert check_id(Place("message_id"), text, STAMP) == text.strip("<>")


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a@b@c",
        "a b@c",
        "a@b\r\nBcc: c@d",
        "a@b\n",
        "<a@b",
        "a@b>",
        "ü@b",
        "a..b@c",
        "a@b" + "c" * 900,
        " a@b",
        "a@b\0",
        "@",
        "<>",
    ],
)
def test_what_is_no_message_id_is_refused(text):
    """Row D25: above all a line break."""
    with pytest.raises(InvalidEmail, match="message_id: "):
        check_id(Place("message_id"), text, STAMP)


def test_the_message_id_of_others_may_be_odd():
    """As long as it is one."""
    assert foreign_id(Place("email"), " <a..b@@c> ") == "a..b@@c"
    for text in ("<a> <b>", "a@b", "<a b@c>", "<>", ""):
        with pytest.raises(InvalidEmail):
            foreign_id(Place("email"), text)


def test_references_are_taken_in_any_form():
    """One text, or a list of them, with brackets or without."""
    place = Place("references")

    assert referred_ids(place, "a@b <c@d>") == ["<a@b>", "<c@d>"]
    assert referred_ids(place, ["a@b", "<c@d> e@f"]) == ["<a@b>", "<c@d>", "<e@f>"]
    with pytest.raises(InvalidEmail, match="references: "):
        referred_ids(place, "a@b,<c@d>\x0b")


def test_message_ids_that_are_made_later_come_later():
    """Row E1: so that a store with a million of them writes new ones side by side."""
    made = [
        Stamp(STAMP.now + timedelta(milliseconds=later), token, STAMP.helo_name).message_id
        for later, token in enumerate(["f00", "123", "0ab", "999"])
    ]

    assert made == sorted(made)


@pytest.mark.parametrize(
    ("message_ids", "expected"), [([], None), (["a"], None), (["a", "b"], None), (["a", "b", "b", "a"], "b")]
)
def test_the_first_that_comes_again_is_told(message_ids, expected):
    """Of several, the one that is noticed first."""
    assert first_repeated(message_ids) == expected
