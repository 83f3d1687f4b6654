"""The command line (extra `cli`)."""

import asyncio
import sys
from pathlib import Path
from typing import BinaryIO

import click

from mailstrom_async import MailstromError, __version__
from mailstrom_async._cli import demo as demo_command
from mailstrom_async._cli import look
from mailstrom_async._cli import send as send_command

DATABASE = click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("mailstrom.db"),
    show_default=True,
    help="The SQLite file with the queue.",
)


class _Command(click.Group):
    """A group whose commands end with one line on an error of ours, rather than a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MailstromError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Command)
@click.version_option(__version__)
def cli() -> None:
    """Send mail that is safe on disk, and see what became of it."""


@cli.command()
@click.option("--messages", type=click.IntRange(1, 10_000), default=36, show_default=True, help="How many mails.")
def demo(messages: int) -> None:
    """Deliver to scripted mail exchangers on this machine, and watch."""
    sys.exit(asyncio.run(demo_command.run(messages)))


@cli.command()
@DATABASE
@click.option("--relay", metavar="HOST[:PORT]", help="Deliver through this relay rather than to the mail exchangers.")
@click.option(
    "--security",
    type=click.Choice(["starttls", "tls", "none"]),
    default="starttls",
    show_default=True,
    help="How the relay is spoken to.",
)
@click.option("--helo", metavar="NAME", help="The name of this host; default: what the system says.")
@click.option("--from", "sender", metavar="ADDR", help="The reverse-path; default: the Sender or From of the message.")
@click.option("--to", "recipients", metavar="ADDR", multiple=True, help="A recipient; default: To, Cc and Bcc.")
@click.option("--port", type=click.IntRange(1, 65535), default=25, help="Of mail exchangers.", show_default=True)
@click.option("--nameserver", "nameservers", metavar="IP[:PORT]", multiple=True, help="Default: the system's.")
@click.option("--allow-network", "networks", metavar="CIDR", multiple=True, help="A private network with exchangers.")
@click.argument("file", type=click.File("rb"), default="-")
def send(file: BinaryIO, database: Path, **options: object) -> None:
    """Send an RFC 5322 message from FILE or standard input.

    Exits with 0 if all recipients have it, with 69 if one failed, and with 75 if one is deferred: it stays queued, and
    the next `send` with the same database goes on with it.
    """
    content = file.read()
    sys.exit(asyncio.run(send_command.run(content, database, send_command.Options(**options))))  # type: ignore[arg-type]


@cli.command()
@DATABASE
def queue(database: Path) -> None:
    """List what is not yet completed."""
    asyncio.run(look.queue(database))


@cli.command()
@DATABASE
@click.argument("message_id")
def status(database: Path, message_id: str) -> None:
    """Tell what became of the message MESSAGE_ID, attempt by attempt."""
    asyncio.run(look.status(database, message_id.strip("<>")))
