"""A bare aiosmtplib loop as a peer: it stores nothing, retries nothing, and answers no question."""

import asyncio
import time

import aiosmtplib
from messages import DOMAIN, ready
from sink import sink

CONNECTIONS = 16


def measure(count: int) -> dict[str, float]:
    return asyncio.run(send(count))


async def send(count: int) -> dict[str, float]:
    message = ready(2048)
    numbers = iter(range(count))

    async def talk(port: int) -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as client:
            for number in numbers:
                await client.sendmail("app@example.org", [f"ada@{DOMAIN}"], message(number))

    with sink() as port:
        begun, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(talk(port) for _ in range(CONNECTIONS)))
        took, used = time.perf_counter() - begun, time.process_time() - cpu
    return {"rate": count / took, "cpu_us": used / count * 1e6}
