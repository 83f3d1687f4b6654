"""A burst of lookups does not drown the nameserver, and hanging ones hold no others back."""

import asyncio
from datetime import timedelta

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


async def test_a_burst_is_answered_without_a_question_twice():
    """A thousand names at once: none is lost and asked again after seconds."""
    records = {f"d{number}.example.net": {"MX": ["10 mx.example.net"]} for number in range(1000)}
    async with DNSServer(records) as server:
        resolver = AiodnsResolver((server.address,), timeout=PATIENCE)
        await resolver.open()
        answers = await asyncio.gather(*(resolver.mx(name) for name in records))
        await resolver.aclose()

        assert all(answer.records for answer in answers)
        assert len(server.queries) == 1000
