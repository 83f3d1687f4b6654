"""Messages that callers hand in whole: bytes, and the standard library's EmailMessage."""

from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser, Parser

import pytest

from mailstrom_async import InvalidEmail, Limits
from mailstrom_async._message.compose import Envelope, compose
from mailstrom_async._message.foreign import take_apart
from mailstrom_async._message.ids import Stamp
from mailstrom_async._message.lines import BLOCK

STAMP = Stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "t0ken", "mail.example.org")
NOBODY = Envelope()


def prepare(message: EmailMessage | bytes, envelope: Envelope = NOBODY):
    return compose(message, envelope, STAMP, limits=Limits(message_size=50_000_000))


COMPLETE = (
    b"From: Ada <ada@example.org>\r\n"
    b"To: Bob <bob@example.net>,\r\n\tcarol@example.net\r\n"
    b"Subject:  odd   spacing and =?utf-8?q?w=C3=B6rds?=\r\n"
    b"Date: Fri, 21 Nov 1997 09:55:06 -0600\r\n"
    b"Message-ID: <1234@local.machine.example>\r\n"
    b"X-Odd:\r\n"
    b"\r\n"
    b"Body  \r\n.\r\n..\r\n\tend\r\n"
)


def test_a_complete_message_is_left_byte_for_byte():
    """Odd spacing, folding and all: a signature may cover it."""
    prepared = prepare(COMPLETE)

    assert prepared.content == COMPLETE
    assert prepared.message_id == "1234@local.machine.example"
    assert prepared.sender == "ada@example.org"
    assert prepared.recipients == ("bob@example.net", "carol@example.net")
    assert (prepared.smtputf8, prepared.eight_bit) == (False, False)


def test_what_is_missing_is_added_behind_the_header():
    """Message-ID and Date, and nothing else."""
    prepared = prepare(b"From: a@example.org\r\nTo: b@example.net\r\n\r\nHello\r\n")

    assert prepared.content == (
        b"From: a@example.org\r\nTo: b@example.net\r\n"
        b"Message-ID: <19b7ca98c88.t0ken@mail.example.org>\r\nDate: Fri, 02 Jan 2026 03:04:05 +0000\r\n\r\nHello\r\n"
    )


def test_hidden_recipients_get_it_and_nobody_sees_them():
    """Bcc, Resent-Bcc and Return-Path are gone, folded lines included (row D13)."""
    prepared = prepare(
        b"Return-Path: <r@example.org>\r\nFrom: a@example.org\r\nbCC: x@example.net,\r\n y@example.net\r\n"
        b"Resent-Bcc: z@example.net\r\nTo: b@example.net\r\n\r\nHello\r\n"
    )

    assert prepared.recipients == ("b@example.net", "x@example.net", "y@example.net")
    assert b"x@" not in prepared.content
    assert b"y@" not in prepared.content
    assert b"z@" not in prepared.content
    assert b"r@" not in prepared.content


def test_a_message_without_a_body_gets_its_empty_line():
    """The header's end."""
    assert prepare(b"From: a@example.org\nTo: b@example.net").content.endswith(b"+0000\r\n\r\n")


def test_octets_above_127_in_the_body_need_8bitmime():
    """Row A53: nothing is converted, as that would break a signature."""
    prepared = prepare("From: a@example.org\r\nTo: b@example.net\r\n\r\nGrüße\r\n".encode("latin-1"))

    assert prepared.content.endswith(b"Gr\xfc\xdfe\r\n")
    assert (prepared.smtputf8, prepared.eight_bit) == (False, True)


@pytest.mark.parametrize("field", ["Subject: Grüße", "To: jörg@example.net", "X-Y: ü"])
def test_octets_above_127_in_the_header_need_smtputf8(field):
    """Row A54, and RFC 6532."""
    prepared = prepare(f"From: a@example.org\r\nCc: b@example.net\r\n{field}\r\n\r\nHello\r\n".encode())

    assert (prepared.smtputf8, prepared.eight_bit) == (True, True)
    assert f"\r\n{field}\r\n".encode() in prepared.content


def test_a_hidden_recipient_in_utf_8_needs_smtputf8_for_itself_only():
    """The content is ASCII without it."""
    prepared = prepare("From: a@example.org\r\nBcc: jörg@example.net\r\n\r\nHello\r\n".encode())

    assert prepared.recipients == ("jörg@example.net",)
    assert (prepared.smtputf8, prepared.eight_bit) == (False, False)


REFUSED = {
    "empty": (b"", "no header"),
    "no header": (b"\r\nHello", "no header"),
    "NUL": (b"From: a@example.org\r\nTo: b@example.net\r\n\r\n\0", "NUL"),
    "long line": (b"From: a@example.org\r\nTo: b@example.net\r\n\r\n" + b"x" * 999, "998"),
    "long header line": (b"From: a@example.org\r\nTo: b@example.net\r\nX: " + b"x" * 999 + b"\r\n\r\n", "998"),
    "no From": (b"To: b@example.net\r\n\r\n", "no From"),
    "two From": (b"From: a@example.org\r\nFROM: c@example.org\r\nTo: b@example.net\r\n\r\n", "twice"),
    "two To": (b"From: a@example.org\r\nTo: c@example.org\r\nTo: b@example.net\r\n\r\n", "twice"),
    "two Subject": (b"From: a@example.org\r\nSubject: c\r\nsubject: b\r\nTo: b@example.net\r\n\r\n", "twice"),
    "mbox": (b"From a@example.org Fri Nov 21\r\nTo: b@example.net\r\n\r\n", "mbox"),
    "blank before the colon": (b"From : a@example.org\r\nTo: b@example.net\r\n\r\n", "no field"),
    "no colon": (b"From: a@example.org\r\nTo b@example.net\r\n\r\n", "no field"),
    "begins folded": (b" From: a@example.org\r\nTo: b@example.net\r\n\r\n", "no field"),
    "blank line of blanks": (b"From: a@example.org\r\n \r\nTo: b@example.net\r\n\r\n", "blanks"),
    "blanks at the end": (b"From: a@example.org\r\nTo: b@example.net\r\n\t\r\n\r\nx", "blanks"),
    "name in UTF-8": ("From: a@example.org\r\nTö: b@example.net\r\n\r\n".encode(), "no field"),
    "Latin-1": ("From: a@example.org\r\nTo: b@example.net\r\nSubject: ü\r\n\r\n".encode("latin-1"), "not UTF-8"),
    "vertical tab": (b"From: a@example.org\r\nTo: b@example.net\r\nSubject: a\x0bBcc: c\r\n\r\n", r"U\+000B"),
    "next line": ("From: a@example.org\r\nTo: b@example.net\r\nSubject: a\x85b\r\n\r\n".encode(), r"U\+0085"),
    "line separator": ("From: a@example.org\r\nTo: b@example.net\r\nX: a\u2028b\r\n\r\n".encode(), r"U\+2028"),
    "bad address": (b"From: a@example.org\r\nTo: b@@example.net\r\n\r\n", "To header field"),
    "bad Message-ID": (b"From: a@example.org\r\nTo: b@example.net\r\nMessage-ID: x\r\n\r\n", "Message-ID"),
    "nobody": (b"From: a@example.org\r\n\r\n", "no recipient"),
    "huge header": (
        b"From: a@example.org\r\nTo: b@example.net\r\n" + b"X: y\r\n" * 800_000 + b"\r\n",
        "header of more",
    ),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_bytes_that_are_no_message_are_refused(content, reason):
    """Row D20, with the reason."""
    with pytest.raises(InvalidEmail, match=reason):
        prepare(content)


def test_an_error_never_quotes_a_hidden_recipient():
    """Row D28."""
    for content in (
        b"From: a@example.org\r\nBcc: secret@@example.net\r\n\r\n",
        b"From: a@example.org\r\nBcc: x@example.net\r\n secret\x0b\r\n\r\n",
        b"From: a@example.org\r\nBcc: x@example.net\r\nsecret@example.net\r\n\r\n",
    ):
        with pytest.raises(InvalidEmail) as refused:
            prepare(content)

        assert "secret" not in str(refused.value)


# RFC 5322 appendix A, messages as they would be sent, and one after RFC 6532.
EXAMPLES = {
    "A.1.1": b"""From: John Doe <jdoe@machine.example>
Sender: Michael Jones <mjones@machine.example>
To: Mary Smith <mary@example.net>
Subject: Saying Hello
Date: Fri, 21 Nov 1997 09:55:06 -0600
Message-ID: <1234@local.machine.example>

This is a message just to say hello.
So, "Hello".
""",
    "A.1.2": b"""From: "Joe Q. Public" <john.q.public@example.com>
To: Mary Smith <mary@x.test>, jdoe@example.org, Who? <one@y.test>
Cc: <boss@nil.test>, "Giant; \\"Big\\" Box" <sysservices@example.net>
Date: Tue, 1 Jul 2003 10:52:37 +0200
Message-ID: <5678.21-Nov-1997@example.com>

Hi everyone.
""",
    "A.1.3": b"""From: Pete <pete@silly.example>
To: A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;
Cc: Undisclosed recipients:;
Date: Thu, 13 Feb 1969 23:32:54 -0330
Message-ID: <testabcd.1234@silly.example>

Testing.
""",
    "A.2": b"""From: Mary Smith <mary@example.net>
To: John Doe <jdoe@machine.example>
Reply-To: "Mary Smith: Personal Account" <smith@home.example>
Subject: Re: Saying Hello
Date: Fri, 21 Nov 1997 10:01:10 -0600
Message-ID: <3456@example.net>
In-Reply-To: <1234@local.machine.example>
References: <1234@local.machine.example>

This is a reply to your hello.
""",
    "A.3": b"""Resent-From: Mary Smith <mary@example.net>
Resent-To: Jane Brown <j-brown@other.example>
Resent-Date: Mon, 24 Nov 1997 14:22:01 -0800
Resent-Message-ID: <78910@example.net>
From: John Doe <jdoe@machine.example>
To: Mary Smith <mary@example.net>
Subject: Saying Hello
Date: Fri, 21 Nov 1997 09:55:06 -0600
Message-ID: <1234@local.machine.example>

This is a message just to say hello.
""",
    "A.4": b"""Received: from x.y.test
   by example.net
   via TCP
   with ESMTP
   id ABC12345
   for <mary@example.net>;  21 Nov 1997 10:05:43 -0600
Received: from node.example by x.y.test; 21 Nov 1997 10:01:22 -0600
From: John Doe <jdoe@node.example>
To: Mary Smith <mary@example.net>
Subject: Saying Hello
Date: Fri, 21 Nov 1997 09:55:06 -0600
Message-ID: <1234@local.node.example>

This is a message just to say hello.
""",
    "A.5": b"""From: Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>
To:A Group(Some people)
     :Chris Jones <c@(Chris's host.)public.example>,
         joe@example.org,
  John <jdoe@one.test> (my dear friend); (the end of the group)
Cc:(Empty list)(start)Hidden recipients  :(nobody(that I know))  ;
Date: Thu,
      13
        Feb
          1969
      23:32
               -0330 (Newfoundland Time)
Message-ID:              <testabcd.1234@silly.test>

Testing.
""",
    "A.6.2": b"""From: John Doe <jdoe@machine.example>
To: Mary Smith <mary@example.net>
Subject: Saying Hello
Date: 21 Nov 97 09:55:06 GMT
Message-ID: <1234@local.machine.example>

This is a message just to say hello.
So, "Hello".
""",
    "RFC 6532": """From: Pelé <pelé@example.com>
To: 阿Q <用户@例子.广告>
Subject: Wie heißt das?
Date: Fri, 21 Nov 1997 09:55:06 -0600
Message-ID: <1234@local.node.example>

Grüße
""".encode(),
}


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_of_the_standards_are_sent_as_they_are(text):
    """Nothing is touched, and the standard library's parser finds the same recipients."""
    content = text.replace(b"\n", b"\r\n")
    prepared = prepare(content)

    assert prepared.content == content
    named = Parser(policy=policy.default).parsestr(content.decode())
    found = {address.username for field in ("To", "Cc") for address in (named[field].addresses if named[field] else ())}
    if b"(" not in content:  # its parser keeps no address behind some comments
        assert {recipient.partition("@")[0] for recipient in prepared.recipients} == found


OBSOLETE = {
    "A.6.1": (
        b"""From: Joe Q. Public <john.q.public@example.com>
To: Mary Smith <@node.test:mary@example.net>, , jdoe@test  . example
Date: Tue, 1 Jul 2003 10:52:37 +0200
Message-ID: <5678.21-Nov-1997@example.com>

Hi everyone.
""",
        "source routes are not supported",
    ),
    "A.6.3": (
        b"""From  : John Doe <jdoe@machine(comment).  example>
To    : Mary Smith
\x20\x20
          <mary@example.net>
Subject     : Saying Hello
Date  : Fri, 21 Nov 1997 09(comment):   55  :  06 -0600
Message-ID  : <1234   @   local(blah)  .machine .example>

This is a message just to say hello.
So, "Hello".
""",
        "nothing but blanks",
    ),
}


@pytest.mark.parametrize(("text", "reason"), OBSOLETE.values(), ids=OBSOLETE)
def test_obsolete_messages_are_refused_with_the_reason(text, reason):
    """RFC 5322 section 4: nobody may write such any more, and readers differ on what they mean."""
    with pytest.raises(InvalidEmail, match=reason):
        prepare(text)


def test_a_field_is_read_unfolded():
    """However it is folded."""
    message = take_apart(b"From: a@example.org\nTo:\n b@example.net\n ,\n\tc@example.net\n\n")

    assert [mailbox.address for mailbox in message.mailboxes("to")] == ["b@example.net", "c@example.net"]


# EmailMessage.


def email_message(**fields: str) -> EmailMessage:
    message = EmailMessage()
    for name, value in ({"From": "a@example.org", "To": "b@example.net"} | fields).items():
        message[name.replace("_", "-")] = value
    message.set_content("Grüße\n")
    return message


def test_an_email_message_arrives_with_its_parts():
    """Encoded 7-bit, whatever the parts were."""
    message = email_message(Subject="日本語の件名 " * 10)
    message.add_alternative("<p>Grüße</p>", subtype="html", cte="8bit")
    message.add_attachment(bytes(range(256)), maintype="application", subtype="pdf", filename="Übersicht.pdf")
    prepared = prepare(message)
    parsed = BytesParser(policy=policy.default).parsebytes(prepared.content)

    assert prepared.content.isascii()
    assert (prepared.smtputf8, prepared.eight_bit) == (False, False)
    assert parsed["Subject"] == "日本語の件名 " * 10
    assert parsed.get_body(("plain",)).get_content() == "Grüße\n"
    assert parsed.get_body(("html",)).get_content() == "<p>Grüße</p>\n"
    (attachment,) = parsed.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content()) == ("Übersicht.pdf", bytes(range(256)))


def test_large_attachments_of_an_email_message_are_where_they_were():
    """Row C19: they are written beside, without the copies that the standard library makes; also the caller's object
    stays as it was."""
    contents = [bytes([number]) * (BLOCK + number) for number in range(3)]
    message = EmailMessage()
    message["From"], message["To"] = "a@example.org", "b@example.net"
    message.set_content("Hello")
    message.add_alternative("<p>", subtype="html")
    message.get_body(("html",)).add_related(contents[0], maintype="image", subtype="png", cid="<x>", filename="0")
    inner = EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("x")
    inner.add_attachment(contents[1], maintype="video", subtype="mp4", filename="1")
    message.add_attachment(inner)
    message.add_attachment(contents[2], maintype="video", subtype="mp4", filename="2")
    before = message.as_bytes()
    prepared = prepare(message)
    received = BytesParser(policy=policy.default).parsebytes(prepared.content)
    files = {part.get_filename(): part.get_content() for part in received.walk() if part.get_filename()}

    assert files == {str(number): content for number, content in enumerate(contents)}
    assert message.as_bytes() == before
    assert [part.get_content_type() for part in received.walk()] == [part.get_content_type() for part in message.walk()]
    check_lines(prepared.content)


def test_a_single_large_part_of_an_email_message_is_written_too():
    """Whatever stands for it is gone."""
    message = EmailMessage()
    message["From"], message["To"] = "a@example.org", "b@example.net"
    message.set_content(bytes(BLOCK), maintype="video", subtype="mp4")
    received = BytesParser(policy=policy.default).parsebytes(prepare(message).content)

    assert received.get_content() == bytes(BLOCK)


def check_lines(content: bytes) -> None:
    assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n")


def test_twenty_recipients_of_an_email_message_all_arrive():
    """What its own writer loses on some patch levels (CVE-2025-1795), ours does not."""
    names = ", ".join(f'"Jörg Müller {number} (Sales)" <j{number}@bücher.example>' for number in range(20))
    prepared = prepare(email_message(Cc=names))
    parsed = BytesParser(policy=policy.default).parsebytes(prepared.content)

    assert [address.display_name for address in parsed["Cc"].addresses] == [
        f"Jörg Müller {n} (Sales)" for n in range(20)
    ]
    assert prepared.recipients[1:] == tuple(f"j{number}@xn--bcher-kva.example" for number in range(20))


def test_a_long_url_of_an_email_message_stays_one():
    """Its own writer would encode it, which breaks one-click unsubscribing."""
    url = "<https://example.org/" + "x" * 300 + ">"

    assert f"\r\nList-Unsubscribe: {url}\r\n".encode() in prepare(email_message(List_Unsubscribe=url)).content


def test_a_name_can_not_inject_a_field():
    """Its own writer takes line breaks in names of fields."""
    message = email_message()
    message["X-A\r\nBcc"] = "hidden@example.net"

    with pytest.raises(InvalidEmail, match="no name of a header field"):
        prepare(message)


def test_a_name_of_a_content_field_can_not_inject_one_either():
    """Those are written by the standard library, so they are checked before."""
    message = email_message()
    message["Content-X\r\nBcc"] = "hidden@example.net"

    with pytest.raises(InvalidEmail, match="no name of a header field"):
        prepare(message)


def test_the_callers_email_message_is_not_changed():
    """It may be sent again."""
    message = email_message(Bcc="c@example.net")
    before = list(message.items())
    prepare(message)

    assert list(message.items()) == before


def test_an_email_message_nested_too_deeply_is_refused():
    """Row D23."""
    message = email_message()
    for _ in range(2000):
        outer = EmailMessage()
        outer["From"], outer["To"] = "a@example.org", "b@example.net"
        outer.make_mixed()
        outer.attach(message)
        message = outer

    with pytest.raises(InvalidEmail, match="nested too deeply"):
        prepare(message)


def test_a_broken_email_message_is_refused():
    """Whatever the standard library says to it."""
    message = email_message()
    message.set_payload(object())

    with pytest.raises(InvalidEmail, match="can't be written"):
        prepare(message)
