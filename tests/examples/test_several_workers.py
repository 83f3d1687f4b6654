"""Four real uvicorn workers over one SQLite file, one of which is killed."""

import asyncio
import os
import signal

import httpx
import pytest

LONG = 100
"""Five interpreters start, and a busy machine has two cores: seconds, then."""

EMAIL = {"from": "App <app@example.org>", "to": "ada@example.net", "subject": "Hello", "text": "Hello Ada"}


class Workers:
    """The web server as many browsers have it: each request on a connection of its own may get another worker."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def ask(self, method: str, path: str, **arguments: object) -> dict:
        response = await self.client.request(method, path, **arguments)
        assert response.status_code in (200, 202), response.text
        return response.json()

    async def send(self) -> dict:
        return await self.ask("POST", "/mails", json=EMAIL)

    async def seen(self, count: int) -> set[int]:
        """So many workers have accepted a mail."""
        workers: set[int] = set()
        while len(workers) < count:
            workers |= {answer["worker"] for answer in await asyncio.gather(*(self.send() for _ in range(8)))}
        return workers

    async def until_delivered(self, message_id: str) -> set[int]:
        """The workers that were asked for it until they all said so."""
        workers: set[int] = set()
        states = {"queued"}
        while states != {"delivered"}:
            answers = await asyncio.gather(*(self.ask("GET", f"/mails/{message_id}") for _ in range(8)))
            states = {each["result"]["state"] for answer in answers for each in answer["status"]["recipients"]}
            workers |= {answer["worker"] for answer in answers}
        return workers


def owner(tmp_path) -> int:
    """The worker that has the file open."""
    return int((tmp_path / "mail.db.lock").read_text())


@pytest.mark.timeout(LONG + 20)
async def test_four_workers_share_one_queue_and_survive_each_other(serve, internet, tmp_path):
    """All accept and answer; the one that delivers is killed in the middle of it, and every mail arrives."""
    server = internet.exchangers["mx.example.net"]
    async with serve("several_workers", workers=4) as application:
        url, each_anew = str(application.client.base_url), httpx.Limits(max_keepalive_connections=0)
        async with asyncio.timeout(LONG), httpx.AsyncClient(base_url=url, limits=each_anew, timeout=LONG) as client:
            workers = Workers(client)
            assert owner(tmp_path) in await workers.seen(4)
            before = [(await workers.send())["id"] for _ in range(20)]
            os.kill(killed := owner(tmp_path), signal.SIGKILL)
            after = [(await workers.send())["id"] for _ in range(20)]
            for message_id in before + after:
                await workers.until_delivered(message_id)
        assert owner(tmp_path) != killed

    taken = {message.email["Message-ID"].strip("<>") for message in server.messages}
    assert taken >= {*before, *after}
