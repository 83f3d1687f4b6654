"""A process that opens a file and does what it is told on standard input, a line at a time; it answers with one line.

accept ID    role    fork    block    (the end of the input) close
"""

import asyncio
import os
import signal
import sys

from mailstrom_async import MailstromError
from mailstrom_async.storage import SQLiteStorage
from mailstrom_async.testing._contract.ground import NOW, email


async def main() -> None:
    loop = asyncio.get_running_loop()
    storage = SQLiteStorage(sys.argv[1])
    await storage.open(NOW)
    say("open")
    while command := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        say(await obey(storage, *command))
    await storage.aclose()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def obey(storage: SQLiteStorage, command: str, *arguments: str) -> str:
    try:
        if command == "accept":
            await storage.enqueue([email(arguments[0])])
            return "accepted"
        if command == "fork":
            return str(fork())
        if command == "block":
            say("blocked")
            sys.stdin.readline()  # in the thread of the event loop
            return "went on"
        return repr(storage)
    except MailstromError as error:
        return f"{type(error).__name__}: {error}"


def fork() -> int:
    """A child that has copies of all that is open here, and lives until it is killed; it hears and says nothing."""
    child = os.fork()
    if not child:
        os.close(0)
        os.close(1)
        signal.pause()
    return child


if __name__ == "__main__":
    asyncio.run(main())
