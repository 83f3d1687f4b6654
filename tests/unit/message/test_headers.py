"""Header fields: short lines, encoded only where ASCII can't say it, and what must not be encoded never is."""

from email import policy
from email.parser import BytesParser

import pytest

from mailstrom_async import InvalidEmail
from mailstrom_async._message.addresses import read_addresses
from mailstrom_async._message.headers import address_field, check_name, custom_field, literal_field, text_field
from mailstrom_async._message.place import Place

SUBJECT = Place("subject")
NAMES = [
    "two  blanks",
    'The "big" \\ Box, Inc. <x>',
    "Jörg Müller (Sales)",
    "O'Hara, Scarlett",
    'Ünal; "the" <best>',
    "李小龍",
    "Ada",
    "x" * 200,
    "a@b.example",
    "=?x?=",
]


def parsed(field: str):
    return BytesParser(policy=policy.default).parsebytes(field.encode() + b"\r\n")


def test_a_text_that_is_ascii_stays_as_it_is():
    """Nothing is encoded that needn't be."""
    assert text_field(SUBJECT, "Subject", "Your order #4711: 3 items?") == "Subject: Your order #4711: 3 items?\r\n"


def test_only_the_words_that_need_it_are_encoded():
    """And what stands between them."""
    field = text_field(SUBJECT, "Subject", "Invoice für Jörg of May")

    assert field == "Subject: Invoice =?utf-8?b?ZsO8ciBKw7ZyZw==?= of May\r\n"


@pytest.mark.parametrize(
    "text",
    [
        "日本語の件名 " * 20,
        "x" * 5000,
        "ü" * 5000,
        "a  b",
        " leading",
        "trailing ",
        "   ",
        "=?utf-8?q?not_encoded?=",
        "a =?x b",
        "tab\there",
        "é è",
        "e\u0301 😀👩‍👩‍👧",
        "x " * 500 + "ü",
    ],
)
def test_a_text_comes_back_from_the_parser(text):
    """In lines of at most 78 characters."""
    field = text_field(SUBJECT, "Subject", text)

    assert str(parsed(field)["Subject"]) == text
    assert max(map(len, field.split("\r\n"))) <= 78


def test_a_field_folds_between_words():
    """And nowhere else."""
    field = text_field(SUBJECT, "Subject", "word " * 40 + "end")

    assert field.replace("\r\n ", " ") == "Subject: " + "word " * 40 + "end\r\n"


def test_twenty_recipients_with_brackets_and_umlauts_all_arrive():
    """The standard library of some patch levels loses one in five of such lists (CVE-2025-1795)."""
    texts = [f'"Jörg Müller {number} (Sales, Ümläut)" <j{number}@example.org>' for number in range(20)]
    field = address_field("To", read_addresses(Place("to"), texts))

    found = [(address.display_name, address.addr_spec) for address in parsed(field)["To"].addresses]
    assert found == [(f"Jörg Müller {number} (Sales, Ümläut)", f"j{number}@example.org") for number in range(20)]
    assert max(map(len, field.split("\r\n"))) <= 78


@pytest.mark.parametrize("name", NAMES)
def test_a_display_name_comes_back_from_the_parser(name):
    """Quoted or encoded, whatever it needs."""
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    field = address_field("To", read_addresses(Place("to"), f"{quoted} <a@example.org>, b@example.org"))

    first, second = parsed(field)["To"].addresses
    assert (first.display_name, first.addr_spec, second.addr_spec) == (name, "a@example.org", "b@example.org")


@pytest.mark.parametrize("length", range(1, 41))
def test_what_stands_behind_a_group_counts_when_lines_are_filled(length):
    group = f"Tëam: b@x.example, José Álvarez <{length * 'a'}@example.org>;"

    field = address_field("To", read_addresses(Place("to"), f"{group}, Nobody:;, d@x.example"))

    assert max(map(len, field.split("\r\n"))) <= 78
    assert [len(members.addresses) for members in parsed(field)["To"].groups] == [2, 0, 1]


def test_a_group_comes_back_from_the_parser():
    """Members and empty ones alike."""
    field = address_field("To", read_addresses(Place("to"), "Tëam: Ada <a@x.example>, b@x.example;, Nobody:;"))

    team, nobody = parsed(field)["To"].groups
    assert (team.display_name, [str(member) for member in team.addresses]) == (
        "Tëam",
        ["Ada <a@x.example>", "b@x.example"],
    )
    assert (nobody.display_name, nobody.addresses) == ("Nobody", ())


def test_the_longest_address_fits_its_line():
    """254 octets are below the limit of 998, and are not broken."""
    address = "a" * 64 + "@" + "bcd." * 47 + "o"
    field = address_field("To", read_addresses(Place("to"), [address, address]))

    assert field == f"To: {address},\r\n {address}\r\n"


def test_a_url_is_neither_folded_nor_encoded():
    """An encoded one would break one-click unsubscribing (RFC 8058)."""
    url = "<https://example.org/unsubscribe/" + "x" * 800 + ">"

    assert literal_field(Place("list_unsubscribe"), "List-Unsubscribe", [url]) == f"List-Unsubscribe: {url}\r\n"


@pytest.mark.parametrize(
    "value", ["<https://example.org/ü>", "<https://example.org/" + "x" * 1000 + ">", "=?utf-8?q?x?="]
)
def test_a_list_field_that_would_need_encoding_is_refused(value):
    """Row D19: it would arrive as something else."""
    with pytest.raises(InvalidEmail, match="can't be written"):
        custom_field(Place("headers"), "List-Help", value)


def test_a_custom_field_may_hold_text_in_any_script():
    """Encoded, as we can't know what it is."""
    assert str(parsed(custom_field(Place("headers"), "X-Customer", "Jörg  Müller"))["X-Customer"]) == "Jörg Müller"


@pytest.mark.parametrize("name", ["", "X Y", "X:", "X\r\nBcc", "X\n", "X\0", "Ü", "X\x7f", "X" * 78, "X\t"])
def test_a_name_that_is_none_is_refused(name):
    """Row D3."""
    with pytest.raises(InvalidEmail, match="no name of a header field"):
        check_name(Place("headers"), name)


@pytest.mark.parametrize("name", ["X-Y", "x", "X_Y!#$%&'*+.^`|~", "X" * 77])
def test_a_name_that_is_one_is_taken(name):
    """RFC 5322 section 2.2."""
    check_name(Place("headers"), name)


def test_a_field_may_be_empty():
    """RFC 5322 allows it for what is unstructured."""
    assert custom_field(Place("headers"), "X-Empty", " ") == "X-Empty: \r\n"
