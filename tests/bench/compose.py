"""What composing costs, beside the standard library: `python tests/bench/compose.py`.

Prints microseconds of processor time for one mail (the median of seven rounds), and for a 25 MB attachment how long the
event loop was blocked and how much memory it took.
"""

import asyncio
import gc
import os
import statistics
import sys
import time
import timeit
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mailstrom_async import Attachment, Config, DKIMKey, Email, Limits, Mailstrom, MemoryStorage
from mailstrom_async._message.compose import Envelope, compose
from mailstrom_async._message.dkim import sign
from mailstrom_async._message.dkim_keys import load_signer, new_key
from mailstrom_async._message.ids import Stamp

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds.\n" * 30
HTML = f"<html><body>{TEXT * 2}</body></html>"
FILE = os.urandom(50 * 1024)
STAMP = Stamp(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "t0ken", "mail.example.org")
HEAD = {"from_": "App <app@example.org>", "to": "Ada Lovelace <ada@example.net>", "subject": "Welcome to it"}
CROWD = [f'"Jörg Müller {number} (Sales)" <j{number}@example.org>' for number in range(20)]
ROUNDS = 7


def ours(email: Email) -> bytes:
    return compose(email, Envelope(), STAMP, limits=Limits()).content


def theirs(*, to: str = HEAD["to"], html: bool = False) -> bytes:
    message = EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    message["From"], message["To"], message["Subject"] = HEAD["from_"], to, HEAD["subject"]
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="mail.example.org")
    message.set_content(TEXT)
    if html:
        message.add_alternative(HTML, subtype="html")
        message.add_attachment(FILE, maintype="application", subtype="octet-stream", filename="a.bin")
    return message.as_bytes()


def microseconds(call: Callable[[], object]) -> float:
    clock = time.thread_time  # what others do on this machine meanwhile is not to be seen in the table
    once = timeit.timeit(call, number=3, timer=clock) / 3
    number = max(3, int(0.1 / once))
    return statistics.median(timeit.repeat(call, number=number, repeat=ROUNDS, timer=clock)) / number * 1e6


def fresh(number: list[int]) -> str:
    """An address that was never seen before."""
    number[0] += 1
    return f"Ada Lovelace <ada{number[0]}@example.net>"


def new_parcel() -> Email:
    return Email(**HEAD, text=TEXT, html=HTML, attachments=(Attachment(filename="a.bin", content=FILE),))


def new_letter(number: list[int]) -> Email:
    return Email(**(HEAD | {"to": fresh(number)}), text=TEXT)


def table() -> None:
    letter = Email(**HEAD, text=TEXT)
    attachment = Attachment(filename="a.bin", content=FILE)
    parcel = Email(**HEAD, text=TEXT, html=HTML, attachments=(attachment,))
    crowd = Email(**(HEAD | {"to": CROWD}), text=TEXT)
    text, whole = ours(letter), ours(parcel)
    rsa, ed25519 = (
        [load_signer(DKIMKey(domain="example.org", selector="s", private_key=new_key(kind).pem))]
        for kind in ("rsa", "ed25519")
    )
    counter = [0]
    rows: list[tuple[str, Callable[[], object], Callable[[], object] | None]] = [
        ("2 KiB text", lambda: ours(letter), theirs),
        ("2 KiB text, Email built, new recipient", lambda: ours(new_letter(counter)), None),
        ("text, HTML, 50 KiB attachment", lambda: ours(new_parcel()), lambda: theirs(html=True)),
        ("the same attachment again", lambda: ours(parcel), None),
        ("20 recipients with umlauts and brackets", lambda: ours(crowd), lambda: theirs(to=", ".join(CROWD))),
        ("2 KiB as bytes", lambda: compose(text, Envelope(), STAMP, limits=Limits()), None),
        ("75 KiB as bytes", lambda: compose(whole, Envelope(), STAMP, limits=Limits()), None),
        ("RSA-2048 signature, 2 KiB", lambda: sign(text, rsa, STAMP.now), None),
        ("RSA-2048 signature, 75 KiB", lambda: sign(whole, rsa, STAMP.now), None),
        ("Ed25519 signature, 2 KiB", lambda: sign(text, ed25519, STAMP.now), None),
        ("Ed25519 signature, 75 KiB", lambda: sign(whole, ed25519, STAMP.now), None),
    ]
    print(f"{'microseconds':42}{'ours':>10}{'EmailMessage':>14}{'ratio':>8}")
    for name, call, other in rows:
        mine = microseconds(call)
        row = f"{name:42}{mine:10.1f}"
        if other is not None:
            yours = microseconds(other)
            row += f"{yours:14.1f}{yours / mine:8.1f}"
        print(row)


async def lateness(worst: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        worst[0] = max(worst[0], time.perf_counter() - before - 0.001)


async def accept(size: int, *, traced: bool) -> tuple[float, float, float]:
    """Seconds to accept an attachment of this size, the longest block of the loop, and peak memory by its size."""
    key = DKIMKey(domain="example.org", selector="s", private_key=new_key("rsa").pem)
    async with Mailstrom(Config(helo_name="mail.example.org", dkim=(key,)), MemoryStorage(), deliver=False) as mailer:
        worst = [0.0]
        ticking = asyncio.create_task(lateness(worst))
        await asyncio.sleep(0.02)
        gc.collect()
        if traced:
            tracemalloc.start()
        email = Email(**HEAD, text=TEXT, attachments=(Attachment(filename="a.bin", content=os.urandom(size)),))
        worst[0], begun = 0.0, time.perf_counter()
        await mailer.send_email(email)
        took = time.perf_counter() - begun
        peak = tracemalloc.get_traced_memory()[1] / size if traced else 0.0
        tracemalloc.stop()
        ticking.cancel()
    return took, worst[0], peak


def big() -> None:
    size = 25 * 1024 * 1024
    runs = [asyncio.run(accept(size, traced=False)) for _ in range(5)]
    peak = asyncio.run(accept(size, traced=True))[2]
    took, blocked = (statistics.median(run[position] for run in runs) for position in (0, 1))
    print(
        f"\n25 MB attachment: signed and accepted in {took:.2f} s, the loop blocked for at most {blocked * 1000:.0f} ms"
    )
    print(f"(medians of {len(runs)}); peak memory {peak:.1f} times its size")


if __name__ == "__main__":
    table()
    big()
