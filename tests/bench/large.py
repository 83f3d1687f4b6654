"""What a mail with a 25 MB attachment costs the application: memory, and blocks of its event loop.

    python tests/bench/large.py             # every row
    python tests/bench/large.py --size 100  # megabytes

From `send_email` to the recorded status, over a real socket to a server in another process. Each figure is the worst of
three runs, each in a process of its own. Counted as memory: how far the resident memory rises above what it was right
before `send_email`, when the email already existed, and the attachment itself; as a multiple of the attachment. At most
four are wanted, and no block of the loop above 50 ms. Beside it stands the longest block in a second without any work,
which is the machine's: where that is high, others use the processors, and the figures say little.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mailstrom_async import (
    Attachment,
    Config,
    DKIMKey,
    Email,
    Limits,
    Mailstrom,
    MemoryStorage,
    RelayDelivery,
    SQLiteStorage,
)
from mailstrom_async._message.dkim_keys import new_key

RUNS = 3
MEMORY, BLOCK = 4.0, 0.050
HEAD = {"from_": "App <app@example.org>", "to": "Ada <ada@example.net>", "subject": "Large", "text": "See attachment."}


def as_email(content: bytes) -> Email:
    return Email(**HEAD, attachments=(Attachment(filename="film.mp4", content=content),))


def as_email_message(content: bytes) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = HEAD["from_"], HEAD["to"], HEAD["subject"]
    message.set_content(HEAD["text"])
    message.add_attachment(content, maintype="video", subtype="mp4", filename="film.mp4")
    return message


def as_bytes(content: bytes) -> bytes:
    return as_email_message(content).as_bytes()


KINDS: dict[str, Callable[[bytes], Email | EmailMessage | bytes]] = {
    "Email": as_email,
    "bytes": as_bytes,
    "EmailMessage": as_email_message,
}
ROWS = [
    ("Email", "sqlite", False),
    ("Email", "sqlite", True),
    ("Email", "memory", False),
    ("Email", "memory", True),
    ("bytes", "sqlite", False),
    ("EmailMessage", "sqlite", False),
]


def resident(entry: str) -> int:
    """Bytes: "VmRSS" now, or "VmHWM" at the highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {entry} in /proc/self/status; this needs Linux")


def forget_peak() -> None:
    """VmHWM begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


async def lateness(worst: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        worst[0] = max(worst[0], time.perf_counter() - before - 0.001)


async def send(kind: str, store: str, signed: bool, size: int, port: int) -> dict[str, float]:
    keys = (DKIMKey(domain="example.org", selector="s", private_key=new_key("rsa").pem),) if signed else ()
    config = Config(
        helo_name="app.example.org",
        delivery=RelayDelivery(host="127.0.0.1", port=port, security="none"),
        dkim=keys,
        limits=Limits(message_size=4 * size),
    )
    with tempfile.TemporaryDirectory() as folder:
        storage = SQLiteStorage(Path(folder, "mail.db")) if store == "sqlite" else MemoryStorage()
        async with Mailstrom(config, storage) as mailer:
            await mailer.wait(await mailer.send_email(Email(**HEAD)))  # what is imported only then is no part of it
            email = KINDS[kind](os.urandom(size))
            worst = [0.0]
            ticking = asyncio.create_task(lateness(worst))
            gc.collect()
            worst[0] = 0.0
            await asyncio.sleep(1.0)
            idle = worst[0]
            forget_peak()
            before, worst[0], begun = resident("VmRSS"), 0.0, time.perf_counter()
            status = await mailer.wait(await mailer.send_email(email))
            took = time.perf_counter() - begun
            peak = resident("VmHWM")
            ticking.cancel()
    if not status.succeeded:
        raise SystemExit(f"not delivered: {status}")
    return {"memory": (peak - before + size) / size, "block": worst[0], "idle": idle, "seconds": took}


def main() -> None:
    from throughput import sink

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=25, help="of the attachment, in megabytes")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(asyncio.run(send(*json.loads(arguments.one)))))
        return
    print(f"{arguments.size} MB attachment{'memory':>22}{'longest block':>16}{'idle':>12}{'seconds':>10}")
    results: dict[str, dict[str, float]] = {}
    with sink() as port:
        for kind, store, signed in ROWS:
            one = json.dumps([kind, store, signed, arguments.size * 1024 * 1024, port])
            runs = [
                json.loads(subprocess.run([sys.executable, __file__, "--one", one], stdout=-1, check=True).stdout)
                for _ in range(RUNS)
            ]
            worst = {name: max(run[name] for run in runs) for name in runs[0]}
            name = f"{kind}, {store}{', DKIM' if signed else ''}"
            results[name] = worst
            fell_short = "" if worst["memory"] <= MEMORY and worst["block"] <= BLOCK else "  <- falls short"
            print(
                f"{name:26}{worst['memory']:9.2f} x its size{worst['block'] * 1000:13.1f} ms"
                f"{worst['idle'] * 1000:9.1f} ms{worst['seconds']:10.2f}{fell_short}"
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
