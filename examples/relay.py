"""Delivery through a provider's relay.

What it shows: submission with STARTTLS and a login, a second relay for when the first is down, and XOAUTH2.
Requires: nothing more
To run:   RELAY_HOST=smtp.example.com RELAY_USER=app RELAY_PASSWORD=secret python examples/relay.py ada@example.net
          (RELAY_PORT: 587 if not set; RELAY_CA_FILE: certificate authorities, if the relay's are not well known;
          RELAY_TOKEN in place of RELAY_PASSWORD: an OAuth token)
It should print: "delivered through smtp.example.com under TLSv1.3", or why not.
"""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

from pydantic import SecretStr

from mailstrom_async import Config, Delivered, Email, Mailstrom, MemoryStorage, RelayDelivery, Timeouts


async def fresh_token() -> str:
    """Called for each login: a real one asks the provider when the last token is about to expire."""
    return os.environ["RELAY_TOKEN"]


def relay() -> RelayDelivery:
    """Credentials never go out in plaintext: TLS with a valid certificate is demanded."""
    return RelayDelivery(
        host=os.environ["RELAY_HOST"],
        port=int(os.environ.get("RELAY_PORT", "587")),
        username=os.environ["RELAY_USER"],
        password=SecretStr(os.environ["RELAY_PASSWORD"]) if "RELAY_PASSWORD" in os.environ else None,
        oauth_token=fresh_token if "RELAY_TOKEN" in os.environ else None,
        fallbacks=tuple(filter(None, os.environ.get("RELAY_FALLBACKS", "").split(","))),
    )


async def main(address: str) -> int:
    """Returns the exit status: 0 if it was delivered."""
    config = Config(
        helo_name="app.example.org",
        delivery=relay(),
        ca_file=Path(os.environ["RELAY_CA_FILE"]) if "RELAY_CA_FILE" in os.environ else None,
        timeouts=Timeouts(connect=timedelta(seconds=10)),
    )
    # In memory: this script waits for the result itself. An application uses SQLiteStorage.
    async with Mailstrom(config, MemoryStorage()) as mailer:
        message_id = await mailer.send_email(
            Email(from_="App <app@example.org>", to=address, subject="Hello", text="Hello through a relay\n")
        )
        status = await mailer.wait(message_id, until="attempted", timeout=timedelta(minutes=5))
        print(f"worker: {mailer.worker_status.state} {mailer.worker_status.reason or ''}".rstrip())
    result = status.recipients[0].result
    if isinstance(result, Delivered):
        print(f"delivered through {result.host} under {result.tls}")
        return 0
    print(f"{result.state}: {getattr(result, 'reason', '')}")
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
