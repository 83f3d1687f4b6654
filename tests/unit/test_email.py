"""`Email` as its author, FastAPI and a thousand readers have it."""

import base64

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from mailstrom_async import Attachment, Email, Limits
from mailstrom_async._email import EmailFields
from mailstrom_async._message.compose import Envelope, compose
from mailstrom_async._message.ids import Stamp
from mailstrom_async._message.mime import attachment_entity

CATALOGUE = Attachment(filename="catalogue.pdf", content=b"%PDF" * 1000, content_type="application/pdf")
LETTER = Email(from_="News <news@example.org>", subject="News", attachments=(CATALOGUE,), headers={"X-Issue": "7"})


def test_a_copy_has_what_was_changed_and_shares_the_rest():
    """The attachment is the same object, so it is encoded once."""
    copies = [LETTER.but(to=f"reader{number}@example.net", text=f"Dear {number}") for number in range(3)]

    assert [copy.to for copy in copies] == [f"reader{number}@example.net" for number in range(3)]
    assert all(copy.attachments[0] is CATALOGUE for copy in copies)
    assert len({id(attachment_entity(copy.attachments[0])) for copy in copies}) == 1
    assert LETTER.to == ()
    assert copies[0] == Email(**{**LETTER.model_dump(), "to": "reader0@example.net", "text": "Dear 0"})


@pytest.mark.parametrize("changes", [{"too": "a@example.net"}, {"text": 7}, {"date": "yesterday"}, {"to": None}])
def test_a_copy_is_checked_as_a_new_email_is(changes):
    """Unlike pydantic's model_copy."""
    with pytest.raises(ValidationError):
        LETTER.but(**changes)


def test_a_copy_can_change_every_field():
    """Type checkers know them all."""
    assert set(EmailFields.__annotations__) == set(Email.model_fields)


def test_a_copy_remembers_what_was_set():
    """model_dump(exclude_unset=True) tells the same as before."""
    copy = LETTER.but(to="a@example.net")

    assert copy.model_fields_set == LETTER.model_fields_set | {"to"}


def test_json_there_and_back():
    """Attachments in base64, whatever their bytes."""
    email = Email(from_="a@example.org", attachments=(Attachment(filename="x", content=bytes(range(256))),))
    text = email.model_dump_json(by_alias=True)

    assert base64.b64encode(bytes(range(256))).decode() in text
    assert Email.model_validate_json(text) == email


@pytest.fixture
def app() -> FastAPI:
    """An application with an Email as its request body."""
    application = FastAPI()

    @application.post("/mail")
    async def accept(email: Email) -> str:
        stamp = Stamp(email.date, "t0ken", "mail.example.org")
        return compose(email, Envelope(), stamp, limits=Limits()).content.decode()

    return application


async def test_an_email_is_a_request_body(app):
    """`from` is called "from" there."""
    body = {
        "from": "App <app@example.org>",
        "to": ["ada@example.net"],
        "text": "Hello",
        "date": "2026-01-02T03:04:05Z",
        "attachments": [{"filename": "a.txt", "content": "SGVsbG8=", "content_type": "text/plain"}],
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app") as client:
        taken = await client.post("/mail", json=body)
        refused = await client.post("/mail", json=body | {"attachments": [{"filename": "a", "content": "no base64!"}]})
        unknown = await client.post("/mail", json=body | {"form": "x"})

    assert taken.status_code == 200
    assert "From: App <app@example.org>" in taken.json()
    assert "SGVsbG8=" in taken.json()
    assert (refused.status_code, unknown.status_code) == (422, 422)
    assert "must be base64" in refused.text


def test_the_schema_has_descriptions_and_examples(app):
    """And the examples are valid, and can be composed."""
    schemas = app.openapi()["components"]["schemas"]
    email, attachment = schemas["Email"], schemas["Attachment"]

    assert "from" in email["required"]
    assert email["additionalProperties"] is False
    assert attachment["properties"]["content"] == {
        "type": "string",
        "format": "byte",
        "description": "base64",
        "title": "Content",
    }
    assert all("description" in email["properties"][name] for name in ("from", "to", "cc", "bcc", "text", "calendar"))
    assert len(email["examples"]) == 2
    for example in email["examples"]:
        assert Email.model_validate(example).subject
    assert Attachment.model_validate(attachment["examples"][0]).content == b"Hello"
