"""Whatever we accept comes back from a parser as what it was, and the bytes are fit for the wire."""

import re
from datetime import UTC, datetime, timedelta, timezone
from email import policy
from email.header import decode_header, make_header
from email.headerregistry import Address
from email.message import EmailMessage
from email.parser import BytesHeaderParser, BytesParser
from email.utils import getaddresses

import dkim
from fast_mail_parser import parse_email
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mailstrom_async import Attachment, DKIMKey, Email, InvalidEmail, Limits, PreparedEmail
from mailstrom_async._message.compose import Envelope, compose
from mailstrom_async._message.dkim import sign
from mailstrom_async._message.dkim_keys import load_signer, new_key
from mailstrom_async._message.ids import Stamp

STAMP = Stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "t0ken", "mail.example.org")

KEY = new_key("ed25519")
SIGNER = load_signer(DKIMKey(domain="xn--bcher-kva.example", selector="s", private_key=KEY.pem))

ATEXT = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+/=?^_`{|}~-"
ODD = [
    "Jörg Müller (Sales)",
    "O'Hara, Ünal",
    '"quoted"',
    "=?utf-8?q?x?=",
    "a\\b",
    "李小龍",
    "Dr. No",
    "<x@y>",
    "a;b:c",
    ".",
    "é",
]

one_line = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=120)
header_texts = st.one_of(
    one_line, st.text("aé =?_\t,", max_size=60), st.sampled_from(ODD), st.lists(one_line, max_size=9).map(" ".join)
)
names = st.one_of(st.just(""), st.sampled_from(ODD), one_line).map(lambda name: name.replace("\t", " ").strip())
locals_ = st.one_of(
    st.text(ATEXT, min_size=1, max_size=20),
    st.sampled_from(["a.b", '"a b"', '"a@b"', '"a\\"b"', '".a."', "a+tag", "-"]),
)
domains = st.sampled_from(
    ["example.org", "a-b.example.net", "bücher.example", "xn--bcher-kva.example", "Example.COM", "例え.テスト"]
)
mailboxes = st.tuples(names, locals_, domains)
bodies = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=300),
    st.text("a.\n\r =\tü", max_size=300),
    st.text("x", min_size=900, max_size=1100),
)


def is_file_name(name: str) -> bool:
    base = re.split(r"[/\\]", name)[-1].strip()
    return (
        base == name and bool(name.strip(".")) and not re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", name)
    )


file_names = st.one_of(
    st.sampled_from(["a.pdf", "Übersicht (1).pdf", "😀.png", 'a"b', "日本語" * 30]), one_line
).filter(is_file_name)
attachments = st.builds(
    Attachment,
    filename=file_names,
    content=st.binary(max_size=300),
    content_type=st.sampled_from(["application/pdf", "image/png", "text/csv; header=present"]),
    inline_id=st.sampled_from([None, None, "logo", "a@b"]),
)
dates = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=moment.minute * 20 - 600)))
)
ids = st.from_regex(r"\A[a-z0-9]{1,9}(?:\.[a-z0-9]{1,9})?@[a-z0-9]{1,9}\Z")


def spelled(mailbox: tuple[str, str, str]) -> str:
    """A mailbox as a careful author writes it."""
    name, local, domain = mailbox
    if not name:
        return f"{local}@{domain}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" <{local}@{domain}>'


def spelled_group(name: str, members: list[tuple[str, str, str]]) -> str:
    return f'"{name}": {", ".join(map(spelled, members))};'


def on_the_wire(mailbox: tuple[str, str, str]) -> tuple[str, str]:
    name, local, domain = mailbox
    return name, f"{local}@{'.'.join(label.encode('idna').decode() for label in domain.lower().split('.'))}"


def unquoted(spec: str) -> tuple[str, str]:
    local, _, domain = spec.rpartition("@")
    return re.sub(r"\\(.)", r"\1", local[1:-1]) if local.startswith('"') else local, domain


def kept_by_the_standard_library(name: str) -> str:
    """It drops blanks in a row, decodes what looks like an encoded-word, and minds what can't be printed."""
    return " ".join("".join(character for character in name if character.isprintable()).replace("=?", "").split())


plain_mailboxes = st.tuples(
    names.map(kept_by_the_standard_library),
    st.text(ATEXT, min_size=1, max_size=20),
    st.sampled_from(["example.org", "a-b.example.net", "xn--bcher-kva.example"]),
)
plain_names = st.text("abc XYZ,().'é", min_size=1, max_size=30).map(kept_by_the_standard_library).filter(bool)
lists = st.lists(mailboxes, max_size=20)
emails = st.fixed_dictionaries(
    {"from_": st.lists(mailboxes, min_size=1, max_size=1), "to": st.lists(mailboxes, min_size=1, max_size=20)},
    optional={
        "cc": lists,
        "reply_to": lists,
        "subject": header_texts,
        "text": bodies,
        "html": bodies,
        "attachments": st.lists(attachments, max_size=3).map(tuple),
        "date": dates,
        "message_id": ids,
        "references": st.lists(ids, min_size=1, max_size=9),
        "headers": st.dictionaries(st.sampled_from(["X-A", "X-Long-Name", "Comments"]), header_texts, max_size=3),
    },
)
ADDRESS_FIELDS = {"from_": "From", "to": "To", "cc": "Cc", "reply_to": "Reply-To"}


def prepare(fields: dict) -> PreparedEmail:
    written = {
        key: [spelled(mailbox) for mailbox in value] if key in ADDRESS_FIELDS else value
        for key, value in fields.items()
    }
    return compose(Email(**written), Envelope(), STAMP, limits=Limits())


def check_wire(prepared: PreparedEmail) -> None:
    """Invariant I12, and 7-bit, but for addresses that need SMTPUTF8."""
    lines = prepared.content.split(b"\r\n")
    assert lines[-1] == b""
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines)
    assert max(map(len, lines)) <= 998
    assert prepared.content.isascii()
    assert not prepared.eight_bit
    header = prepared.content.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert all(line.strip() and (len(line) <= 78 or b" " not in line.strip()[18:]) for line in header)


def crlf(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text + "\n" if text and not text.endswith("\n") else text).replace("\n", "\r\n")


def check_content(fields: dict, message: EmailMessage) -> None:
    leaves = [part for part in message.walk() if not part.is_multipart()]
    texts = {
        part.get_content_type(): part.get_payload(decode=True).decode() for part in leaves if not part.get_filename()
    }
    expected = {
        f"text/{kind}": crlf(fields[field]) for field, kind in (("text", "plain"), ("html", "html")) if field in fields
    }
    assert texts == (expected or {"text/plain": ""})
    files = [
        (part.get_filename(), part.get_content_type(), part.get_payload(decode=True))
        for part in leaves
        if part.get_filename()
    ]
    assert sorted(files) == sorted(
        (attachment.filename, attachment.content_type.partition(";")[0], attachment.content)
        for attachment in fields.get("attachments", ())
    )


def without_blanks(text: str) -> str:
    return re.sub(r"\s", "", text)


def decoded(text: str) -> str:
    return str(make_header(decode_header(text)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(
    {"from_": [("", "a", "example.org")], "to": [(f"Jörg Müller {n} (Sales)", "j", "example.org") for n in range(20)]}
)
@example({"from_": [("", "a", "example.org")], "to": [("", "a", "example.org")], "subject": "a  =?é?=  \tb "})
@given(emails)
def test_what_we_write_is_what_the_standard_library_reads(fields):
    """Addresses, subject, texts, attachments, and no field that was not asked for."""
    prepared = prepare(fields)
    check_wire(prepared)
    message = BytesParser(policy=policy.default).parsebytes(prepared.content)
    raw = BytesHeaderParser(policy=policy.compat32).parsebytes(prepared.content)

    asked = {key.rstrip("_").replace("_", "-") for key in fields if fields[key]} - {
        "text",
        "html",
        "attachments",
        "headers",
    }
    asked |= {"date", "message-id", "mime-version", "content-type"} | {
        name.lower() for name in fields.get("headers", {})
    }
    assert sorted({name.lower() for name in message} - {"content-transfer-encoding"}) == sorted(asked)
    assert len(message.keys()) == len(set(message.keys()))
    for key, header in ADDRESS_FIELDS.items():
        expected = [on_the_wire(mailbox) for mailbox in fields.get(key, [])]
        # The new parser of some patch levels puts a blank between the encoded-words of a name, so that is compared
        # without blanks; the old one doesn't, so it is asked for the exact name.
        found = message[header].addresses if expected else ()
        assert [without_blanks(address.display_name) for address in found] == [
            without_blanks(name) for name, _ in expected
        ]
        assert [(address.username, address.domain) for address in found] == [unquoted(spec) for _, spec in expected]
        unfolded = re.sub(r"\r\n", "", raw.get(header, ""))
        assert [decoded(name) for name, _ in getaddresses([unfolded]) if expected] == [name for name, _ in expected]
    for name, value in fields.get("headers", {}).items():
        assert str(message[name]) == re.sub("[ \t]+", " ", value).strip(" ")
    if fields.get("subject"):
        assert str(message["Subject"]) == fields["subject"]
    if "date" in fields:
        assert message["Date"].datetime == fields["date"]
    if "message_id" in fields:
        assert message["Message-ID"] == f"<{fields['message_id']}>"
    if "references" in fields:
        assert message["References"].split() == [f"<{reference}>" for reference in fields["references"]]
    check_content(fields, message)


letters = st.fixed_dictionaries(
    {
        "groups": st.lists(plain_names, max_size=3),
        "members": st.lists(mailboxes, max_size=5),
        "hidden": st.integers(0, 9),
    },
    optional={
        "sender": plain_mailboxes,
        "in_reply_to": ids,
        "list_unsubscribe": st.lists(
            st.from_regex(r"\A(?:https?://|mailto:)[a-z0-9./?=&%~_@-]{1,300}\Z"), min_size=1, max_size=3
        ),
        "calendar": st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=200).map(
            "BEGIN:VCALENDAR\nMETHOD:REQUEST\nSUMMARY:{}\nEND:VCALENDAR\n".format
        ),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(
    {"groups": [], "members": [], "hidden": 0, "sender": ("in two encoded-words " + "é" * 30, "a", "b.example")}, "a"
)
@given(letters, st.sampled_from(["a", "jörg"]))
def test_groups_hidden_recipients_invitations_and_lists_come_out_right(fields, author):
    """The envelope has everybody once, the header nobody who is hidden, and each field says what was asked."""
    hidden = [f"hidden{number}@example.com" for number in range(fields["hidden"])]
    members = fields["members"] if fields["groups"] else []
    groups = [spelled_group(name, members) for name in fields["groups"]]
    asked = {key: fields[key] for key in ("in_reply_to", "list_unsubscribe", "calendar") if key in fields}
    if "sender" in fields:
        asked["sender"] = spelled(fields["sender"])
    email = Email(from_=f"{author}@example.org", to=[*groups, "b@example.net"], bcc=hidden, text="Hello", **asked)
    prepared = compose(email, Envelope(), STAMP, limits=Limits())
    header = prepared.content.partition(b"\r\n\r\n")[0].decode()
    message = BytesParser(policy=policy.default).parsebytes(prepared.content)

    everybody = [*(on_the_wire(member)[1] for member in members), "b@example.net", *hidden]
    assert {*map(unquoted, prepared.recipients)} == {*map(unquoted, everybody)}
    assert len({*map(unquoted, prepared.recipients)}) == len(prepared.recipients)
    assert "hidden" not in header
    assert prepared.smtputf8 == (not author.isascii())
    assert f"From: {author}@example.org\r\n" in header
    assert max(map(len, prepared.content.split(b"\r\n"))) <= 998
    if author.isascii():
        check_wire(prepared)
        assert [group.display_name for group in message["To"].groups] == [*fields["groups"], None]
        assert [len(group.addresses) for group in message["To"].groups] == [*[len(members)] * len(groups), 1]
        if "sender" in fields:
            name, address = on_the_wire(fields["sender"])
            found = message["Sender"].address  # its name is compared without blanks, as above
            assert (without_blanks(found.display_name), found.addr_spec) == (without_blanks(name), address)
    assert message["In-Reply-To"] == (f"<{fields['in_reply_to']}>" if "in_reply_to" in fields else None)
    urls = fields.get("list_unsubscribe", [])
    assert message.get("List-Unsubscribe", "") == ", ".join(f"<{url}>" for url in urls)
    assert ("List-Unsubscribe-Post" in message) == any(url.startswith("https:") for url in urls)
    invitations = [part for part in message.walk() if part.get_content_type() == "text/calendar"]
    assert len(invitations) == ("calendar" in fields)
    for part in invitations:
        assert part.get_param("method") == "REQUEST"
        assert part.get_payload(decode=True).decode() == crlf(fields["calendar"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(emails)
def test_what_we_write_is_what_another_parser_reads(fields):
    """One that shares no code with ours nor with the standard library's."""
    prepared = prepare(fields)
    message = parse_email(prepared.content)

    if fields.get("subject", "").strip() == fields.get("subject", ""):
        assert message.subject == fields.get("subject", "")
    assert sorted(attachment.content for attachment in message.attachments) == sorted(
        attachment.content for attachment in fields.get("attachments", ())
    )
    assert "".join(message.text_html) == crlf(fields.get("html", ""))
    if "text" in fields:
        assert "".join(message.text_plain) == crlf(fields["text"])


@settings(max_examples=300, deadline=None)
@given(header_texts, header_texts, one_line)
def test_no_text_can_add_a_field(subject, value, name):
    """Accepted or refused, but never a line of its own."""
    try:
        prepared = prepare(
            {
                "from_": [("", "a", "example.org")],
                "to": [(name.strip(), "b", "example.net")],
                "subject": subject,
                "headers": {"X-A": value},
            }
        )
    except InvalidEmail:
        return
    fields = BytesHeaderParser(policy=policy.compat32).parsebytes(prepared.content).keys()

    assert set(fields) <= {
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "X-A",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
    }


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(
                ["a@example.org", "<", ">", ",", ";", ":", '"', "(", ")", "\\", " ", "@", "[", "]", "=?utf-8?q?=0D?="]
            ),
        )
    ).map("".join)
)
def test_any_text_is_an_address_list_or_refused(text):
    """No other error, and what is accepted is one clean address each."""
    try:
        prepared = compose(
            Email(from_="a@example.org", to=text, cc="c@example.net"), Envelope(), STAMP, limits=Limits()
        )
    except InvalidEmail:
        return

    assert all(
        re.fullmatch(r'(?:[^\s<>()\[\]:;,"\\@]+|"(?:[^"\\\r\n]|\\.)*")@[a-z0-9.-]+', address)
        for address in prepared.recipients
    )
    header = prepared.content.partition(b"\r\n\r\n")[0]
    assert not re.search(
        rb"\r\n(?![ \t]|(?:From|To|Cc|Date|Message-ID|MIME-Version|Content-Type|Content-Transfer-Encoding): )", header
    )


PIECES = [
    b"From: a@example.org",
    b"To: b@example.net",
    b"Bcc: hidden@example.net",
    b"Subject: x",
    b"X: \xc3\xbc",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b":",
    b"\x0b",
    b"\x85",
    "\u2028".encode(),
    b"\xff",
    b"x" * 500,
    b".",
    b"\r\n.\r\n",
    b"Content-Type: multipart/mixed; boundary=x",
    b"--x",
    b"y",
]


WHOLE = [
    b"From: =?utf-8?q?J=C3=B6rg?= (x) <a@example.org>\r\nTo: B <b@example.net>,\r\n c@example.net\r\n\r\n.\r\n",
    b"From: a@example.org\r\nBcc: hidden@example.net\r\nMessage-ID: <a@b>\r\nReferences: <c@d>\r\n <e@f>\r\n\r\nb",
    b"From: a@example.org\nTo: G: x@y.example, z@y.example;\nResent-Bcc: hidden@e.example\n\n\n\nx",
    "From: Pelé <pelé@example.org>\r\nTo: 用户@例子.广告\r\n\r\nü\r\n".encode(),
]
GRAMMAR = [piece.encode() for piece in ("=?", "?=", "?q?", "<", ">", '"', "(", ")", "\\", "@", ",", ";", "é", "[", "]")]
inserted = st.one_of(st.just(b""), st.sampled_from(GRAMMAR + PIECES), st.binary(max_size=3))
edits = st.tuples(st.floats(0, 1), st.integers(0, 4), inserted)


def edited(whole: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """A good message with something taken out and put in here and there."""
    for place, out, into in changes:
        at = int(place * len(whole))
        whole = whole[:at] + into + whole[at + out :]
    return whole


@settings(max_examples=2000, deadline=None)
@example(b"From: a@example.org\r\nTo: b@example.net\r\n\r\n")
@example("From: =?utf-8é?q?x?= <a@example.org>\r\nTo: b@example.net\r\n\r\n".encode())
@given(
    st.one_of(
        st.builds(edited, st.sampled_from(WHOLE), st.lists(edits, max_size=5)),
        st.binary(max_size=200),
        st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=5)), max_size=40).map(b"".join),
        st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=5)), max_size=40).map(
            lambda pieces: b"From: a@example.org\r\nTo: b@example.net\r\n" + b"".join(pieces)
        ),
    )
)
def test_any_bytes_are_a_message_or_refused(content):
    """No crash, and nothing accepted that may not be on the wire (invariant I12) or names a hidden recipient (I8)."""
    try:
        prepared = compose(content, Envelope(), STAMP, limits=Limits())
    except InvalidEmail:
        return
    lines = prepared.content.split(b"\r\n")

    assert lines[-1] == b""
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line or len(line) > 998 for line in lines)
    header = prepared.content.partition(b"\r\n\r\n")[0]
    assert not re.search(rb"(?im)^(?:resent-)?bcc[ \t]*:", header)
    assert prepared.eight_bit == (not prepared.content.isascii())
    message = BytesParser(policy=policy.compat32).parsebytes(prepared.content)
    assert len(message.get_all("From")) == 1
    assert message["Date"]
    assert message["Message-ID"].strip() == f"<{prepared.message_id}>"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(emails)
def test_a_message_that_we_wrote_is_left_as_it_is(fields):
    """Composing once more, from its bytes, changes nothing."""
    prepared = prepare(fields)
    again = compose(prepared.content, Envelope(), STAMP, limits=Limits())

    assert again.content == prepared.content
    assert again.message_id == prepared.message_id
    assert again.sender == prepared.sender
    assert again.recipients == prepared.recipients


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([(f"Jörg Müller {number} (Sales)", "j", "example.org") for number in range(20)], "é  =?x", "x" * 400)
@given(st.lists(plain_mailboxes, min_size=1, max_size=20), header_texts, bodies)
def test_an_email_message_arrives_as_it_was(to, subject, text):
    """Its own writer loses recipients and changes subjects on some patch levels; ours writes its header."""
    email = EmailMessage()
    email["From"] = "a@example.org"
    email["To"] = [Address(name, local, domain) for name, local, domain in to]
    email["Subject"] = subject
    email["List-Unsubscribe"] = "<https://example.org/" + "x" * 300 + ">"
    text = text.replace("\0", "")  # it writes a NUL as it is, and we refuse it
    email.set_content(text)
    prepared = compose(email, Envelope(), STAMP, limits=Limits())
    raw = BytesHeaderParser(policy=policy.compat32).parsebytes(prepared.content)
    message = BytesParser(policy=policy.default).parsebytes(prepared.content)
    expected = [on_the_wire(mailbox) for mailbox in to]

    assert prepared.content.isascii()
    assert prepared.recipients == tuple(dict.fromkeys(address for _, address in expected))
    found = getaddresses([raw["To"].replace("\r\n", "")])
    assert [decoded(name) for name, _ in found] == [name for name, _ in expected]
    assert str(message["Subject"]) == str(email["Subject"])
    assert message["List-Unsubscribe"] == email["List-Unsubscribe"]
    assert crlf(message.get_payload(decode=True).decode()) == crlf(text) or not text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(emails)
def test_whatever_we_write_and_sign_verifies(fields):
    """By another implementation."""
    prepared = prepare(fields | {"from_": [("Ünal", "a", "bücher.example")]})
    signed = sign(prepared.content, [SIGNER], STAMP.now)
    judge = dkim.DKIM(signed)

    assert signed.endswith(prepared.content)
    assert judge.verify(dnsfunc=lambda *_, **__: KEY.record.encode())
