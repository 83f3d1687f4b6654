"""The web applications of examples/, each under its real server, over HTTP."""

import signal

import pytest

from mailstrom_async.testing import Gate

APPLICATIONS = ["fastapi_app", "starlette_app", "litestar_app", "aiohttp_app"]
EMAIL = {"from": "App <app@example.org>", "to": "ada@example.net", "subject": "Grüße", "text": "Hello Ada"}


@pytest.mark.parametrize("example", APPLICATIONS)
async def test_a_mail_is_accepted_and_becomes_delivered(serve, internet, example):
    """POST answers 202 with an id; GET of the id tells the state until it is "delivered". What can't be sent, such as
    bad addresses and unknown fields, answers 422, an unknown id 404."""
    async with serve(example) as application:
        for wrong in ({"to": "no address"}, {"to": []}, {"subject": "two\nlines"}, {"nonsense": 1}):
            response = await application.send(EMAIL | wrong)
            assert response.status_code == 422, response.text
        assert (await application.client.get("/mails/nobody@example.org")).status_code == 404

        response = await application.send(EMAIL)
        assert response.status_code == 202
        message_id = response.json()["id"]
        assert await application.until(message_id, "delivered") == {"ada@example.net": "delivered"}

    (received,) = internet.exchangers["mx.example.net"].messages
    assert received.email["Subject"] == "Grüße"
    assert received.email["Message-ID"] == f"<{message_id}>"


@pytest.mark.parametrize(
    ("example", "end"),
    [*((example, signal.SIGTERM) for example in APPLICATIONS), ("fastapi_app", signal.SIGKILL)],
)
async def test_what_was_accepted_survives_a_restart(serve, internet, example, end):
    """The application ends while its mails are deferred; started again, it knows them, and delivers them."""
    server = internet.exchangers["mx.example.net"]
    server.script["RCPT"] = "451 4.7.1 come back later"
    async with serve(example, end) as application:
        message_ids = [(await application.send(EMAIL)).json()["id"] for _ in range(3)]
        for message_id in message_ids:
            await application.until(message_id, "deferred")
    assert server.messages == []
    server.script["RCPT"] = None

    async with serve(example) as application:
        for message_id in message_ids:
            await application.until(message_id, "delivered")

    assert {message.email["Message-ID"] for message in server.messages} == {f"<{each}>" for each in message_ids}
    assert server.received == 3


async def test_a_stop_lets_a_running_transaction_finish(serve, internet):
    """A server that is slow with its last reply is heard while the application stops: no second copy."""
    server = internet.exchangers["mx.example.net"]
    server.script["end of data"] = gate = Gate()
    async with serve("fastapi_app") as application:
        message_id = (await application.send(EMAIL)).json()["id"]
        await gate.reached()
        application.process.send_signal(signal.SIGTERM)
        gate.open()
    async with serve("fastapi_app") as application:
        await application.until(message_id, "delivered")

    assert server.received == 1


async def test_fastapi_describes_the_mail(serve):
    """The OpenAPI schema tells what an email may hold; attachments are base64."""
    async with serve("fastapi_app") as application:
        schema = (await application.client.get("/openapi.json")).json()
        health = (await application.client.get("/health")).json()

    email = schema["components"]["schemas"]["Email"]["properties"]
    attachment = schema["components"]["schemas"]["Attachment"]["properties"]
    assert {"from", "to", "subject", "text", "attachments"} <= set(email)
    assert attachment["content"]["format"] == "byte"
    assert health == {"state": "running"}


async def test_an_attachment_in_json_arrives(serve, internet):
    """base64 in the request, the file at the receiver."""
    attachment = {"filename": "Übersicht.txt", "content": "R3LDvMOfZQ==", "content_type": "text/plain; charset=utf-8"}
    async with serve("fastapi_app") as application:
        message_id = (await application.send(EMAIL | {"attachments": [attachment]})).json()["id"]
        await application.until(message_id, "delivered")

    (received,) = internet.exchangers["mx.example.net"].messages
    (part,) = received.email.iter_attachments()
    assert part.get_filename() == "Übersicht.txt"
    assert part.get_content() == "Grüße"


async def test_the_same_message_id_is_accepted_once(serve, internet):
    """A repeated request with its own Message-ID answers 409: the mail is on its way already."""
    async with serve("fastapi_app") as application:
        first = await application.send(EMAIL | {"message_id": "order-17@example.org"})
        second = await application.send(EMAIL | {"message_id": "order-17@example.org"})
        await application.until("order-17@example.org", "delivered")

    assert (first.status_code, second.status_code) == (202, 409)
    assert internet.exchangers["mx.example.net"].received == 1
