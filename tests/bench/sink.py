"""The other end of every benchmark: an SMTP server in a process of its own that takes everything at once.

Postfix's smtp-sink where it is installed (Debian: postfix), else our own scripted server, which is slower.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mailstrom_async.testing import SMTPServer

SESSIONS = 2000


@contextmanager
def sink() -> Iterator[int]:
    """A running one; its port on 127.0.0.1."""
    program = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin")
    port = free_port()
    if program is not None:
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        command = [program, "-4", "-m", str(SESSIONS), *user, f"127.0.0.1:{port}", "1000"]
    else:
        command = [sys.executable, __file__, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    for _ in range(400):
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


async def serve_for_ever(port: int) -> None:
    async with SMTPServer(port=port, keep=False):
        await asyncio.Event().wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    asyncio.run(serve_for_ever(int(sys.argv[1])))
