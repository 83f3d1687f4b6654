"""Sending one message, and watching it."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import click
from pydantic import ValidationError
from rich.console import Console

from mailstrom_async import Config, DirectDelivery, Mailstrom, MessageStatus, RelayDelivery, SQLiteStorage
from mailstrom_async._cli.table import recipients_table

# sysexits.h, as sendmail and its like use them.
ALL_DELIVERED, FAILED, DEFERRED = 0, 69, 75


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line; see there."""

    relay: str | None
    security: Literal["starttls", "tls", "none"]
    helo: str | None
    sender: str | None
    recipients: tuple[str, ...]
    port: int
    nameservers: tuple[str, ...]
    networks: tuple[str, ...]

    def config(self) -> Config:
        try:
            return Config(helo_name=self.helo or socket.getfqdn(), delivery=self._delivery())
        except ValidationError as error:
            first = error.errors()[0]
            raise click.ClickException(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def _delivery(self) -> DirectDelivery | RelayDelivery:
        if self.relay is None:
            return DirectDelivery(port=self.port, nameservers=self.nameservers, allowed_networks=self.networks)
        host, separator, port = self.relay.rpartition(":")
        if not separator or not port.isdecimal():
            host, port = self.relay, "465" if self.security == "tls" else "587"
        return RelayDelivery(host=host, port=int(port), security=self.security, nameservers=self.nameservers)


async def run(content: bytes, database: Path, options: Options) -> int:
    """Queue the message, wait until every recipient was attempted, show the result; returns the exit status."""
    console = Console()
    async with Mailstrom(options.config(), SQLiteStorage(database)) as mailer:
        message_id = await mailer.send_email(content, sender=options.sender, recipients=options.recipients or None)
        console.print(f"queued as {message_id}", markup=False, highlight=False)
        with console.status("delivering"), suppress(TimeoutError):
            await mailer.wait(message_id, until="attempted", timeout=timedelta(minutes=15))
        status = await mailer.query_status(message_id)
    console.print(recipients_table([status]))
    return exit_status(status)


def exit_status(status: MessageStatus) -> int:
    """A failure for good outweighs one for now."""
    states = {recipient.result.state for recipient in status.recipients}
    if "failed" in states:
        return FAILED
    return ALL_DELIVERED if states == {"delivered"} else DEFERRED
