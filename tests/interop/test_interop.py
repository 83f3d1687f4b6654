"""Mail through servers that we did not write: a real Postfix, and a real Exim.

Each takes mail from a whole `Mailstrom` over STARTTLS with a verified certificate, pipelined, and hands it on to a
scripted server, where it is compared. All of it on loopback. `tests/interop/install.sh` gets them where they are
missing.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import trustme

from mailstrom_async import Config, DirectDelivery, Email, Limits, Mailstrom, MemoryStorage
from mailstrom_async.testing import DNSServer, ManualClock, ReceivedMessage, SMTPServer

from .servers import HOST, Certificate, Server, exim_missing, exim_server, postfix, postfix_missing

PATIENCE = timedelta(seconds=30)
ADA, GREY, NOBODY = "ada@example.net", "grey@example.net", "nobody@example.net"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of the server, signed by an authority that the mailer trusts."""
    authority = trustme.CA()
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    issued = authority.issue_cert(HOST)
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    return Certificate(chain, issued.private_key_pem.bytes(), ca_file)


@pytest.fixture
async def sink() -> AsyncIterator[SMTPServer]:
    """Where the server hands everything on."""
    async with SMTPServer() as sink:
        yield sink


@asynccontextmanager
async def greylisting() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A policy service as Postfix asks it (SMTPD_POLICY_README): its port, and an event from which on all are known."""
    known = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := (await reader.readuntil(b"\n\n") if not reader.at_eof() else b""):
            grey = f"recipient={GREY}\n".encode() in request and not known.is_set()
            action = b"451 4.7.1 Greylisted, come back later" if grey else b"DUNNO"
            writer.write(b"action=" + action + b"\n\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # Postfix is through with it
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], known


class Place:
    """A server, how its greylisting ends, and what it hands on."""

    def __init__(self, server: Server, sink: SMTPServer, known: asyncio.Event) -> None:
        self.server = server
        self._sink = sink
        self._known = known

    async def handed_on(self, count: int) -> list[ReceivedMessage]:
        """What arrived at the sink."""
        if self.server.hand_on:
            await asyncio.to_thread(subprocess.run, self.server.hand_on, check=True, timeout=30)
        return await self._sink.wait_for_messages(count, timeout=PATIENCE)

    def wait_out_greylisting(self) -> None:
        self._known.set()
        self.server.known.touch()


@pytest.fixture(params=["Postfix", "Exim"])
async def place(request, missing, sink: SMTPServer, certificate: Certificate) -> AsyncIterator[Place]:
    """One of the servers, running."""
    why = postfix_missing() if request.param == "Postfix" else exim_missing()
    if why is not None:
        missing(why)
    async with greylisting() as (policy, known):
        opened = (
            postfix(sink.port, policy, certificate)
            if request.param == "Postfix"
            else exim_server(sink.port, certificate)
        )
        server = await asyncio.to_thread(opened.__enter__)
        try:
            yield Place(server, sink, known)
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)


@asynccontextmanager
async def mailer_to(
    place: Place, certificate: Certificate, clock: ManualClock, limits: Limits | None = None
) -> AsyncIterator[Mailstrom]:
    """A mailer that demands TLS with a valid certificate."""
    async with DNSServer({"example.net": {"MX": [f"10 {HOST}"]}, HOST: {"A": ["127.0.0.1"]}}) as dns:
        delivery = DirectDelivery(port=place.server.port, nameservers=(dns.address,), allowed_networks=("127.0.0.0/8",))
        config = Config(
            helo_name="app.example.org",
            delivery=delivery,
            tls="verify",
            ca_file=certificate.ca_file,
            limits=limits or Limits(),
        )
        async with Mailstrom(config, MemoryStorage(), clock=clock) as mailer:
            yield mailer


def states(status) -> dict[str, tuple]:
    return {
        r.address: (r.result.state, r.result.reply.code, r.result.reply.enhanced, r.attempts) for r in status.recipients
    }


def accepted(status, address: str) -> tuple:
    """What the state of a delivered recipient has to be; each server says "taken" in its own words."""
    (found,) = (value for key, value in states(status).items() if key == address)
    return found[0], found[1], found[3]


async def test_each_recipient_has_its_own_outcome(place, certificate):
    """One is taken, one does not exist, one is greylisted and gets the mail with the retry."""
    clock = ManualClock()
    email = Email(
        from_="App <app@example.org>",
        to=[ADA, NOBODY, GREY],
        subject="Grüße aus der Ferne",
        text="Schöne Grüße\n.\n..punkt\nEnde\n",
        html="<p>Schöne Grüße</p>",
    )
    async with mailer_to(place, certificate, clock) as mailer:
        message_id = await mailer.send_email(email)
        content = (await mailer.query_prepared(message_id)).content
        status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)
        assert accepted(status, ADA) == ("delivered", 250, 1)
        assert states(status)[NOBODY] == ("failed", 550, "5.1.1", 1)
        assert states(status)[GREY] == ("deferred", 451, "4.7.1", 1)
        (attempt,) = await mailer.query_attempts(message_id)

        place.wait_out_greylisting()
        clock.advance(timedelta(hours=1))
        status = await mailer.wait(message_id, timeout=PATIENCE)
        assert accepted(status, GREY) == ("delivered", 250, 2)
        received = await place.handed_on(2)

    assert attempt.tls.version == "TLSv1.3"
    assert attempt.tls.verified
    assert any("PIPELINING" in line for line in attempt.transcript)
    assert sorted(message.recipients for message in received) == [(ADA,), (GREY,)]
    for message in received:
        # Behind the trace header that the server wrote: our bytes.
        assert message.content.endswith(content)
        assert message.email["Subject"] == "Grüße aus der Ferne"


async def test_many_messages_go_over_few_connections(place, certificate):
    """Small ones whose envelopes go out with the end of the one before, and a big one with dots in it."""
    big = b"From: app@example.org\r\nTo: ada@example.net\r\nSubject: big\r\n\r\n" + b".dots and more\r\n" * 60_000
    async with mailer_to(place, certificate, ManualClock()) as mailer:
        emails = [Email(from_="app@example.org", to=ADA, subject=f"number {n}", text="Hello\n") for n in range(30)]
        message_ids = await mailer.send_emails([*emails, big])
        for message_id in message_ids:
            status = await mailer.wait(message_id, timeout=PATIENCE)
            assert accepted(status, ADA) == ("delivered", 250, 1)
        received = await place.handed_on(31)

    subjects = sorted(message.email["Subject"] for message in received)
    assert subjects == sorted(["big", *(f"number {n}" for n in range(30))])
    (taken,) = (message for message in received if message.email["Subject"] == "big")
    assert taken.content.count(b"\r\n.dots and more\r\n") >= 30_000
    assert taken.content.endswith(b".dots and more\r\n" * 1000)


async def test_a_window_of_bdat_transactions(place, certificate):
    """Several are on their way at once: some whose recipient does not exist, and whose content the server throws away;
    one too large to be sent ahead. Each has its own outcome, and its own content arrives."""
    limits = Limits(connections_per_host=1, bdat_window=16)
    big = b"From: app@example.org\r\nTo: ada@example.net\r\nSubject: big\r\n\r\n" + b".dots and more\r\n" * 20_000
    async with mailer_to(place, certificate, ManualClock(), limits) as mailer:
        emails = [
            Email(from_="app@example.org", to=NOBODY if n % 7 == 3 else ADA, subject=f"number {n}", text=".\n..Hello\n")
            for n in range(40)
        ]
        message_ids = await mailer.send_emails([*emails[:20], big, *emails[20:]])
        statuses = [await mailer.wait(message_id, timeout=PATIENCE) for message_id in message_ids]
        (refused,) = await mailer.query_attempts(message_ids[3])
        received = await place.handed_on(35)

    for status in statuses:
        (recipient,) = status.recipients
        assert recipient.result.state == ("failed" if recipient.address == NOBODY else "delivered")
        assert recipient.attempts == 1
    assert any("BDAT" in line for line in refused.transcript)
    subjects = sorted(message.email["Subject"] for message in received)
    assert subjects == sorted(["big", *(f"number {n}" for n in range(40) if n % 7 != 3)])
    for message in received:
        if message.email["Subject"] != "big":
            assert message.content.endswith(b"\r\n\r\n.\r\n..Hello\r\n")
