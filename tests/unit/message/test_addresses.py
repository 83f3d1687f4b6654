"""Addresses: what RFC 5322 and RFC 6854 allow is read, what they don't is refused with the reason."""

import pytest

from mailstrom_async import InvalidEmail
from mailstrom_async._message.addresses import (
    ANY,
    Domains,
    Group,
    Mailbox,
    mailboxes_of,
    read_addresses,
    read_bare,
    read_mailbox,
)
from mailstrom_async._message.place import Place

TO = Place("to")


def read(value) -> list[tuple[str, str]]:
    return [(mailbox.name, mailbox.address) for mailbox in mailboxes_of(read_addresses(TO, value))]


# RFC 5322 appendix A, the address fields of its examples, and RFC 6854 and RFC 6532.
EXAMPLES = {
    "A.1.1": ("John Doe <jdoe@machine.example>", [("John Doe", "jdoe@machine.example")]),
    "A.1.2 From": ('"Joe Q. Public" <john.q.public@example.com>', [("Joe Q. Public", "john.q.public@example.com")]),
    "A.1.2 To": (
        "Mary Smith <mary@x.test>, jdoe@example.org, Who? <one@y.test>",
        [("Mary Smith", "mary@x.test"), ("", "jdoe@example.org"), ("Who?", "one@y.test")],
    ),
    "A.1.2 Cc": (
        '<boss@nil.test>, "Giant; \\"Big\\" Box" <sysservices@example.net>',
        [("", "boss@nil.test"), ('Giant; "Big" Box', "sysservices@example.net")],
    ),
    "A.1.3": (
        "A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;",
        [("Ed Jones", "c@a.test"), ("", "joe@where.test"), ("John", "jdoe@one.test")],
    ),
    "A.1.3 empty": ("Undisclosed recipients:;", []),
    "A.5 From": (
        "Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>",
        [("Pete (A nice ) chap)", "pete@silly.test")],
    ),
    "A.5 To": (
        (
            "A Group(Some people)     :Chris Jones <c@(Chris's host.)public.example>,     joe@example.org,"
            "  John <jdoe@one.test> (my dear friend); (the end of the group)"
        ),
        [
            ("Chris Jones", "c@public.example"),
            ("", "joe@example.org"),
            ("John (my dear friend)", "jdoe@one.test"),
        ],
    ),
    "A.5 Cc": ("(Empty list)(start)Hidden recipients  :(nobody(that I know))  ;", []),
    "A.6.1 From": ("Joe Q. Public <john.q.public@example.com>", [("Joe Q. Public", "john.q.public@example.com")]),
    "RFC 6854": (
        "Managing Partners:ben@example.com,carol@example.com;",
        [("", "ben@example.com"), ("", "carol@example.com")],
    ),
    "RFC 6532": ("Pelé <pelé@example.com>", [("Pelé", "pelé@example.com")]),
    "RFC 2047": (
        "=?ISO-8859-1?Q?Andr=E9?= Pirard <PIRARD@vm1.ulg.ac.be>",
        [("André Pirard", "PIRARD@vm1.ulg.ac.be")],
    ),
}


@pytest.mark.parametrize(("text", "expected"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples_of_the_standards_are_read(text, expected):
    """Mailboxes in order, groups taken apart, display names decoded."""
    assert read(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Mary Smith <@node.test:mary@example.net>, , jdoe@test  . example",  # RFC 5322 A.6.1: a source route
        "John Doe <jdoe@machine(comment).  example>",  # A.6.3: obsolete blanks
        "Mary Smith\r\n          <mary@example.net>",
    ],
)
def test_obsolete_forms_are_refused(text):
    """Nobody may write them any more (RFC 5322 section 4)."""
    with pytest.raises(InvalidEmail, match="to: ") as refused:
        read(text)

    assert refused.value.field == "to"


VALID = {
    "a+tag@example.org": "a+tag@example.org",
    "-a@example.org": "-a@example.org",
    "a'b{}|~@example.org": "a'b{}|~@example.org",
    "!#$%&'*+/=?^_`.{|}~@example.org": "!#$%&'*+/=?^_`.{|}~@example.org",
    "A.B@Example.ORG": "A.B@example.org",
    '"a b"@example.org': '"a b"@example.org',
    '"a@b"@example.org': '"a@b"@example.org',
    '"a\\"b"@example.org': '"a\\"b"@example.org',
    '".a..b."@example.org': '".a..b."@example.org',
    "x@bücher.example": "x@xn--bcher-kva.example",
    "x@BÜCHER.example": "x@xn--bcher-kva.example",
    "x@xn--bcher-kva.example": "x@xn--bcher-kva.example",
    "x@r\u0456g.test": "x@xn--rg-hoc.test",  # a Cyrillic i: another domain, and the status shows that
    "x@例え.テスト": "x@xn--r8jz45g.xn--zckzah",
    "x@ex\u3002ample.org": "x@ex.ample.org",
    "用户@例子.广告": "用户@xn--fsqu00a.xn--4rr70v",
    "e\u0301@example.org": "é@example.org",
    "😀@example.org": "😀@example.org",
    "<a@example.org>": "a@example.org",
    "  a@example.org\t": "a@example.org",
    "(work) a@example.org (Ada)": "a@example.org",
    "a" * 64 + "@example.org": "a" * 64 + "@example.org",
    "a@" + "b" * 63 + ".org": "a@" + "b" * 63 + ".org",
    "a@1.2.3.museum": "a@1.2.3.museum",
    "1@23.example": "1@23.example",
}


@pytest.mark.parametrize(("text", "address"), VALID.items())
def test_odd_addresses_that_are_right(text, address):
    """One clean form for the envelope: domain in lower case and A-labels, local part unchanged."""
    (mailbox,) = mailboxes_of(read_addresses(TO, text))

    assert mailbox.address == address
    assert mailbox.written == text.strip(" \t")


INVALID = {
    "no at": "example.org",
    "two ats": "a@b@example.org",
    "nothing before the at": "@example.org",
    "nothing behind the at": "a@",
    "dot first": ".a@example.org",
    "dot last": "a.@example.org",
    "two dots": "a..b@example.org",
    "domain: dot last": "a@example.org.",
    "domain: dot first": "a@.example.org",
    "domain: two dots": "a@example..org",
    "hyphen first": "a@-x.example",
    "hyphen last": "a@x-.example",
    "underscore": "a@x_y.example",
    "not IDNA": "a@xn--a.example",
    "fake A-label": "a@ab--cd.example",
    "quoted domain": 'a@"example.org"',
    "blank": "a b@example.org",
    "blank behind at": "a@ example .org",
    "source route": "<@a.example,@b.example:c@d.example>",
    "literal": "a@[192.0.2.1]",
    "IPv6 literal": "a@[IPv6:2001:db8::1]",
    "bare IP": "a@192.0.2.1",
    "localhost": "a@localhost",
    "below localhost": "a@b.localhost",
    "single label": "a@example",
    "single label test": "a@test",
    "invalid": "a@example.invalid",
    "onion": "a@example.onion",
    "long local part": "a" * 65 + "@example.org",
    "long local part in UTF-8": "ü" * 33 + "@example.org",
    "long label": "a@" + "b" * 64 + ".org",
    "long domain": "a@" + "b." * 126 + "org",
    "long address": "a" * 64 + "@" + "bcd." * 48 + "org",
    "zero-width joiner": "a\u200d@example.org",
    "soft hyphen": "a\u00ad@example.org",
    "semicolon between": "a@example.org;b@example.org",
    "no comma between": "a@example.org b@example.org",
    "trailing comma": "a@example.org,",
    "leading comma": ",a@example.org",
    "open quote": '"a@example.org',
    "open comment": "a@example.org (c",
    "open bracket": "<a@example.org",
    "closed twice": "<a@example.org>>",
    "backslash": "a\\b@example.org",
    "address as unquoted name": "a@example.org <b@example.org>",
    "smuggled second": "a@example.org)b@example.org",  # CVE-2023-27043
    "comma in a name": "Doe, John <j@example.org>",
    "group without an end": "friends: a@example.org",
    "group without a name": ": a@example.org;",
    "group in a group": "a: b: c@example.org;;",
    "ESMTP parameters": "a@example.org> SIZE=1",
    "only a name": "Ada",
    "brackets in a name": "Ada [Sales] <a@example.org>",
    "text behind the address": "<a@example.org> Ada",
    "name behind a group": "Team: a@example.org; Ada",
    "only a comment": "(Ada)",
    "tab in the local part": '"a\tb"@example.org',
}


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_odd_addresses_that_are_wrong(text):
    """Refused, with the field and an excerpt of what is wrong."""
    with pytest.raises(InvalidEmail) as refused:
        read(text)

    assert refused.value.field == "to"


@pytest.mark.parametrize(
    "character",
    ["\r", "\n", "\0", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\ud800", "\x7f"],
)
@pytest.mark.parametrize(
    "text", ["Ada{}Lovelace <a@example.org>", '"Ada{}" <a@example.org>', "a{}@example.org", "a@b{}.org"]
)
def test_nothing_that_ends_a_line_is_in_an_address(character, text):
    """Nor NUL, nor lone surrogates."""
    with pytest.raises(InvalidEmail, match=r"\(U\+"):
        read(text.format(character))


def test_an_encoded_word_can_not_smuggle_a_line_break_into_a_name():
    """What it decodes to is checked too."""
    with pytest.raises(InvalidEmail, match="line break"):
        read("=?utf-8?q?Ada=0D=0ABcc=3A_x?= <a@example.org>")


def test_encoded_words_in_quotes_are_no_encoded_words():
    """RFC 2047 section 5 (3)."""
    assert read('"=?utf-8?q?J=C3=B6rg?=" <j@example.org>') == [("=?utf-8?q?J=C3=B6rg?=", "j@example.org")]


def test_a_broken_encoded_word_is_text():
    """Rather than an error: somebody's name may look like that."""
    assert read("=?nosuchcharset?q?x?= <j@example.org>") == [("=?nosuchcharset?q?x?=", "j@example.org")]


def test_parentheses_in_a_name_belong_to_it():
    """Whoever writes them unquoted means them to be seen, although RFC 5322 calls them a comment."""
    assert read("Jörg Müller (Sales) <j@example.org>") == [("Jörg Müller (Sales)", "j@example.org")]
    assert read("j@example.org (Jörg Müller)") == [("Jörg Müller", "j@example.org")]


def test_a_sequence_may_hold_lists_and_groups():
    """Each entry is a text of its own."""
    addresses = read_addresses(TO, ["a@example.org, b@example.org", "Team: c@example.org;"])

    assert [type(address) for address in addresses] == [Mailbox, Mailbox, Group]
    assert [mailbox.address for mailbox in mailboxes_of(addresses)] == [
        "a@example.org",
        "b@example.org",
        "c@example.org",
    ]


def test_a_blank_text_has_no_addresses_but_an_empty_entry_is_a_mistake():
    """Form fields are empty often; an empty entry in a list was a variable that had nothing in it."""
    assert list(read_addresses(TO, " \t")) == []
    assert list(read_addresses(TO, [])) == []
    with pytest.raises(InvalidEmail, match="an address is missing"):
        read_addresses(TO, ["a@example.org", ""])


def test_the_same_error_names_the_field_that_it_is_in():
    """What is remembered of a text doesn't carry over to another field."""
    for field in ("to", "cc", "to"):
        with pytest.raises(InvalidEmail) as refused:
            read_addresses(Place(field), "nobody")

        assert refused.value.field == field


def test_a_hidden_recipient_is_not_named_in_the_error():
    """Exceptions end up in logs."""
    for place in (Place("bcc"), Place("recipients"), Place("email", "Bcc"), Place("email", "Resent-Bcc")):
        with pytest.raises(InvalidEmail) as refused:
            read_addresses(place, "secret@person@example.org")

        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["a@example.org, b@example.org", "Team: a@example.org;", ""])
def test_a_field_of_one_mailbox_takes_no_list(text):
    """Sender is one."""
    with pytest.raises(InvalidEmail):
        read_mailbox(Place("sender"), text)


@pytest.mark.parametrize(
    "text",
    [
        "<a@example.org>",
        " a@example.org",
        "a@example.org ",
        "Ada <a@example.org>",
        "(c)a@example.org",
        "a@example.org,b@c.org",
    ],
)
def test_a_path_is_a_bare_address(text):
    """In `recipients=` and `sender=` nothing is interpreted."""
    with pytest.raises(InvalidEmail, match="bare address"):
        read_bare(Place("sender"), text)


@pytest.mark.parametrize("text", ["a@example.org", '"a b"@example.org', "jörg@bücher.example"])
def test_a_bare_address_is_taken(text):
    """Quotes and other scripts included."""
    assert read_bare(Place("sender"), text).written == text


def test_spellings_of_one_mailbox_are_one():
    """The domain's case, its script, and quotes that weren't needed make no difference; the local part's case does."""
    same = read_addresses(TO, ["ada@BÜCHER.example", "ada@xn--bcher-kva.example", '"ada"@bücher.example'])
    other = read_mailbox(TO, "Ada@bücher.example")

    assert len({mailbox.identity for mailbox in mailboxes_of(same)}) == 1
    assert other.identity not in {mailbox.identity for mailbox in mailboxes_of(same)}


def test_ten_thousand_parentheses_are_no_trouble():
    """Nothing recurses."""
    assert read("(" * 10_000 + ")" * 10_000 + "a@example.org")[0][1] == "a@example.org"
    with pytest.raises(InvalidEmail, match="closing parenthesis"):
        read("(" * 10_000 + "a@example.org")


LITERALS = {
    "a@[192.0.2.1]": "a@[192.0.2.1]",
    "Ada <a@[IPv6:2001:DB8:0:0::1]>": "a@[IPv6:2001:db8::1]",
    '"a b"@[ipv6:::ffff:192.0.2.1]': '"a b"@[IPv6:::ffff:c000:201]',
}


@pytest.mark.parametrize(("text", "address"), LITERALS.items(), ids=LITERALS)
def test_an_address_literal_where_it_is_allowed(text, address):
    """Row D9: in one form, whatever the spelling (RFC 5321 section 4.1.3)."""
    (mailbox,) = mailboxes_of(read_addresses(TO, text, Domains(literals=True)))

    # Python 3.13 writes the IPv4 address inside of an IPv6 one with dots.
    assert mailbox.address in (address, address.replace("c000:201", "192.0.2.1"))
    assert mailbox.written == text


@pytest.mark.parametrize(
    "literal",
    [
        "",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.01",
        "192.0.2.1 ",
        "2001:db8::1",
        "IPv6:",
        "IPv6:fe80::1%eth0",
        "x:1",
        "\u0661.1.1.1",
    ],
)
def test_what_is_no_address_literal_is_refused_even_there(literal):
    """Row D9."""
    with pytest.raises(InvalidEmail, match="In brackets only"):
        read_bare(TO, f"a@[{literal}]", ANY)


@pytest.mark.parametrize("domain", ["localhost", "LocalHost", "intranet", "münchen", "test"])
def test_a_dotless_domain_where_it_is_allowed(domain):
    """Row D9: as A-labels in lower case."""
    assert read_bare(TO, f"a@{domain}", Domains(dotless=True)).domain == {"münchen": "xn--mnchen-3ya"}.get(
        domain, domain.lower()
    )


@pytest.mark.parametrize(
    "domain", ["local", "invalid", "2130706433", "0x7f000001", "-a", "a_b", "192.0.2.1", "a.localhost"]
)
def test_other_names_stay_refused(domain):
    """Row D9: reserved ones, and what much software takes for an IP address."""
    with pytest.raises(InvalidEmail):
        read_bare(TO, f"a@{domain}", ANY)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("a@[192.0.2.1]", "Config.allow_address_literals"),
        ("a@[IPv6:2001:db8::1]", "Config.allow_address_literals"),
        ("a@localhost", "Config.allow_dotless_domains"),
        ("a@intranet", "Config.allow_dotless_domains"),
    ],
)
def test_the_refusal_names_the_setting_that_would_let_it_through(text, setting):
    """Row D9: and each setting opens its own kind only."""
    with pytest.raises(InvalidEmail, match=setting):
        read(text)
    other = Domains(dotless=True) if "literals" in setting else Domains(literals=True)
    with pytest.raises(InvalidEmail, match=setting):
        read_addresses(TO, text, other)


def test_a_full_stop_of_another_script_is_a_dot():
    """IDNA takes it for one: such a name is as full as any, and a reserved one stays reserved."""
    assert read("a@example。org") == [("", "a@example.org")]
    with pytest.raises(InvalidEmail):
        read_bare(TO, "a@x。local", ANY)


@pytest.mark.parametrize(
    "word", ["=?utf-8é?q?x?=", "=?nonsense?q?x?=", "=?hex?q?78?=", "=?utf-8?b?x?=", "=?utf-8?q?=ff?=", "=?utf-8?x?x?="]
)
def test_a_broken_encoded_word_stays_as_it_is(word):
    """The standard library has an error of its own for each way to break one."""
    ((name, address),) = read(f"{word} <a@example.org>")

    assert address == "a@example.org"
    assert name in (word, "\ufffd", "x")
