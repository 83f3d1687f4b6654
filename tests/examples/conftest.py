"""The examples as a user runs them: processes of their own, spoken to over HTTP, with mail servers on loopback."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

import mailstrom_async
from mailstrom_async.testing import FakeInternet

PROJECT = Path(mailstrom_async.__file__).parents[1]
EXAMPLES = PROJECT / "examples"
PATIENCE = 40


@pytest.fixture
async def internet():
    """The world of the examples: example.net has a mail exchanger that knows no nobody."""
    async with FakeInternet() as internet:
        await internet.exchanger("mx.example.net", {"RCPT TO:<nobody@example.net>": "550 5.1.1 no such person"})
        internet.domain("example.net", mx=["mx.example.net"])
        yield internet


@pytest.fixture
def surroundings(internet, tmp_path) -> dict[str, str]:
    """The environment of an example: its settings lead to the exchangers of the test."""
    config = {
        "helo_name": "app.example.org",
        "delivery": internet.delivery.model_dump(mode="json"),
        "retry": {"base_delay": 0.1, "factor": 2, "jitter": 0},
    }
    settings = {"MAIL_CONFIG": json.dumps(config), "MAIL_DB": str(tmp_path / "mail.db"), "PYTHONPATH": str(PROJECT)}
    return os.environ | settings | {"PYTHONWARNINGS": "error::ResourceWarning", "PYTHONUNBUFFERED": "1"}


class Application:
    """A web application under its real server."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.client = httpx.AsyncClient(base_url=url, timeout=PATIENCE)

    async def send(self, email: Mapping[str, object]) -> httpx.Response:
        return await self.client.post("/mails", json=dict(email))

    async def state(self, message_id: str) -> dict[str, str]:
        """The result of each recipient, by address."""
        response = await self.client.get(f"/mails/{message_id}")
        assert response.status_code == 200, response.text
        return {each["address"]: each["result"]["state"] for each in response.json()["recipients"]}

    async def until(self, message_id: str, state: str) -> dict[str, str]:
        """Ask until all recipients are in this state, as a browser would."""
        async with asyncio.timeout(PATIENCE):
            while set((states := await self.state(message_id)).values()) != {state}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return states


@pytest.fixture
def serve(surroundings, tmp_path):
    """Runs a web application of the examples while the `async with` lasts, then ends it with a signal."""

    @asynccontextmanager
    async def serve(
        example: str, end: signal.Signals = signal.SIGTERM, *, workers: int = 1
    ) -> AsyncIterator[Application]:
        if example == "aiohttp_app":
            command = [sys.executable, str(EXAMPLES / "aiohttp_app.py")]
        else:
            uvicorn = (sys.executable, "-m", "uvicorn", "--workers", str(workers), "--port", "0")
            command = [*uvicorn, "--app-dir", str(EXAMPLES), f"{example}:app"]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**surroundings, "PORT": "0"},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        said: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE):
                url = await _url(process, said, workers)
            application = Application(process, url)
            async with application.client:
                yield application
            process.send_signal(end)
            async with asyncio.timeout(PATIENCE):
                said.append((await process.communicate())[0].decode())
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too
                await process.communicate()
        if end != signal.SIGKILL:
            assert process.returncode in (0, -end), "".join(said)
            assert "Traceback" not in "".join(said), "".join(said)

    return serve


async def _url(process: asyncio.subprocess.Process, said: list[str], workers: int) -> str:
    """What a server says when it listens: uvicorn and aiohttp alike. With several workers each of them says so."""
    assert process.stdout is not None
    started = 0
    while line := (await process.stdout.readline()).decode():
        said.append(line)
        started += "startup complete" in line
        found = re.search(r"[Rr]unning on (http://\S+?) ", "".join(said))
        if found and (workers == 1 or started == workers):
            return found[1]
    raise AssertionError(f"the server did not start:\n{''.join(said)}")


@pytest.fixture
def run(surroundings, tmp_path) -> Callable[..., object]:
    """Runs a script of the examples; gives its exit status and all that it printed."""

    async def run(script: str, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *script.split(), *arguments),
            env={**surroundings, **(env or {})},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, out.decode()

    return run
