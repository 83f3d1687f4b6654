"""The command line as a user has it: a process of its own."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import mailstrom_async
from mailstrom_async.testing import FakeInternet

PROJECT = Path(mailstrom_async.__file__).parents[1]
PATIENCE = 50


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class CommandLine:
    """Runs commands in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = PROJECT

    async def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
        # Found without being installed, too; and as wide as where no terminal says how wide it is.
        surroundings = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mailstrom_async", *arguments),
            cwd=self.folder,
            env={**surroundings, "PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "error", **(env or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Ended:
        return await self.end(await self.start(*arguments, env=env), stdin)

    async def end(self, process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
        try:
            async with asyncio.timeout(PATIENCE):
                out, err = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
def command(tmp_path) -> Iterator[CommandLine]:
    """Runs `mailstrom-async ...`."""
    # Where the tests run in the background Control-C may be ignored, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield CommandLine(tmp_path)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
async def internet():
    """Exchangers of three tempers, as the demo has them."""
    async with FakeInternet() as internet:
        await internet.exchanger("mx.swift.example.net")
        internet.domain("swift.example.net", mx=["mx.swift.example.net"])
        await internet.exchanger("mx.grey.example.org", {"RCPT": "451 4.7.1 Greylisted"})
        internet.domain("grey.example.org", mx=["mx.grey.example.org"])
        await internet.exchanger("mx.picky.example.com", {"RCPT": "550 5.1.1 no such person"})
        internet.domain("picky.example.com", mx=["mx.picky.example.com"])
        yield internet


@pytest.fixture
def there(internet) -> list[str]:
    """The options that make `send` deliver to those exchangers."""
    delivery = internet.delivery
    return [
        *("--helo", "client.example.org", "--port", str(delivery.port), "--nameserver", delivery.nameservers[0]),
        *("--allow-network", "127.0.0.0/8"),
    ]
