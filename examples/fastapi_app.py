"""A FastAPI application that sends mail.

What it shows: the mailer in the lifespan, `Email` as a request body, a status as a response, errors as HTTP statuses.
Requires: pip install fastapi uvicorn
To run:   uvicorn --app-dir examples fastapi_app:app       (settings: see examples/README.md)
          curl -X POST localhost:8000/mails -H 'Content-Type: application/json' \
               -d '{"from": "app@example.org", "to": "ada@example.net", "subject": "Hello", "text": "Hello Ada"}'
          curl localhost:8000/mails/ID
It should print: {"id": "..."}, and then the status: first "queued", soon "delivered".
"""

import os
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.responses import JSONResponse

from mailstrom_async import (
    AlreadyQueued,
    Config,
    Email,
    InvalidEmail,
    Mailstrom,
    MailstromError,
    MessageNotFound,
    MessageStatus,
    QueueFull,
    SQLiteStorage,
)

config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
mailer = Mailstrom(config, SQLiteStorage(os.environ.get("MAIL_DB", "mail.db")))
app = FastAPI(lifespan=mailer.lifespan)

HTTP_STATUS: dict[type[MailstromError], int] = {
    InvalidEmail: 422,
    MessageNotFound: 404,
    AlreadyQueued: 409,
    QueueFull: 503,
}


@app.exception_handler(MailstromError)
async def tell(request: Request, error: MailstromError) -> JSONResponse:
    """Errors of the mailer name the thing, the cause and the remedy."""
    return JSONResponse({"error": str(error)}, HTTP_STATUS.get(type(error), 503))


# Whoever may call this may write in anybody's name: a real application checks who asks, and sets `from_` itself.
@app.post("/mails", status_code=202)
async def send(email: Email) -> dict[str, str]:
    """When this answers, the mail is on disk."""
    return {"id": await mailer.send_email(email)}


@app.get("/mails/{message_id:path}")
async def status(message_id: Annotated[str, Path(description="As POST /mails returned it")]) -> MessageStatus:
    """What became of a mail, recipient by recipient."""
    return await mailer.query_status(message_id)


@app.get("/health")
async def health() -> dict[str, str | None]:
    """For whoever watches over the application."""
    worker = mailer.worker_status
    if worker.state not in ("running", "paused"):
        raise HTTPException(503, worker.reason)
    return {"state": worker.state}
