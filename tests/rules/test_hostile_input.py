"""Rows D1 to D28 of the delivery rules: hostile input gets nowhere, and what is refused is not stored."""

from datetime import timedelta
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser

import pytest

from mailstrom_async import (
    AlreadyQueued,
    Attachment,
    Config,
    Email,
    InvalidEmail,
    Limits,
    Mailstrom,
    MemoryStorage,
    MessageNotFound,
    SQLiteStorage,
)

LINE_BREAKS = ["\r", "\n", "\r\n", "\r\nBcc: evil@example.net"]
OTHER_ENDS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
TEXT_FIELDS = ["subject", "name", "header", "filename", "content_type", "inline_id", "message_id", "list_unsubscribe"]


@pytest.fixture
async def mailer():
    """Takes mail and delivers none."""
    config = Config(helo_name="mail.example.org", limits=Limits(message_size=2_000_000))
    async with Mailstrom(config, MemoryStorage(), deliver=False) as open_mailer:
        yield open_mailer


def email(**fields) -> Email:
    return Email(**({"from_": "app@example.org", "to": "ada@example.net", "text": "Hello"} | fields))


def with_text_in(field: str, text: str) -> Email:
    """An email that has a text in this place."""
    attachment = {"filename": "a.txt", "content": b"x", "content_type": "text/plain"}
    if field == "name":
        return email(to=f'"Ada {text}" <ada@example.net>')
    if field == "header":
        return email(headers={"X-Custom": f"a {text} b"})
    if field in ("filename", "content_type", "inline_id"):
        return email(
            attachments=(
                Attachment(**(attachment | {field: f"text/{text}" if field == "content_type" else f"a{text}b"})),
            )
        )
    if field in ("message_id", "list_unsubscribe"):
        return email(**{field: f"https://a@b{text}"})
    return email(**{field: f"a {text} b"})


async def refused(mailer: Mailstrom, message, *, expected: int = 0, **envelope) -> InvalidEmail:
    """The error, after which no more is stored than before."""
    with pytest.raises(InvalidEmail) as caught:
        await mailer.send_email(message, **envelope)
    assert len(await mailer.query_recent()) == expected
    return caught.value


async def taken(mailer: Mailstrom, message, **envelope):
    """What was stored of an email."""
    return await mailer.query_prepared(await mailer.send_email(message, **envelope))


def parsed(prepared) -> EmailMessage:
    return BytesParser(policy=policy.default).parsebytes(prepared.content)


def is_clean(content: bytes) -> bool:
    """Invariant I12: CRLF only, no NUL, lines of at most 998 octets."""
    lines = content.split(b"\r\n")
    return not any(b"\r" in line or b"\n" in line or b"\0" in line or len(line) > 998 for line in lines)


@pytest.mark.rule("D1", expected="refused with InvalidEmail, nothing stored")
@pytest.mark.parametrize("line_break", LINE_BREAKS)
@pytest.mark.parametrize("field", TEXT_FIELDS)
async def test_a_line_break_in_a_header_value_is_refused(mailer, field, line_break):
    """Row D1."""
    error = await refused(mailer, with_text_in(field, line_break))

    assert error.field == {"name": "to", "header": "headers"}.get(
        field, "attachments" if field in ("filename", "content_type", "inline_id") else field
    )


@pytest.mark.rule("D2", expected="refused; never a new header line")
@pytest.mark.parametrize("character", OTHER_ENDS)
@pytest.mark.parametrize("field", TEXT_FIELDS)
async def test_other_line_ends_in_a_header_value_are_refused(mailer, field, character):
    """Row D2: what str.splitlines breaks at."""
    await refused(mailer, with_text_in(field, character))


@pytest.mark.rule("D2", expected="in a body: encoded")
@pytest.mark.parametrize("character", OTHER_ENDS)
async def test_other_line_ends_in_a_body_arrive(mailer, character):
    """Row D2: as what they are."""
    prepared = await taken(mailer, email(text=f"a{character}b", html=f"<p>a{character}b"))

    assert parsed(prepared).get_body(("plain",)).get_payload(decode=True).decode() == f"a{character}b\r\n"
    assert character.encode() not in prepared.content


@pytest.mark.rule("D3", expected="refused")
@pytest.mark.parametrize(
    "name", ["", "X Y", "X:", "X:Y", "X\r\nBcc", "X\rY", "X\0", "Überschrift", "X\x85", " X", "X "]
)
async def test_odd_header_names_are_refused(mailer, name):
    """Row D3."""
    error = await refused(mailer, email(headers={name: "value"}))

    assert error.field == "headers"


@pytest.mark.rule("D4", expected="refused in headers and addresses")
@pytest.mark.parametrize("field", TEXT_FIELDS)
async def test_nul_in_a_header_is_refused(mailer, field):
    """Row D4."""
    await refused(mailer, with_text_in(field, "\0"))


@pytest.mark.rule("D4", expected="in a body: encoded, never on the wire; in a whole message: refused")
async def test_nul_in_a_body_is_never_on_the_wire(mailer):
    """Row D4."""
    await refused(mailer, b"From: a@example.org\r\nTo: b@example.net\r\n\r\na\0b")
    prepared = await taken(mailer, email(text="a\0b", attachments=(Attachment(filename="x", content=b"\0"),)))

    assert b"\0" not in prepared.content
    assert parsed(prepared).get_body().get_payload(decode=True) == b"a\0b\r\n"


@pytest.mark.rule("D5", expected="refused")
@pytest.mark.parametrize(
    "address",
    [
        "a\r@example.net",
        "a@exam\nple.net",
        "a@example.net\r\nRCPT TO:<b@example.net>",
        "a\0@example.net",
        "a b@example.net",
        "a@example.net>",
        "a@example.net> SIZE=1",
        "<a@example.net>",
        "a@example.net BODY=8BITMIME",
        "a@example.net\x85",
        "\ta@example.net",
    ],
)
async def test_an_address_that_could_be_more_is_no_path(mailer, address):
    """Row D5."""
    assert (await refused(mailer, email(), recipients=["b@example.net", address])).field == "recipients"
    assert (await refused(mailer, email(), sender=address)).field == "sender"


@pytest.mark.rule("D6", expected="refused as a path; groups and lists taken apart in Email.to")
@pytest.mark.parametrize(
    "address",
    [
        "@a.example:b@c.example",
        "Team: a@example.net;",
        "a@example.net,b@example.net",
        "",
        "example.net",
        "a@b@example.net",
        ".a@example.net",
        "a.@example.net",
        "a..b@example.net",
        "a@example..net",
        "a" * 65 + "@example.net",
        "a@" + "b." * 127 + "c",
        "a@" + "b" * 64 + ".net",
        "@",
        "@example.net",
        "a@",
    ],
)
async def test_what_is_not_one_address_is_no_path(mailer, address):
    """Row D6."""
    assert (await refused(mailer, email(), recipients=[address])).field == "recipients"
    if address:
        assert (await refused(mailer, email(), sender=address)).field == "sender"


@pytest.mark.rule("D6", expected="groups and lists taken apart in Email.to")
async def test_groups_and_lists_are_taken_apart(mailer):
    """Row D6."""
    prepared = await taken(mailer, email(to=["Team: a@example.net, b@example.net;", "c@example.net, d@example.net"]))

    assert prepared.recipients == ("a@example.net", "b@example.net", "c@example.net", "d@example.net")


@pytest.mark.rule("D7", expected="one clean address on the wire")
@pytest.mark.parametrize(
    "text", ["(x)a@example.net", " a@example.net ", "<a@example.net>", "a(x)@(y)example.net", "Ada <a@example.net> (z)"]
)
async def test_decoration_is_taken_off(mailer, text):
    """Row D7."""
    assert (await taken(mailer, email(to=text))).recipients == ("a@example.net",)


@pytest.mark.rule("D8", expected="taken, local part unchanged")
@pytest.mark.parametrize("local", ['"a b"', '"a@b"', "a+tag", "-a", "a'b{}|~", "MiXed.Case"])
async def test_odd_local_parts_are_left_alone(mailer, local):
    """Row D8."""
    prepared = await taken(mailer, email(to=f"{local}@example.net"), sender=f"{local}@example.org")

    assert (prepared.sender, prepared.recipients) == (f"{local}@example.org", (f"{local}@example.net",))


@pytest.mark.rule("D9", expected="refused")
@pytest.mark.parametrize(
    "domain", ["[192.0.2.1]", "[IPv6:::1]", "192.0.2.1", "localhost", "intranet", "a.localhost", "127.0.0.1"]
)
async def test_hosts_without_a_public_name_are_refused(mailer, domain):
    """Row D9."""
    assert (await refused(mailer, email(to=f"a@{domain}"))).field == "to"
    assert (await refused(mailer, email(), recipients=[f"a@{domain}"])).field == "recipients"


@pytest.mark.rule("D10", expected="ValueError")
@pytest.mark.parametrize("field", [*TEXT_FIELDS, "text", "html", "to", "calendar"])
async def test_a_lone_surrogate_is_refused(mailer, field):
    """Row D10: by the model itself; where it's a plain argument, by us."""
    with pytest.raises(ValueError, match=r"."):
        await mailer.send_email(with_text_in(field, "\ud800"))
    assert await mailer.query_recent() == []
    assert (await refused(mailer, email(), recipients=["a\ud800@example.net"])).field == "recipients"
    assert (await refused(mailer, email().model_copy(update={"text": "\udcff"}))).field == "text"


@pytest.mark.rule("D11", expected="delivered to the A-label, which the status shows")
async def test_look_alike_domains_show_what_they_are(mailer):
    """Row D11."""
    message_id = await mailer.send_email(email(to="a@r\u0456g.test"))
    (recipient,) = (await mailer.query_status(message_id)).recipients

    assert (recipient.recipient, recipient.address) == ("a@r\u0456g.test", "a@xn--rg-hoc.test")


@pytest.mark.rule("D12", expected="one delivery; local parts in different case are different")
async def test_the_same_recipient_twice_is_one(mailer):
    """Row D12."""
    message_id = await mailer.send_email(email(to="a@Example.net", cc="a@example.net", bcc="A@example.net"))
    status = await mailer.query_status(message_id)

    assert [(r.recipient, r.address) for r in status.recipients] == [
        ("a@Example.net", "a@example.net"),
        ("A@example.net", "A@example.net"),
    ]


@pytest.mark.rule("D13", expected="recipient, and nowhere in the content")
@pytest.mark.parametrize(
    "message",
    [
        email(bcc="hidden@example.net"),
        b"From: a@example.org\r\nTo: ada@example.net\r\nBcc:\r\n hidden@example.net\r\nResent-Bcc: hidden@x\r\n\r\nx",
    ],
    ids=["Email", "bytes"],
)
async def test_hidden_recipients_stay_hidden(mailer, message):
    """Row D13."""
    prepared = await taken(mailer, message)

    assert prepared.recipients == ("ada@example.net", "hidden@example.net")
    assert b"hidden" not in prepared.content
    assert b"\nbcc:" not in prepared.content.lower()  # a random Message-ID may well hold these letters


@pytest.mark.rule("D13", expected="refused as a custom header")
@pytest.mark.parametrize("name", ["Bcc", "bcc", "Resent-Bcc", "RESENT-BCC"])
async def test_hidden_recipients_in_a_custom_header_are_refused(mailer, name):
    """Row D13."""
    assert (await refused(mailer, email(headers={name: "hidden@example.net"}))).field == "headers"


@pytest.mark.rule("D14", expected="taken, header block valid")
async def test_only_hidden_recipients(mailer):
    """Row D14."""
    message = parsed(await taken(mailer, email(to=(), bcc="hidden@example.net")))

    assert message.keys()[0] == "From"
    assert message["To"] is None
    assert message.get_content() == "Hello\r\n"


@pytest.mark.rule("D15", expected="refused")
async def test_nobody_is_no_recipient(mailer):
    """Row D15."""
    assert (await refused(mailer, email(to=()))).field == "to"
    assert (await refused(mailer, email(), recipients=[])).field == "recipients"
    assert (await refused(mailer, b"From: a@example.org\r\n\r\nx")).field == "to"


@pytest.mark.rule("D16", expected="byte for byte in the content")
@pytest.mark.parametrize("text", [".", "..", ".\n.\n", "a\n.b\n..c", "", "no end", "\n\n.\n\n"])
async def test_dots_and_ends_arrive_as_they_are(mailer, text):
    """Row D16: dot-stuffing is the wire's affair, and is undone there."""
    prepared = await taken(mailer, email(text=text))
    body = prepared.content.partition(b"\r\n\r\n")[2]
    expected = text.replace("\n", "\r\n")

    assert body.decode() == (expected if not expected or expected.endswith("\r\n") else expected + "\r\n")


@pytest.mark.rule("D17", expected="CRLF before storing")
@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb\nc\rd", "\r\r\n\n", "a\r"])
async def test_line_ends_are_made_one_kind(mailer, text):
    """Row D17."""
    whole = b"From: a@example.org\nTo: b@example.net\r\n\n" + text.encode()
    for message in (email(text=text, html=text), whole):
        assert is_clean((await taken(mailer, message)).content)


@pytest.mark.rule("D18", expected="one transaction: no bare line end is left to smuggle with")
@pytest.mark.parametrize("end", ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r", "\r\n\0.\r\n", "\r\n.\r\n"])
async def test_smuggled_ends_do_not_end_anything(mailer, end):
    """Row D18 (CVE-2023-51764 and its kin)."""
    attack = f"a{end}MAIL FROM:<x@example.org>\r\nRCPT TO:<y@example.net>\r\nDATA\r\nFrom: z\r\n\r\nevil{end}"
    messages = [email(text=attack, html=attack)]
    if "\0" not in end:
        messages.append(b"From: a@example.org\r\nTo: b@example.net\r\n\r\n" + attack.encode())
    for message in messages:
        assert is_clean((await taken(mailer, message)).content)


@pytest.mark.rule("D19", expected="encoded or folded; no line above 998")
@pytest.mark.parametrize("field", ["subject", "text", "html", "header", "name"])
@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "x" * 5_000, "word " * 50_000])
async def test_long_lines_are_folded_or_encoded(mailer, field, text):
    """Row D19."""
    prepared = await taken(mailer, with_text_in(field, text))

    assert is_clean(prepared.content)


@pytest.mark.rule("D19", expected="1 MB header value: folded")
async def test_a_megabyte_of_header_is_folded(mailer):
    """Row D19."""
    assert is_clean((await taken(mailer, email(headers={"X-Long": "word " * 200_000}))).content)


@pytest.mark.rule("D19", expected="URLs and identifiers, which can't be encoded, are refused")
async def test_a_long_identifier_is_refused(mailer):
    """Row D19."""
    assert (await refused(mailer, email(message_id="a" * 1000 + "@b"))).field == "message_id"
    assert (await refused(mailer, email(references="a" * 1000 + "@b"))).field == "references"
    assert (await refused(mailer, email(list_unsubscribe="https://" + "a" * 1000))).field == "list_unsubscribe"


@pytest.mark.rule("D20", expected="the same checks on bytes")
@pytest.mark.parametrize(
    "field",
    [
        b"Subject: a\x0bb",
        b"Subject: a\x00b",
        b"Bad Name: x",
        b": x",
        b"X\x85: x",
        b"Subject: \xff",
        b"X: " + b"y" * 999,
        b"From: c@example.org",
        b"Cc: a@@b",
        b"Message-ID: <a@b> <c@d>",
        b"Subject: a\xe2\x80\xa8b",
    ],
)
async def test_bytes_are_checked_as_well(mailer, field):
    """Row D20."""
    error = await refused(mailer, b"From: a@example.org\r\nTo: b@example.net\r\n" + field + b"\r\n\r\nHello\r\n")

    assert error.field == "email"


@pytest.mark.rule("D21", expected="accepted")
async def test_ten_thousand_recipients_are_taken(mailer):
    """Row D21."""
    to = [f"user{number}@d{number % 50}.example" for number in range(10_000)]
    prepared = await taken(mailer, email(to=to))

    assert prepared.recipients == tuple(to)
    assert is_clean(prepared.content)


@pytest.mark.rule("D21", expected="above Limits.recipients: refused")
async def test_too_many_recipients_are_refused():
    """Row D21: the documented limit."""
    config = Config(helo_name="mail.example.org", limits=Limits(recipients=2))
    async with Mailstrom(config, MemoryStorage(), deliver=False) as mailer:
        error = await refused(mailer, email(to="a@example.net", cc="b@example.net", bcc="c@example.net"))
        await mailer.send_email(email(to="a@example.net, b@example.net, a@example.net"))

    assert error.problem.startswith("3 recipients, and 2 are allowed")


@pytest.mark.rule("D22", expected="refused early")
@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 2_000_001},
        {"html": "ü" * 2_000_001},
        {"attachments": (Attachment(filename="a", content=bytes(1_500_001)),)},
    ],
)
async def test_what_is_too_large_is_refused(mailer, fields):
    """Row D22."""
    error = await refused(mailer, email(**fields))

    assert "raise Limits.message_size" in error.problem


@pytest.mark.rule("D23", expected="an EmailMessage: refused; bytes: not looked into, so any depth is one")
async def test_deep_nesting_is_no_trouble(mailer):
    """Row D23."""
    message = EmailMessage()
    message.set_content("x")
    for _ in range(2000):
        outer = EmailMessage()
        outer["From"], outer["To"] = "a@example.org", "b@example.net"
        outer.make_mixed()
        outer.attach(message)
        message = outer
    error = await refused(mailer, message)
    parts = b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(2000))
    whole = b"From: a@example.org\r\nTo: b@example.net\r\n" + parts
    prepared = await taken(mailer, whole)

    assert "nested too deeply" in error.problem
    assert prepared.content.endswith(parts.partition(b"\r\n\r\n")[2])


@pytest.mark.rule("D24", expected="a base name, or refused; never opened")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../x", "x"),
        ("C:\\x", "x"),
        ("/x", "x"),
        ("a\r\nb", None),
        ("a\0b", None),
        ("a\u202eb", None),
        ("x" * 5000, None),
        ("", None),
        ("😀 ü.pdf", "😀 ü.pdf"),
    ],
)
async def test_attachment_names_are_base_names(mailer, name, expected):
    """Row D24."""
    message = email(attachments=(Attachment(filename=name, content=b"x"),))
    if expected is None:
        assert (await refused(mailer, message)).field == "attachments"
    else:
        assert parsed(await taken(mailer, message)).get_payload(1).get_filename() == expected


@pytest.mark.rule("D25", expected="refused")
@pytest.mark.parametrize("message_id", ["a@b\r\nBcc: x@y", "a@b\n", "a@b\0", "a@b> <c@d"])
async def test_a_message_id_with_more_in_it_is_refused(mailer, message_id):
    """Row D25."""
    assert (await refused(mailer, email(message_id=message_id))).field == "message_id"


@pytest.mark.rule("D25", expected="one that was accepted before: AlreadyQueued, and the first is untouched")
async def test_a_message_id_is_taken_once(mailer):
    """Row D25: an idempotency key, not a way to overwrite."""
    message_id = await mailer.send_email(email(message_id="order-4711@example.org"))
    with pytest.raises(AlreadyQueued):
        await mailer.send_email(email(message_id="order-4711@example.org", to="eve@example.com"))

    (status,) = await mailer.query_recent()
    assert status.message_id == message_id
    assert [recipient.address for recipient in status.recipients] == ["ada@example.net"]


@pytest.mark.rule("D26", expected="MessageNotFound, in short")
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "SQLite"])
@pytest.mark.parametrize(
    "message_id", ["", "' OR 1=1 --", "%", "a\0b", "\ud800", "x" * 1_000_000, "<a@b>", "a@b\r\nc", "\x1b[31m", "🎉"]
)
async def test_an_id_that_is_none_is_unknown(tmp_path, durable, message_id):
    """Row D26: nothing of it gets into a statement, and not much of it into the error."""
    storage = SQLiteStorage(tmp_path / "mail.db") if durable else MemoryStorage()
    async with Mailstrom(Config(helo_name="mail.example.org"), storage, deliver=False) as mailer:
        await mailer.send_email(email())
        for ask in (mailer.query_status, mailer.query_attempts, mailer.query_prepared, mailer.cancel, mailer.retry_now):
            with pytest.raises(MessageNotFound) as unknown:
                await ask(message_id)

            assert len(str(unknown.value)) < 1500
            assert str(unknown.value).isprintable()
        assert len(await mailer.query_recent()) == 1


@pytest.mark.rule("D27", expected="double From refused")
async def test_a_second_author_field_is_refused(mailer):
    """Row D27: one reader would show the one, another reader the other."""
    assert (await refused(mailer, email(headers={"From": "boss@example.org"}))).field == "headers"
    assert (
        await refused(mailer, b"From: a@example.org\r\nfrom: b@example.org\r\nTo: c@example.net\r\n\r\n")
    ).field == "email"


@pytest.mark.rule("D28", expected="absent")
async def test_secrets_are_in_no_exception(mailer):
    """Row D28: bodies and hidden recipients."""
    errors = [
        await refused(mailer, email(bcc="secret@@example.net")),
        await refused(mailer, email(bcc="secret\r\n@example.net")),
        await refused(mailer, email(), recipients=["secret@@example.net"]),
        await refused(mailer, b"From: a@example.org\r\nBcc: secret@@example.net\r\n\r\nsecret"),
        await refused(mailer, email(text="secret" * 1_000_000)),
        await refused(mailer, email(), expires_after=timedelta(0)),
    ]

    assert all("secret" not in f"{error} {error!r} {error.__cause__!r}" for error in errors)


@pytest.mark.rule("D28", expected="absent from logs")
async def test_secrets_are_in_no_log(mailer, caplog):
    """Row D28: whatever the level."""
    caplog.set_level("DEBUG")
    await mailer.send_email(email(bcc="secret@example.net", text="secret", headers={"X-Secret": "secret"}))
    await refused(mailer, email(bcc="secret@@example.net"), expected=1)

    assert "secret" not in caplog.text
