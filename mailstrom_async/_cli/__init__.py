"""The command line (extra `cli`)."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, Unpack

import click

from mailstrom_async import MailstromError, __version__
from mailstrom_async._cli import demo as demo_command
from mailstrom_async._cli import dkim_key, look
from mailstrom_async._cli import send as send_command
from mailstrom_async._cli import sink as sink_command
from mailstrom_async._cli.send import PROGRAM

T = TypeVar("T")

# What a shell makes of SIGINT and SIGTERM.
INTERRUPTED, TERMINATED = 130, 143


class Terminated(Exception):
    """SIGTERM has ended the command."""


DATABASE = click.option(
    "--db",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("mailstrom.db"),
    metavar="FILE",
    show_default=True,
    help="The SQLite file with the queue.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object for each message, one to a line.")


def run() -> NoReturn:
    """Run the command that the arguments ask for. Whatever goes wrong is told in one line."""
    try:
        status = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        where = context.command_path if context else PROGRAM
        remedy = f" (see {where} --help)" if context else ""
        click.echo(f"{where}: {error.format_message().rstrip('.')}{remedy}", err=True)
        sys.exit(error.exit_code)
    except MailstromError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{PROGRAM}: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except Terminated:
        click.echo(f"{PROGRAM}: terminated", err=True)
        sys.exit(TERMINATED)
    sys.exit(status)


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run this to its end. SIGTERM cancels it as Control-C does, so that what is under way has its grace.

    Raises:
        Terminated: SIGTERM came, and it ended by that.
    """
    return asyncio.run(_until_terminated(work))


async def _until_terminated(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine of asyncio.run has one
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop = asyncio.get_running_loop()
    # Not by way of SIGINT, which a shell has its background jobs ignore. In another thread, or on an event loop that
    # has none of this, SIGTERM does what it always did.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await work
    except asyncio.CancelledError:
        if terminated:
            raise Terminated from None
        raise
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGTERM)


@click.group(no_args_is_help=False)
@click.version_option(__version__)
def cli() -> None:
    """Send mail that is safe on disk, and see what became of it."""


@cli.command()
@click.option("--messages", type=click.IntRange(1, 10_000), default=36, show_default=True, help="How many mails.")
def demo(messages: int) -> int:
    """Deliver to scripted mail exchangers on this machine, and watch."""
    return _finish(demo_command.run(messages))


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
@click.option("--user", metavar="NAME", help=f"Log in at the relay; the password is in ${send_command.PASSWORD}.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="Trusted certificate authorities; default: system's.")
@click.option("--helo", metavar="NAME", help="The name of this host; default: what the system says.")
@click.option("--from", "sender", metavar="ADDR", help="The reverse-path; default: the Sender or From of the message.")
@click.option("--to", "recipients", metavar="ADDR", multiple=True, help="A recipient; default: To, Cc and Bcc.")
@click.option("--port", type=click.IntRange(1, 65535), default=25, help="Of mail exchangers.", show_default=True)
@click.option("--nameserver", "nameservers", metavar="IP[:PORT]", multiple=True, help="Default: the system's.")
@click.option("--allow-network", "networks", metavar="CIDR", multiple=True, help="A private network with exchangers.")
@click.argument("file", type=click.File("rb"), default="-")
def send(file: BinaryIO, database: Path, **options: Unpack[send_command.Options]) -> int:
    """Send an RFC 5322 message from FILE or standard input.

    Exits with 0 if all recipients have it, with 69 if one failed, and with 75 if one is deferred: it stays queued, and
    the next `send` with the same database goes on with it. After Control-C or SIGTERM what is under way may still end,
    for five seconds, and then the same holds. Anything else means that nothing was queued, unless "queued as" was
    printed, or the error says that this is not known. After 130 (Control-C) and 143 (SIGTERM), too, it may be: the
    command was stopped while it queued the message, or a second time. `queue` tells.

    If another program has the database open, that one delivers, with its own settings.
    """
    return _finish(send_command.run(file.read(), database, options))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=2525, show_default=True, help="0: a free one.")
@click.option("--show", "whole", is_flag=True, help="Print the messages whole.")
def sink(host: str, port: int, whole: bool) -> None:
    """Take every mail and deliver none: a relay to develop with.

    `RelayDelivery(host="127.0.0.1", port=2525, security="none")` leads here.
    """
    try:
        _finish(sink_command.run(host, port, whole=whole))
    except OSError as error:
        raise click.ClickException(f"can't listen at {host}:{port}: {error.strerror}; choose another --port") from error
    except (KeyboardInterrupt, Terminated):
        return


@cli.command()
@DATABASE
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many messages.")
@AS_JSON
def queue(database: Path, limit: int, as_json: bool) -> None:
    """List the messages that are not yet completed, the oldest first."""
    _finish(look.queue(database, limit, as_json=as_json))


@cli.command()
@DATABASE
@AS_JSON
@click.argument("message_id")
def status(database: Path, message_id: str, as_json: bool) -> None:
    """Tell what became of the message MESSAGE_ID, attempt by attempt."""
    _finish(look.status(database, message_id.strip("<>"), as_json=as_json))


cli.add_command(dkim_key.command)
