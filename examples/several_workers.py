"""Four workers of a web server, and one queue for all of them.

What it shows: several processes over one SQLite file. Each of them accepts mail and knows what became of any; one of
them owns the file and delivers for all. When that one dies, another one takes over in a second or so, and the web
server starts a new worker. Nothing needs to be set up for it. Over PostgreSQL (extra "postgres") they may be on several
machines, and all of them deliver.
Requires: pip install fastapi uvicorn
To run:   uvicorn --workers 4 --app-dir examples several_workers:app       (settings: see examples/README.md)
          (MAIL_DB=postgresql://user@host/database, for PostgreSQL)
          curl -X POST localhost:8000/mails -H 'Content-Type: application/json' \
               -d '{"from": "app@example.org", "to": "ada@example.net", "subject": "Hello", "text": "Hello Ada"}'
          curl localhost:8000/mails/ID
          kill -9 PID                       (of a worker, as the answers name them; then ask again)
It should print: {"id": "...", "worker": PID}, and then the status and the worker that told it: not always the same one.
"""

import os

from fastapi import FastAPI
from pydantic import BaseModel

from mailstrom_async import Config, Email, Mailstrom, MessageStatus, SQLiteStorage, Storage


def storage(database: str) -> Storage:
    """Where the queue is kept: all workers name the same place."""
    if database.startswith("postgresql://"):
        from mailstrom_async.storage.postgres import PostgresStorage

        return PostgresStorage(database)
    return SQLiteStorage(database)


# This runs in each worker, and touches nothing: the store is opened by the lifespan.
config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
mailer = Mailstrom(config, storage(os.environ.get("MAIL_DB", "mail.db")))
app = FastAPI(lifespan=mailer.lifespan)


class Accepted(BaseModel):
    """The mail is on disk, whatever happens to the worker that says so."""

    id: str
    worker: int


class Answer(BaseModel):
    """What became of a mail, whoever accepted it and whoever delivers it."""

    status: MessageStatus
    worker: int


@app.post("/mails", status_code=202)
async def send(email: Email) -> Accepted:
    return Accepted(id=await mailer.send_email(email), worker=os.getpid())


@app.get("/mails/{message_id:path}")
async def status(message_id: str) -> Answer:
    return Answer(status=await mailer.query_status(message_id), worker=os.getpid())
