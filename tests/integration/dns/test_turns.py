"""A burst of lookups does not drown the nameserver, and hanging ones hold no others back."""

import asyncio
from contextlib import aclosing
from datetime import timedelta

import pytest

from mailstrom_async.dns import AiodnsResolver
from mailstrom_async.dns.aiodns import AT_ONCE
from mailstrom_async.testing import DNSServer, Fault

PATIENCE = timedelta(seconds=60)


async def test_more_hanging_lookups_than_turns_hold_nobody_back():
    """Row B28: who waits long for an answer is not counted any more."""
    records = {f"mute{number}.example.net": {"MX": Fault.MUTE} for number in range(AT_ONCE + 5)}
    async with DNSServer({**records, "well.example.net": {"MX": ["10 mx.example.net"]}}) as server:
        resolver = AiodnsResolver((server.address,), timeout=PATIENCE)
        await resolver.open()
        hanging = [asyncio.create_task(resolver.mx(name)) for name in records]
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            answer = await resolver.mx("well.example.net")
        await resolver.aclose()
        await asyncio.gather(*hanging, return_exceptions=True)

    assert [record.host for record in answer.records] == ["mx.example.net"]


async def test_a_burst_is_asked_by_and_by(monkeypatch: pytest.MonkeyPatch):
    """A thousand names at once: no more questions are out than the buffers on the way hold."""
    monkeypatch.setattr("mailstrom_async.dns.aiodns.LONG_SECONDS", PATIENCE.total_seconds())  # a busy machine takes 0.5
    records = {f"d{number}.example.net": {"MX": Fault.MUTE} for number in range(1000)}
    async with DNSServer(records) as server, aclosing(AiodnsResolver((server.address,), timeout=PATIENCE)) as resolver:
        await resolver.open()
        lookups = [asyncio.create_task(resolver.mx(name)) for name in records]
        async with asyncio.timeout(20):
            while len(server.queries) < AT_ONCE:  # noqa: ASYNC110
                await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        asked = len(server.queries)
    await asyncio.gather(*lookups, return_exceptions=True)

    assert asked == AT_ONCE
