"""Sending one message, and watching it."""

import asyncio
import os
import re
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypedDict

import click
from pydantic import SecretStr, ValidationError

from mailstrom_async import Config, DirectDelivery, Mailstrom, MessageStatus, RelayDelivery, SQLiteStorage
from mailstrom_async._cli.show import console, follow, recipients_table, showing

PROGRAM = "mailstrom-async"

# sysexits.h, as sendmail and its like use them.
ALL_DELIVERED, FAILED, DEFERRED = 0, 69, 75

PASSWORD = "MAILSTROM_RELAY_PASSWORD"  # noqa: S105 - where it is, not what it is
PATIENCE = timedelta(minutes=15)
GRACE = timedelta(seconds=5)
"""How long one who interrupts the command waits for what is under way."""

_RELAY = re.compile(r"\[(?P<literal>[^]]+)\](?::(?P<port>\d+))?|(?P<host>[^:]+):(?P<host_port>\d+)|(?P<alone>.+)")


class Options(TypedDict):
    """What was asked for on the command line; see there."""

    relay: str | None
    security: Literal["starttls", "tls", "none"]
    user: str | None
    ca_file: Path | None
    helo: str | None
    sender: str | None
    recipients: tuple[str, ...]
    port: int
    nameservers: tuple[str, ...]
    networks: tuple[str, ...]


async def run(content: bytes, database: Path, options: Options) -> int:
    """Queue the message, wait until every recipient was attempted, show the result; returns the exit status."""
    output = console()
    async with Mailstrom(configure(options), SQLiteStorage(database)) as mailer:
        message_id = await mailer.send_email(
            content, sender=options["sender"], recipients=options["recipients"] or None
        )
        output.print(f"queued as {message_id}", soft_wrap=True)
        try:
            with showing(output) as show:
                statuses = await follow(
                    mailer, [message_id], show, enough=lambda status: status.attempted, patience=PATIENCE
                )
        except asyncio.CancelledError:  # by Control-C or SIGTERM
            await mailer.pause()  # what is under way ends now, or after the grace
            statuses = [await mailer.query_status(message_id)]
            rest = "" if statuses[0].completed else "; the message stays queued"
            click.echo(f"{PROGRAM}: interrupted{rest}", err=True)
    output.print(recipients_table(statuses))
    return exit_status(statuses)


def exit_status(statuses: Sequence[MessageStatus]) -> int:
    """A failure for good outweighs one for now."""
    states = {recipient.result.state for status in statuses for recipient in status.recipients}
    if "failed" in states:
        return FAILED
    return ALL_DELIVERED if states == {"delivered"} else DEFERRED


def configure(options: Options) -> Config:
    """The settings; a wrong one is told by the name of its field."""
    try:
        return Config(
            helo_name=options["helo"] or _own_name(),
            delivery=_direct(options) if options["relay"] is None else _relay(options["relay"], options),
            ca_file=options["ca_file"],
            shutdown_grace=GRACE,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise click.ClickException(f"{where}: {problem}" if where else problem) from error


def _direct(options: Options) -> DirectDelivery:
    return DirectDelivery(
        port=options["port"], nameservers=options["nameservers"], allowed_networks=options["networks"]
    )


def _relay(relay: str, options: Options) -> RelayDelivery:
    found = _RELAY.fullmatch(relay)
    if found is None:
        raise click.ClickException("--relay: is empty; write HOST or HOST:PORT")
    host = found["literal"] or found["host"] or found["alone"]
    default = "465" if options["security"] == "tls" else "587"
    password = os.environ.get(PASSWORD)
    if options["user"] is not None and password is None:
        raise click.ClickException(f"--user: needs a password; set the environment variable {PASSWORD}")
    return RelayDelivery(
        host=host,
        port=int(found["port"] or found["host_port"] or default),
        security=options["security"],
        username=options["user"],
        password=SecretStr(password) if options["user"] is not None and password is not None else None,
        nameservers=options["nameservers"],
    )


def _own_name() -> str:
    # What has a dot is taken as it is: looking it up may take long where no nameserver answers.
    name = socket.gethostname()
    return name if "." in name else socket.getfqdn()
