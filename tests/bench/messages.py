"""The messages that the benchmarks send."""

import os
from collections.abc import Callable

from mailstrom_async import Attachment, Email

DOMAIN = "example.net"
LINE = "The quick brown fox jumps over the lazy dog and runs on for a bit.\n"
PDF = Attachment(filename="report.pdf", content=os.urandom(36 * 1024), content_type="application/pdf")
"""50 KiB in base64."""

Make = Callable[[int], Email | bytes]
"""The message of a number; each has a Message-ID of its own."""


def text(size: int) -> str:
    return LINE * (size // len(LINE))


def ready(size: int) -> Make:
    """Messages that are composed already."""
    body = text(size - 200).replace("\n", "\r\n").encode()

    def message(number: int) -> bytes:
        return (
            f"From: App <app@example.org>\r\nTo: <ada@{DOMAIN}>\r\nSubject: benchmark\r\n"
            f"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{number}.{os.getpid()}@bench.example.org>\r\n\r\n"
        ).encode() + body

    return message


def small(number: int) -> Email:
    """2 KiB of text, to be composed."""
    return Email(from_="App <app@example.org>", to=f"ada@{DOMAIN}", subject=f"Number {number}", text=text(2048))


def large(number: int) -> Email:
    """Text, HTML and an attachment, 50 KiB together, to be composed."""
    return Email(
        from_="App <app@example.org>",
        to=f"ada@{DOMAIN}",
        subject=f"Number {number}",
        text=text(1024),
        html=f"<p>{text(1024)}</p>",
        attachments=(PDF,),
    )
