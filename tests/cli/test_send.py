"""`mailstrom-async send`, and what the exchangers then have."""

import email
import json
import re
import signal
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage

import pytest
from fast_mail_parser import parse_email

from mailstrom_async import Config, Mailstrom, SQLiteStorage
from mailstrom_async.testing import CertificateAuthority, Gate, SMTPServer

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
PLAIN = b"From: App <app@example.org>\nTo: ada@swift.example.net\nSubject: Hello\n\nHello Ada\n"


def real_message() -> EmailMessage:
    """A mail as a program writes it: two bodies, a file, and a subject beyond ASCII."""
    message = EmailMessage()
    message["From"] = "Jörg Müller (Sales) <joerg@example.org>"
    message["To"] = "Ada Lovelace <ada@swift.example.net>"
    message["Cc"] = "grace@swift.example.net"
    message["Bcc"] = "Secret Reader <secret@swift.example.net>"
    message["Subject"] = "Grüße aus Köln — 日本語 🎉"
    message.set_content("Grüße,\n\n.ein Punkt am Anfang\n..und zwei\nFrom here\n")
    message.add_alternative("<p>Grüße</p>\n", subtype="html")
    message.add_attachment(PDF, maintype="application", subtype="pdf", filename="Übersicht 2030.pdf")
    return message


def parts(message: EmailMessage) -> list[tuple[str, str | None, object]]:
    """What a reader has of a message: type, file name and content of each part. Lines end as text in Python does."""
    leaves = [part for part in message.walk() if not part.is_multipart()]
    contents = [part.get_content() for part in leaves]
    return [
        (part.get_content_type(), part.get_filename(), text.replace("\r\n", "\n") if isinstance(text, str) else text)
        for part, text in zip(leaves, contents, strict=True)
    ]


async def test_a_real_message_arrives_as_it_was(command, internet, there):
    """A multipart message with an attachment and a non-ASCII subject: the parts that arrive are those that were sent,
    and nothing tells of Bcc."""
    original = real_message()
    (command.folder / "mail.eml").write_bytes(original.as_bytes())

    ended = await command("send", *there, "mail.eml")

    assert (ended.status, ended.err) == (0, "")
    (received,) = internet.exchangers["mx.swift.example.net"].messages
    assert received.sender == "joerg@example.org"
    assert set(received.recipients) == {f"{name}@swift.example.net" for name in ("ada", "grace", "secret")}
    assert parts(received.email) == parts(original)
    assert received.email["Subject"] == original["Subject"]
    assert received.email["From"].addresses == original["From"].addresses
    assert received.email["Bcc"] is None
    assert not re.search(rb"^[\w-]*bcc:", received.content, re.IGNORECASE | re.MULTILINE)
    assert b"secret" not in received.content.lower()
    assert not internet.exchangers["mx.swift.example.net"].violations


def illustrated_message() -> EmailMessage:
    """Every kind of part and script at once."""
    message = EmailMessage()
    message["From"] = Address("Jörg Müller (Verkauf) [Köln]", "joerg", "example.org")
    message["To"] = [
        Address("山田 太郎", "yamada", "swift.example.net"),
        Address("Straße, Größe & Co.", "b", "swift.example.net"),
    ]
    message["Subject"] = "会議のお知らせ：来週の月曜日、午前十時から本社の大会議室にて"
    message.set_content("Grüße\n")
    message.add_alternative('<p>Grüße <img src="cid:logo"></p>\n', subtype="html")
    message.get_body(("html",)).add_related(PNG, maintype="image", subtype="png", cid="<logo>", filename="logo.png")
    message.add_attachment(PDF, maintype="application", subtype="pdf", filename="🎉 Übersicht.pdf")
    return message


async def test_two_parsers_that_share_no_code_find_all_parts_of_what_arrives(command, internet, there):
    """A Japanese subject, brackets and umlauts in names, an emoji in a file name, an image in the HTML and a PDF: the
    standard library's parser, and one in Rust."""
    original = illustrated_message()
    (command.folder / "mail.eml").write_bytes(original.as_bytes(policy=policy.SMTP))

    ended = await command("send", *there, "mail.eml")

    assert (ended.status, ended.err) == (0, "")
    (received,) = internet.exchangers["mx.swift.example.net"].messages
    other = parse_email(received.content)
    assert parts(received.email) == parts(original)
    assert received.email["Subject"] == other.subject == original["Subject"]
    assert received.email["From"].addresses == original["From"].addresses
    assert received.email["To"].addresses == original["To"].addresses
    assert [text.strip() for text in (*other.text_plain, *other.text_html)] == [
        "Grüße",
        '<p>Grüße <img src="cid:logo"></p>',
    ]
    assert sorted((file.filename, file.mimetype, file.content) for file in other.attachments) == [
        ("logo.png", "image/png", PNG),
        ("🎉 Übersicht.pdf", "application/pdf", PDF),
    ]


async def test_the_message_may_come_from_standard_input(command, internet, there):
    """Without FILE the message is read from standard input, recipients from its header."""
    ended = await command("send", *there, stdin=PLAIN)

    assert ended.status == 0
    (received,) = internet.exchangers["mx.swift.example.net"].messages
    assert received.recipients == ("ada@swift.example.net",)
    assert received.content.endswith(b"\r\n\r\nHello Ada\r\n")


async def test_sender_and_recipients_may_be_given(command, internet, there):
    """--from and --to make the envelope; the header stays as it is."""
    ended = await command(
        "send",
        *(*there, "--from", "bounces@example.org", "--to", "x@swift.example.net", "--to", "y@swift.example.net"),
        stdin=PLAIN,
    )

    assert ended.status == 0
    (received,) = internet.exchangers["mx.swift.example.net"].messages
    assert received.sender == "bounces@example.org"
    assert received.recipients == ("x@swift.example.net", "y@swift.example.net")
    assert received.email["To"] == "ada@swift.example.net"


async def test_a_failed_recipient_gives_69(command, there):
    """One recipient is refused for good: 69, and its reply is shown."""
    ended = await command("send", *there, "--to", "a@picky.example.com", "--to", "b@swift.example.net", stdin=PLAIN)

    assert ended.status == 69
    assert "550 5.1.1 no such person" in ended.out
    assert "delivered" in ended.out


async def test_a_deferred_recipient_gives_75_and_stays_queued(command, there):
    """A deferred recipient gives 75; `queue` and `status` then tell of it."""
    ended = await command("send", *there, "--db", "q.db", "--to", "a@grey.example.org", stdin=PLAIN)
    assert ended.status == 75
    message_id = ended.out.splitlines()[0].removeprefix("queued as ")

    queue = await command("queue", "--db", "q.db", "--json")
    status = await command("status", "--db", "q.db", message_id)

    assert (queue.status, status.status) == (0, 0)
    (listed,) = [json.loads(line) for line in queue.out.splitlines()]
    assert listed["message_id"] == message_id
    assert listed["recipients"][0]["result"]["state"] == "deferred"
    assert "Attempt 1" in status.out
    assert "a@grey.example.org: deferred 4.7.1" in status.out
    assert "RCPT TO:<a@grey.example.org>" in status.out


async def test_the_next_send_goes_on_with_what_is_queued(command, internet, there):
    """What an interrupted `send` left is delivered by the next one with the same database."""
    server = internet.exchangers["mx.swift.example.net"]
    server.script["end of data"] = gate = Gate("451 4.3.0 not now")
    process = await command.start("send", *there)
    process.stdin.write(PLAIN)
    process.stdin.close()
    await gate.reached()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    gate.open()
    del server.script["end of data"]

    ended = await command("send", *there, "--to", "other@swift.example.net", stdin=PLAIN)

    assert ended.status == 0
    received = await server.wait_for_messages(2)
    assert {message.recipients for message in received} == {("ada@swift.example.net",), ("other@swift.example.net",)}


async def test_a_database_that_a_program_has_open_may_be_used(command, internet, there):
    """The running program delivers what `send` queues, and `queue` and `status` answer meanwhile."""
    config = Config(helo_name="app.example.org", delivery=internet.delivery)
    async with Mailstrom(config, SQLiteStorage(command.folder / "mailstrom.db")) as mailer:
        held = await mailer.send_email(PLAIN, recipients=["a@grey.example.org"])
        await mailer.wait(held, until="attempted")
        ended = await command("send", *there, stdin=PLAIN)
        queue = await command("queue", "--json")
        status = await command("status", held)

    assert (ended.status, ended.err) == (0, "")
    assert "250 2.0.0" in ended.out
    (listed,) = [json.loads(line) for line in queue.out.splitlines()]
    assert listed["message_id"] == held
    assert (status.status, status.err) == (0, "")
    assert "a@grey.example.org: deferred 4.7.1" in status.out
    assert internet.exchangers["mx.swift.example.net"].sessions[0].helo == "app.example.org"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_send_leaves_its_message_queued(command, internet, there, number):
    """Control-C and SIGTERM end it with one line; the message is still in the queue, which `queue` counts."""
    internet.exchangers["mx.swift.example.net"].script["greeting"] = gate = Gate("421 4.3.2 going down")
    process = await command.start("send", *there)
    process.stdin.write(PLAIN)
    process.stdin.close()
    await gate.reached()
    process.send_signal(number)
    gate.open()  # so that nobody waits for the grace to be over
    ended = await command.end(process)
    queue = await command("queue")

    assert ended.status == 75
    assert ended.err.splitlines() == ["mailstrom-async: interrupted; the message stays queued"]
    assert "\n1 message, recipients: 1 " in queue.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_message_that_a_server_holds_at_an_interrupt_is_not_sent_twice(command, internet, there, number):
    """Its reply is waited for, for some seconds; the status is that of a delivered message, nothing stays queued."""
    server = internet.exchangers["mx.swift.example.net"]
    server.script["end of data"] = gate = Gate()
    process = await command.start("send", *there)
    process.stdin.write(PLAIN)
    process.stdin.close()
    await gate.reached()
    process.send_signal(number)
    gate.open()
    ended = await command.end(process)
    queue = await command("queue")

    assert ended.status == 0
    assert "250 2.0.0" in ended.out
    assert "the message stays queued" not in ended.err
    assert len(server.messages) == 1
    assert queue.out == "The queue is empty.\n"


async def test_mail_goes_through_a_relay(command):
    """--relay delivers everything to one server, here in plaintext to a literal address."""
    async with SMTPServer() as relay:
        ended = await command(
            "send", "--helo", "c.example.org", "--relay", f"127.0.0.1:{relay.port}", "--security", "none", stdin=PLAIN
        )

        assert (ended.status, ended.err) == (0, "")
        assert relay.messages[0].recipients == ("ada@swift.example.net",)


async def test_mail_goes_through_a_relay_with_a_login(command):
    """--user logs in over verified TLS with the password from the environment."""
    authority = CertificateAuthority()
    context = authority.server_context("127.0.0.1")
    async with SMTPServer(tls=context, users={"app": "open sesame"}) as relay:
        ended = await command(
            *("send", "--helo", "c.example.org", "--relay", f"127.0.0.1:{relay.port}", "--user", "app"),
            *("--ca-file", str(authority.ca_file)),
            stdin=PLAIN,
            env={"MAILSTROM_RELAY_PASSWORD": "open sesame"},
        )

        assert (ended.status, ended.err) == (0, "")
        assert relay.messages[0].tls
        assert relay.messages[0].session.username == "app"


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"", "email"),
        (b"To: a@example.org\n\nHello\n", "From"),
        (b"From: a@example.org\nSubject: Hello\n\nHello\n", "recipient"),
        (b"From: a@example.org\nTo: not an address\n\nHello\n", "To"),
    ],
    ids=["empty", "no author", "no recipient", "no address"],
)
async def test_a_message_that_cannot_be_sent_is_told_in_one_line(command, there, message, problem):
    """Nothing is queued, the line names the field, and the status is none of those that mean "queued"."""
    ended = await command("send", *there, stdin=message)

    assert ended.status == 1
    (line,) = ended.err.splitlines()
    assert problem in line
    assert (await command("queue")).out == "The queue is empty.\n"


async def test_a_message_that_was_sent_is_not_sent_again(command, internet, there):
    """The same Message-ID is the same message: the second `send` says so."""
    message = b"Message-ID: <1@example.org>\n" + PLAIN
    await command("send", *there, stdin=message)
    ended = await command("send", *there, stdin=message)

    assert ended.status == 1
    assert "1@example.org" in ended.err
    assert internet.exchangers["mx.swift.example.net"].received == 1


def test_what_we_compare_with_is_what_we_mean():
    """The message of these tests itself parses to the parts that it was made of."""
    again = email.message_from_bytes(real_message().as_bytes(), policy=policy.default)

    assert [kind for kind, _, _ in parts(again)] == ["text/plain", "text/html", "application/pdf"]
    assert parts(again)[2][1:] == ("Übersicht 2030.pdf", PDF)
