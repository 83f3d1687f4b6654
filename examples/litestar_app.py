"""A Litestar application that sends mail.

What it shows: the mailer in Litestar's lifespan; its errors as HTTP statuses.
Requires: pip install litestar uvicorn
To run:   uvicorn --app-dir examples litestar_app:app       (settings: see examples/README.md)
          curl -X POST localhost:8000/mails -H 'Content-Type: application/json' \
               -d '{"from": "app@example.org", "to": "ada@example.net", "subject": "Hello", "text": "Hello Ada"}'
          curl localhost:8000/mails/ID
It should print: {"id": "..."}, and then the status: first "queued", soon "delivered".
"""

import os
from typing import Any

from litestar import Litestar, Request, Response, get, post

from mailstrom_async import Config, Email, InvalidEmail, Mailstrom, MessageNotFound, SQLiteStorage

config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
mailer = Mailstrom(config, SQLiteStorage(os.environ.get("MAIL_DB", "mail.db")))


@post("/mails", status_code=202)
async def send(data: dict[str, Any]) -> dict[str, str]:
    """When this answers, the mail is on disk."""
    return {"id": await mailer.send_email(Email.model_validate(data))}


@get("/mails/{message_id:path}")
async def status(message_id: str) -> dict[str, Any]:
    """What became of a mail, recipient by recipient."""
    found = await mailer.query_status(message_id.removeprefix("/"))
    return found.model_dump(mode="json")


def refuse(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    """pydantic's ValidationError and our InvalidEmail are ValueErrors; MessageNotFound is a LookupError."""
    return Response({"error": str(error)}, status_code=404 if isinstance(error, MessageNotFound) else 422)


app = Litestar(
    [send, status],
    lifespan=[mailer.lifespan],
    exception_handlers={ValueError: refuse, InvalidEmail: refuse, MessageNotFound: refuse},
)
