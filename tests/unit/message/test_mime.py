"""Bodies: text, HTML, invitations and attachments as MIME."""

import gc
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser

import pytest

from mailstrom_async import Attachment, Email, InvalidEmail
from mailstrom_async._message import mime
from mailstrom_async._message.lines import join
from mailstrom_async._message.mime import (
    REMEMBERED,
    Base64,
    attachment_entity,
    base64_pieces,
    base_name,
    build,
    parameter,
    quoted_printable,
    text_entity,
)

INVITATION = (
    "BEGIN:VCALENDAR\nVERSION:2.0\nMETHOD:REQUEST\nBEGIN:VEVENT\nSUMMARY:Tee für zwei\nEND:VEVENT\nEND:VCALENDAR\n"
)


def parse(**fields) -> EmailMessage:
    entity = build(Email(from_="a@example.org", **fields), "t0ken")
    return BytesParser(policy=policy.default).parsebytes(b"MIME-Version: 1.0\r\n" + b"".join(entity.pieces))


def shape(part) -> object:
    return [part.get_content_type(), *map(shape, part.iter_parts())] if part.is_multipart() else part.get_content_type()


LOGO = Attachment(filename="logo.png", content=b"\x89PNG", content_type="image/png", inline_id="logo")
PDF = Attachment(filename="a.pdf", content=b"%PDF", content_type="application/pdf")
ALTERNATIVE, RELATED, MIXED = "multipart/alternative", "multipart/related", "multipart/mixed"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "text/plain"),
        ({"text": "a"}, "text/plain"),
        ({"html": "a"}, "text/html"),
        ({"text": "a", "html": "b"}, [ALTERNATIVE, "text/plain", "text/html"]),
        ({"html": "b", "attachments": (LOGO,)}, [RELATED, "text/html", "image/png"]),
        ({"text": "a", "attachments": (PDF,)}, [MIXED, "text/plain", "application/pdf"]),
        ({"text": "a", "attachments": (LOGO, PDF)}, [MIXED, "text/plain", "image/png", "application/pdf"]),
        ({"attachments": (PDF,)}, [MIXED, "text/plain", "application/pdf"]),
        ({"calendar": INVITATION}, "text/calendar"),
        ({"text": "a", "calendar": INVITATION}, [ALTERNATIVE, "text/plain", "text/calendar"]),
        (
            {"text": "a", "html": "b", "calendar": INVITATION, "attachments": (PDF, LOGO)},
            [
                MIXED,
                [ALTERNATIVE, "text/plain", [RELATED, "text/html", "image/png"], "text/calendar"],
                "application/pdf",
            ],
        ),
    ],
)
def test_parts_nest_as_readers_expect(fields, expected):
    """Attachments around alternatives, the richest alternative last, inline images beside the HTML."""
    assert shape(parse(**fields)) == expected


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hello\n", "7bit"),
        ("", "7bit"),
        ("x" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("Grüße\n" + "plain text\n" * 20, "quoted-printable"),
        ("日本語\n", "base64"),
        ("a\0b" + "c" * 50, "quoted-printable"),
        (
            "escape \x1b[31m form feed \x0c vertical tab \x0b, unit \x1c next line \x85 and separators\u2028\u2029"
            + "x" * 99,
            "quoted-printable",
        ),
        (".\r\n..\r\n.x", "7bit"),
        ("trailing blanks  \t\n \n", "7bit"),
        ("From here\n", "7bit"),
    ],
)
def test_a_text_is_encoded_as_little_as_it_needs(text, encoding):
    """And comes back with its line ends, all made one kind."""
    entity = text_entity("text", text, "plain")
    raw = b"".join(entity.pieces)
    part = BytesParser(policy=policy.default).parsebytes(raw)

    assert part["Content-Transfer-Encoding"] == encoding
    lines = text.replace("\r\n", "\n")
    assert part.get_payload(decode=True).decode().replace("\r\n", "\n") == (
        lines + "\n" if lines and lines[-1] != "\n" else lines
    )
    assert raw.isascii()
    assert b"\0" not in raw
    assert max(map(len, raw.split(b"\r\n"))) <= 998


def test_of_two_encodings_the_shorter_is_taken():
    """For any share of umlauts, in short texts and long ones."""
    for length in (1, 7, 40, 300):
        for umlauts in range(0, length + 1, max(1, length // 20)):
            text = "ü" * umlauts + "a b\n" * ((length - umlauts) // 4) + "é"
            raw = text.replace("\n", "\r\n").encode() + b"\r\n"
            sizes = (len(quoted_printable(raw)), sum(map(len, base64_pieces(raw))))

            assert sum(map(len, text_entity("text", text, "plain").body)) == min(sizes)


@pytest.mark.parametrize("text", ["a\rb", "a\nb", "a\r\nb", "a\n\rb", "a\r\r\nb"])
def test_line_ends_of_every_kind_become_crlf(text):
    """Row D17."""
    body = b"".join(text_entity("text", text, "plain").body)

    assert body.count(b"\r\n") == body.count(b"\r") == body.count(b"\n")


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 57 * 128 - 1, 57 * 128, 57 * 128 + 1, 57 * 1000])
def test_base64_has_lines_of_76(size):
    """Whatever the size, and the same as the standard library's."""
    import base64

    content = bytes(range(256)) * (size // 256 + 1)
    encoded = b"".join(base64_pieces(content[:size]))

    assert base64.b64decode(encoded) == content[:size]
    assert encoded == (base64.encodebytes(content[:size]).replace(b"\n", b"\r\n") or b"\r\n")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 56, 57, 58, 57 * 128 - 1, 57 * 128, 57 * 128 + 1, 57 * 1000])
def test_a_large_attachment_is_encoded_while_it_is_written(size):
    """Row C19: its size is known before, so that the message is made in one place and not moved about."""
    content = bytes(range(256)) * (size // 256 + 1)
    piece = Base64(content[:size])
    encoded = b"".join(base64_pieces(content[:size]))

    assert len(piece) == len(encoded)
    assert join([b"before", piece, b"behind"]) == b"before" + encoded + b"behind"


def test_an_attachment_too_large_to_be_remembered_is_the_same_on_the_wire():
    """It takes the other way, and arrives like any."""
    attachment = Attachment(filename="a", content=bytes(range(256)) * (REMEMBERED // 256) + b"x")
    entity = attachment_entity(attachment)
    part = BytesParser(policy=policy.default).parsebytes(join(entity.pieces))

    assert [type(piece) for piece in entity.body] == [Base64]
    assert part.get_payload(decode=True) == attachment.content


def test_an_invitation_says_its_method():
    """Calendars look for it in the content type (RFC 6047)."""
    part = parse(text="Tea?", calendar=INVITATION).get_payload(1)

    assert part["Content-Type"].params["method"] == "REQUEST"
    assert part.get_content().replace("\r\n", "\n") == INVITATION


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_method_is_found_whatever_ends_its_line(end):
    """In any case, and with blanks behind it; at the end of all, too."""
    for lines in (["begin:vcalendar", "method:cancel \t", "x"], ["BEGIN:VCALENDAR", "METHOD:CANCEL"]):
        part = parse(text="Tea?", calendar=end.join(lines)).get_payload(1)

        assert part["Content-Type"].params["method"] == "CANCEL"


@pytest.mark.parametrize(
    "calendar",
    [
        "",
        "BEGIN:VCALENDAR\nEND:VCALENDAR\n",
        "METHOD:REQUEST\n",
        "BEGIN:VCALENDAR\nMETHOD:A B\n",
        "BEGIN:VCALENDAR\nX-METHOD:REQUEST\n",
    ],
)
def test_what_is_no_invitation_is_refused(calendar):
    """Without a method it would be shown as a text of gibberish."""
    with pytest.raises(InvalidEmail, match="calendar: "):
        parse(calendar=calendar)


def test_an_attachment_is_encoded_once():
    """A thousand mails that share it share its encoded form, for as long as it lives."""
    attachment = Attachment(filename="a.bin", content=b"x" * 1000)
    key = id(attachment)

    assert attachment_entity(attachment) is attachment_entity(attachment)
    del attachment
    gc.collect()
    assert key not in mime._remembered


def test_a_big_attachment_is_not_kept_encoded():
    """It would hold memory that is needed for others."""
    attachment = Attachment(filename="a.bin", content=bytes(mime.REMEMBERED + 1))
    attachment_entity(attachment)

    assert id(attachment) not in mime._remembered


@pytest.mark.parametrize(
    "name",
    [
        "a.pdf",
        "two words.pdf",
        "Übersicht.pdf",
        "😀.png",
        "日本語" * 40 + ".pdf",
        'qu"ote.pdf',
        "it's.pdf",
        "100%.pdf",
        "x" * 250,
        "a;b=c.pdf",
        "semi'quote'.pdf",
    ],
)
def test_a_file_name_comes_back_from_the_parser(name):
    """Quoted, or as RFC 2231 has it."""
    part = parse(attachments=(Attachment(filename=name, content=b"x"),)).get_payload(1)

    assert part.get_filename() == name


def test_a_long_parameter_is_split_between_characters():
    """A percent sign and its digits stay together (RFC 2231 section 4.1)."""
    for piece in parameter("filename", "日本語" * 40)[1:]:
        assert len(piece) <= 78
        assert not piece.endswith(("%", "%E", "%9"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\y.doc", "y.doc"),
        ("/x", "x"),
        ("a/b\\c.txt", "c.txt"),
        (" a.txt ", "a.txt"),
        (".profile", ".profile"),
    ],
)
def test_only_the_base_name_goes_out(given, expected):
    """Row D24."""
    assert base_name(given) == expected


@pytest.mark.parametrize(
    "name", ["", "..", "a/", "x" * 256, "a\r\nb", "a\0", "a\tb", "invoice\u202efdp.exe", "a\u2066b", "/"]
)
def test_a_file_name_that_is_none_is_refused(name):
    """Row D24: nothing is left, or it would look like another."""
    with pytest.raises(InvalidEmail, match="attachments: "):
        base_name(name)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "pdf",
        "application/",
        "a/b\r\nBcc: x",
        "a/b; x",
        "a/b;x=ü",
        "multipart/mixed",
        'a/b; x="\n"',
        "a/b" + "; x=y" * 200,
        "a b/c",
        "a/b,c/d",
        "text/plain; charset=utf-8\x00",
    ],
)
def test_a_content_type_that_is_none_is_refused(content_type):
    """Row D1."""
    with pytest.raises(InvalidEmail, match="attachments: "):
        parse(attachments=(Attachment(filename="a", content=b"", content_type=content_type),))


@pytest.mark.parametrize("inline_id", ["", "a b", "<a>", "a\r\nb", "ü", "x" * 201])
def test_an_inline_id_that_is_none_is_refused(inline_id):
    """It stands in a header field."""
    with pytest.raises(InvalidEmail, match="attachments: "):
        parse(html="x", attachments=(Attachment(filename="a", content=b"", inline_id=inline_id),))


def test_the_parameters_of_a_content_type_survive():
    """Quoted ones too."""
    part = parse(
        attachments=(Attachment(filename="a.csv", content=b"a", content_type='text/csv; header=present; x="a b"'),)
    ).get_payload(1)

    assert dict(part["Content-Type"].params) == {"header": "present", "x": "a b"}


def test_a_message_is_attached_as_it_is():
    """RFC 2046 section 5.2.1: never encoded, so it has to be 7-bit."""
    message = b"From: a@example.org\nSubject: x\n\nbody\n"
    part = parse(
        attachments=(Attachment(filename="m.eml", content=message, content_type="message/rfc822"),)
    ).get_payload(1)

    assert part.get_payload(0)["Subject"] == "x"
    with pytest.raises(InvalidEmail, match="octet-stream"):
        parse(attachments=(Attachment(filename="m.eml", content="ü".encode(), content_type="message/rfc822"),))


@pytest.mark.parametrize("inline_id", ["logo", "logo@example.org", "a.b-c_1"])
def test_an_inline_image_is_found_by_its_id(inline_id):
    """What the HTML calls cid:..."""
    part = parse(html="x", attachments=(Attachment(filename="a", content=b"", inline_id=inline_id),)).get_payload(1)

    assert part["Content-ID"] == f"<{inline_id}>"
    assert part.get_content_disposition() == "inline"
