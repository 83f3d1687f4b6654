"""The begin of a session, with servers that do not want one, or can't."""

import asyncio
import gc
import resource
import socket
from datetime import timedelta
from ipaddress import ip_address

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.smtp import Breakdown, Credentials, Refusal, SessionError, Target
from mailstrom_async.testing import Close, Drip, Flood, Gate, Hang, Raw, Reply, Reset, SMTPServer

SHORT = timedelta(seconds=0.2)


def refusal(error: SessionError) -> tuple[Phase, int]:
    assert isinstance(error.why, Refusal)
    return error.why.phase, error.why.reply.code


def breakdown(error: SessionError) -> tuple[Phase, str]:
    assert isinstance(error.why, Breakdown)
    return error.why.phase, error.why.cause


async def test_a_session_knows_what_it_is(client):
    """Open, in plaintext, unused."""
    async with SMTPServer() as server:
        session = await client.connect(server)

        assert session.usable
        assert session.transactions == 0
        assert not session.in_doubt
        assert session.tls.version is None
        assert session.tls.why == "the server does not offer STARTTLS"
        assert session.target.port == server.port
        assert repr(session) == f"<SMTPSession with {session.target} [plaintext, 0 transactions, usable]>"
        assert session.transcript[1] == "C: EHLO client.example.test"


async def test_a_host_that_refuses_the_connection(client):
    """Row A1: nobody listens."""
    async with SMTPServer() as server:
        pass
    error = await client.failure(server)

    assert breakdown(error) == (Phase.CONNECT, "network")
    assert str(error) == f"mx.example.test [127.0.0.1]:{server.port} refused the connection"


async def test_a_host_that_does_not_answer(client):
    """Row A2: its packets are lost; we wait for the time that was set and not longer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        # A full backlog drops further connections.
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        connector = client.connector(connect=SHORT)
        with pytest.raises(SessionError) as caught:
            await connector.connect(Target("mx.example.test", ip_address("127.0.0.1"), port, "may"))
        for sock in waiting:
            sock.close()

    assert breakdown(caught.value) == (Phase.CONNECT, "network")
    assert "gave no answer within 0.2 s" in str(caught.value)


@pytest.mark.parametrize("action", [Close(), Reset()])
@pytest.mark.parametrize("moment", ["connect", "greeting"])
async def test_a_host_that_hangs_up_before_it_greets(client, moment, action):
    """Rows A3 and A4."""
    async with SMTPServer({moment: action}) as server:
        error = await client.failure(server)

    assert breakdown(error) == (Phase.GREETING, "network")
    assert "closed the connection" in str(error)


async def test_a_host_that_does_not_greet(client):
    """Row A5."""
    async with SMTPServer({"greeting": Hang()}) as server:
        error = await client.failure(server, timeouts={"greeting": SHORT})

    assert breakdown(error) == (Phase.GREETING, "network")
    assert "gave no answer within 0.2 s" in str(error)


@pytest.mark.parametrize(
    ("text", "code", "enhanced", "said"),
    [
        ("421 4.3.2 Too busy", 421, "4.3.2", "Too busy"),
        ("554 5.7.1 We do not like you", 554, "5.7.1", "We do not like you"),
        ("521 does not accept mail", 521, None, "does not accept mail"),
    ],
)
async def test_a_greeting_that_is_a_refusal(client, text, code, enhanced, said):
    """Rows A6 and A7: the reply is handed on whole, and decided upon elsewhere."""
    async with SMTPServer({"greeting": text}) as server:
        error = await client.failure(server)

    assert refusal(error) == (Phase.GREETING, code)
    assert (error.why.reply.enhanced, error.why.reply.text) == (enhanced, said)
    assert error.why.reply.command == "greeting"
    assert error.transcript == (f"S: {text}",)


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\r\n",
        b"\r\n",
        b"999 x\r\n",
        b"25\r\n",
        b"+22 x\r\n",
        b" 220 x\r\n",
        b"2200 x\r\n",
        b"220x\r\n",
        b"abc\r\n",
        b"099 x\r\n",
        b"250 x\r\n",
        b"354 x\r\n",
        b"220-x\r\n554 y\r\n",
        b"554-x\r\n220 y\r\n",
        b"220 x\r\n250 early\r\n",
    ],
)
async def test_a_greeting_that_is_none(client, greeting):
    """Rows A8, A44, A45 and A49: whoever does not speak SMTP is not spoken to."""
    async with SMTPServer({"greeting": Raw(greeting)}) as server:
        error = await client.failure(server)

        assert breakdown(error) == (Phase.GREETING, "protocol")
        assert server.sessions[0].commands == []


@pytest.mark.parametrize("moment", ["greeting", "EHLO"])
@pytest.mark.parametrize("content", [b"2" * 4096, b"250 " + b"x" * 4092, b"250-more\r\n" * 400, b"220-more\r\n" * 400])
async def test_a_reply_without_end(client, moment, content):
    """Rows A9 and A10: given up as soon as it is too long."""
    async with asyncio.timeout(2):
        async with SMTPServer({moment: Flood(content)}) as server:
            error = await client.failure(server)

    assert breakdown(error)[1] == "protocol"


async def test_a_reply_that_comes_by_the_byte(client):
    """Rows A11 and A39: the deadline is for the whole reply, however often something comes."""
    slow = Drip(b"220-" + b"x" * 100, interval=timedelta(milliseconds=20))
    async with SMTPServer({"greeting": slow}) as server:
        error = await client.failure(server, timeouts={"greeting": SHORT})

    assert breakdown(error) == (Phase.GREETING, "network")


async def test_a_server_of_the_old_days(client):
    """Row A12: EHLO is unknown, HELO is not. Nothing is offered then, so that no parameter is sent."""
    async with SMTPServer({"EHLO": "502 5.5.1 Unknown"}) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), ["a@example.test"])

        assert result.decided["a@example.test"].reply.code == 250
        assert server.sessions[0].commands[:3] == [
            "EHLO client.example.test",
            "HELO client.example.test",
            "MAIL FROM:<sender@example.org>",
        ]
        assert server.violations == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"EHLO": "550 5.7.1 no", "HELO": "554 5.7.1 no, really"}, 554),
        ({"EHLO": "550 5.7.1 no", "HELO": Close()}, 550),
        ({"EHLO": Reply("550 5.7.1 no", then=Close())}, 550),
        ({"EHLO": "421 4.3.2 later"}, 421),
        ({"EHLO": Reply("421 4.3.2 later", then=Close())}, 421),
        ({"EHLO": "451 4.3.0 later"}, 451),
        ({"EHLO": Raw(b"250 mx.example.test\r\n421 4.3.2 on second thoughts\r\n")}, 421),
    ],
)
async def test_a_server_that_refuses_to_talk(client, script, code):
    """Rows A13 and A14: its last word on it is kept, also when it hangs up."""
    async with SMTPServer(script) as server:
        error = await client.failure(server)

    assert refusal(error) == (Phase.EHLO, code)


@pytest.mark.parametrize(
    "answer",
    [
        b"2500 x\r\n",
        b"+25 x\r\n",
        b"250-mx\r\n550 no\r\n",
        b"550-mx\r\n250 no\r\n",
        b"250 mx\r\n250 again\r\n",
        b"hello\r\n",
    ],
)
async def test_an_answer_to_ehlo_that_is_none(client, answer):
    """Rows A44, A45 and A49, at EHLO."""
    async with SMTPServer({"EHLO": Raw(answer)}) as server:
        error = await client.failure(server)

    assert breakdown(error) == (Phase.EHLO, "protocol")


async def test_an_answer_to_ehlo_that_does_not_come(client):
    """The command's timeout."""
    async with SMTPServer({"EHLO": Hang()}) as server:
        error = await client.failure(server, timeouts={"command": SHORT})

    assert breakdown(error) == (Phase.EHLO, "network")


async def test_the_text_of_a_refusal_is_safe(client):
    """Row A43: already when it is read."""
    async with SMTPServer({"greeting": Raw(b"554 go\x00 \x1b[2Jaway \xe9\xff\r\n")}) as server:
        error = await client.failure(server)

    assert error.why.reply.text == "go\ufffd \ufffd[2Jaway \ufffd\ufffd"
    assert error.transcript == ("S: 554 go\ufffd \ufffd[2Jaway \ufffd\ufffd",)


async def test_no_file_descriptors_are_left(client):
    """Row C26: our own shortage says nothing about the host."""
    async with SMTPServer() as server:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = [socket.socket()]
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[0].fileno() + 1, hard))
        try:
            error = await client.failure(server)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            held[0].close()

    assert breakdown(error) == (Phase.CONNECT, "local")
    assert "Too many open files" in str(error)


@pytest.mark.parametrize("moment", ["greeting", "EHLO", "STARTTLS", "AUTH"])
async def test_a_cancelled_opening_leaves_nothing(client, certificates, moment):
    """Row C21: the connection is gone, and so is every task and future."""
    gate = Gate()
    credentials = Credentials("ada", password="secret")
    async with SMTPServer({moment: gate}, tls=certificates.server(), users={"ada": "secret"}) as server:
        before = asyncio.all_tasks()
        opening = asyncio.create_task(client.connect(server, "verify", credentials=credentials))
        await gate.reached()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        gate.open()
        while not server.sessions[0].closed:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)
        gc.collect()

        assert asyncio.all_tasks() == before


async def test_an_address_literal_is_named_once():
    """A relay may be given by its address."""
    assert str(Target("192.0.2.1", ip_address("192.0.2.1"), 25, "may")) == "[192.0.2.1]:25"
    assert str(Target("mx.example.test", ip_address("2001:db8::1"), 25, "may")) == "mx.example.test [2001:db8::1]:25"
