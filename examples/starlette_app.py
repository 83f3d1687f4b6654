"""A Starlette application that sends mail.

What it shows: the mailer in the lifespan of an application without FastAPI.
Requires: pip install starlette uvicorn
To run:   uvicorn --app-dir examples starlette_app:app       (settings: see examples/README.md)
          curl -X POST localhost:8000/mails -d '{"from": "app@example.org", "to": "ada@example.net", "text": "Hello"}'
          curl localhost:8000/mails/ID
It should print: {"id": "..."}, and then the status: first "queued", soon "delivered".
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mailstrom_async import Config, Email, Mailstrom, MessageNotFound, SQLiteStorage

config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
mailer = Mailstrom(config, SQLiteStorage(os.environ.get("MAIL_DB", "mail.db")))


async def send(request: Request) -> Response:
    """When this answers 202, the mail is on disk."""
    try:
        email = Email.model_validate_json(await request.body())
        return JSONResponse({"id": await mailer.send_email(email)}, 202)
    except ValueError as error:  # pydantic's ValidationError and our InvalidEmail
        return JSONResponse({"error": str(error)}, 422)


async def status(request: Request) -> Response:
    """What became of a mail, recipient by recipient."""
    try:
        found = await mailer.query_status(request.path_params["message_id"])
    except MessageNotFound as error:
        return JSONResponse({"error": str(error)}, 404)
    return Response(found.model_dump_json(), media_type="application/json")


app = Starlette(
    routes=[
        Route("/mails", send, methods=["POST"]),
        Route("/mails/{message_id:path}", status),
    ],
    lifespan=mailer.lifespan,
)
