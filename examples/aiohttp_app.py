"""An aiohttp application that sends mail.

What it shows: the mailer as a cleanup context.
Requires: pip install aiohttp
To run:   python examples/aiohttp_app.py       (settings: see examples/README.md)
          curl -X POST localhost:8080/mails -d '{"from": "app@example.org", "to": "ada@example.net", "text": "Hello"}'
          curl localhost:8080/mails/ID
It should print: {"id": "..."}, and then the status: first "queued", soon "delivered".
"""

import os

from aiohttp import web

from mailstrom_async import Config, Email, Mailstrom, MessageNotFound, SQLiteStorage

config = Config.model_validate_json(os.environ.get("MAIL_CONFIG", '{"helo_name": "app.example.org"}'))
mailer = Mailstrom(config, SQLiteStorage(os.environ.get("MAIL_DB", "mail.db")))


async def send(request: web.Request) -> web.Response:
    """When this answers 202, the mail is on disk."""
    try:
        email = Email.model_validate_json(await request.read())
        return web.json_response({"id": await mailer.send_email(email)}, status=202)
    except ValueError as error:  # pydantic's ValidationError and our InvalidEmail
        return web.json_response({"error": str(error)}, status=422)


async def status(request: web.Request) -> web.Response:
    """What became of a mail, recipient by recipient."""
    try:
        found = await mailer.query_status(request.match_info["message_id"])
    except MessageNotFound as error:
        return web.json_response({"error": str(error)}, status=404)
    return web.Response(text=found.model_dump_json(), content_type="application/json")


app = web.Application()
app.cleanup_ctx.append(mailer.cleanup_ctx)
app.router.add_post("/mails", send)
app.router.add_get("/mails/{message_id:.+}", status)

if __name__ == "__main__":
    web.run_app(app, host="localhost", port=int(os.environ.get("PORT", "8080")))
