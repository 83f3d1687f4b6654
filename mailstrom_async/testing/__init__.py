"""How does your application behave when a provider greylists, rejects, or is down? Servers and a clock for such tests.

Nothing here is a mock: the servers listen on loopback, and the mail goes over real sockets. A greylisting provider, and
a clock that makes its five minutes pass at once:

    from datetime import timedelta

    from mailstrom_async import Config, Email, Mailstrom, MemoryStorage
    from mailstrom_async.testing import FakeInternet, Greylist, ManualClock

    async def test_a_greylisted_mail_is_delivered_later():
        clock = ManualClock()
        async with FakeInternet() as internet:
            exchanger = await internet.exchanger("mx.example.net", {"RCPT": Greylist(timedelta(minutes=5), clock)})
            internet.domain("example.net", mx=["mx.example.net"])
            config = Config(helo_name="app.example.org", delivery=internet.delivery)
            async with Mailstrom(config, MemoryStorage(), clock=clock) as mailer:
                message_id = await mailer.send_email(
                    Email(from_="app@example.org", to="ada@example.net", subject="Hello", text="Hello Ada")
                )
                status = await mailer.wait(message_id, until="attempted")
                assert status.recipients[0].result.state == "deferred"
                assert status.recipients[0].result.reply.code == 451

                clock.advance(timedelta(hours=1))
                status = await mailer.wait(message_id)
                assert status.recipients[0].result.state == "delivered"
                assert exchanger.messages[0].email["Subject"] == "Hello"

**What there is**

- `FakeInternet`: domains, their mail exchangers and a nameserver, for a `Mailstrom` that delivers directly.
- `SMTPServer`: one mail exchanger or relay. For an application that uses a relay:
  `RelayDelivery(host=server.host, port=server.port, security="none")`.
- `DNSServer`: a nameserver, with all that can be wrong with one.
- `CertificateAuthority`: certificates for servers, good and bad ones (needs the extra `testing`).
- `ManualClock`: `Mailstrom(..., clock=ManualClock())` retries, and gives up, when the test moves it.
- `StorageContract`: the suite that proves a `Storage` of your own; `RosterContract` for one that is a
  `mailstrom_async.storage.Roster`, too.

**Scripts**

A script says what an `SMTPServer` does in place of the usual, which is to take every message:

    script = {
        "RCPT TO:<nobody@example.net>": "550 5.1.1 no such person",   # a str is a reply
        "MAIL": ["451 4.3.0 not now", None],                          # a list is taken in turn; None: as usual
        "end of data": Delay(timedelta(seconds=2)),                   # anything else is an action
        "RCPT": lambda context: "452 4.5.3 full" if len(context.recipients) >= 3 else None,
    }

It is in force over all sessions, and may be changed at any time: `server.script["RCPT"] = "450 4.2.1 busy"`.

The moments: "connect" (before anything is sent), "greeting", "EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT",
"DATA", "body" (the client begins to send the content), "end of data" (it has sent the final dot, or all octets of the
last BDAT), "BDAT" (all octets of one that is not the last), "RSET", "NOOP", "VRFY", "QUIT". More exact ones go before:
"MAIL FROM:<address>", "RCPT TO:<address>", and "RCPT #2" for the second recipient of a transaction.

The actions: a reply as str; `Reply` with something to do after it; `Greylist`; `Delay`, `Drip` and `Gate` (hold until
the test opens it) for what is slow; `Hang`, `Close`, `HalfClose`, `Reset` for what breaks; `StopReading` and
`ReadSlowly` for content that gets stuck; `Take` and `TakeThenClose` for messages that are taken without the client
knowing it; `Raw` and `Flood` for what is no SMTP; and any callable that is told the `Context` and returns one of these,
or None.

Afterwards `server.messages` holds what was taken, `server.sessions` what was said, and `server.violations` what the
client did that SMTP forbids.

**Names**

A `DNSServer` (and `FakeInternet.dns.records`) is told its records by name and type, and what goes wrong with them:

    internet.dns.records["slow.example.net"] = {"MX": Late(timedelta(seconds=2), ["10 mx.example.net"])}
    internet.dns.records["sick.example.net"] = Fault.SERVFAIL

Answers are a list of records, `Records` with a TTL, a `Fault`, one that comes `Late`, `Truncated` to TCP, or behind a
`Forged` one, and `InTurn` several of these. `internet.dns.queries` holds what was asked.
"""

from mailstrom_async.testing._actions import (
    Action,
    Close,
    Context,
    Delay,
    Drip,
    Flood,
    Gate,
    Greylist,
    HalfClose,
    Hang,
    Raw,
    ReadSlowly,
    Reply,
    Reset,
    Script,
    Scripted,
    StopReading,
    Take,
    TakeThenClose,
)
from mailstrom_async.testing._records import ReceivedMessage, SessionRecord
from mailstrom_async.testing._zone import Answer, Entry, Fault, Forged, InTurn, Late, Records, Truncated, Zone
from mailstrom_async.testing.certificates import CertificateAuthority
from mailstrom_async.testing.clock import ManualClock
from mailstrom_async.testing.dns_server import DNSServer, Question
from mailstrom_async.testing.internet import FakeInternet
from mailstrom_async.testing.smtp_server import SMTPServer
from mailstrom_async.testing.storage_contract import RosterContract, StorageContract

__all__ = [
    "Action",
    "Answer",
    "CertificateAuthority",
    "Close",
    "Context",
    "DNSServer",
    "Delay",
    "Drip",
    "Entry",
    "FakeInternet",
    "Fault",
    "Flood",
    "Forged",
    "Gate",
    "Greylist",
    "HalfClose",
    "Hang",
    "InTurn",
    "Late",
    "ManualClock",
    "Question",
    "Raw",
    "ReadSlowly",
    "ReceivedMessage",
    "Records",
    "Reply",
    "Reset",
    "RosterContract",
    "SMTPServer",
    "Script",
    "Scripted",
    "SessionRecord",
    "StopReading",
    "StorageContract",
    "Take",
    "TakeThenClose",
    "Truncated",
    "Zone",
]
