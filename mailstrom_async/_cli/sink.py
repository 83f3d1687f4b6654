"""A server that takes every mail and delivers none, to develop with."""

from datetime import timedelta

from rich.console import Console

from mailstrom_async._cli.show import console
from mailstrom_async.testing import ReceivedMessage, SMTPServer

FOREVER = timedelta(days=36500)


async def run(host: str, port: int, *, whole: bool) -> None:
    """Print what arrives, until interrupted."""
    output = console()
    async with SMTPServer(host=host, port=port, name="sink.localhost") as server:
        output.print(f"taking mail at {server.host}:{server.port}; Control-C ends it")
        printed = 0
        try:
            while True:
                await server.wait_for_messages(printed + 1, timeout=FOREVER)
                printed = _print_from(printed, server, output, whole=whole)
        finally:
            _print_from(printed, server, output, whole=whole)  # what came right before the interrupt


def _print_from(printed: int, server: SMTPServer, output: Console, *, whole: bool) -> int:
    messages = server.messages[printed:]
    for message in messages:
        _print(output, message, whole=whole)
    return printed + len(messages)


def _print(output: Console, message: ReceivedMessage, *, whole: bool) -> None:
    subject = message.email["Subject"]
    output.print(f"{message.sender or '<>'} -> {', '.join(message.recipients)}: {subject}", soft_wrap=True)
    if whole:
        output.print(message.content.decode("utf-8", "replace").replace("\r\n", "\n"), soft_wrap=True)
