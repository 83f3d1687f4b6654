"""The same on uvloop, whose transports are not asyncio's."""

import asyncio
import socket
from datetime import timedelta

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.testing import Close, Gate, Reply, Reset, SMTPServer, StopReading, TakeThenClose

A, B = "a@example.test", "b@example.test"
BIG = (b"x" * 76 + b"\r\n") * 250_000


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request):
    """Which event loop the test runs on."""
    return request.param


@pytest.fixture(params=["plaintext", "STARTTLS", "implicit TLS"])
def protection(request, certificates) -> dict[str, object]:
    """How the server is protected."""
    if request.param == "plaintext":
        return {}
    return {"tls": certificates.server(), "implicit_tls": request.param == "implicit TLS"}


async def connect(client, server, protection, **timeouts):
    return await client.connect(
        server, "verify" if protection else "may", implicit_tls=protection.get("implicit_tls", False), timeouts=timeouts
    )


async def test_messages_arrive(client, protection, extensions):
    """Small ones and big ones, several on a session, some of them refused."""
    async with SMTPServer({f"RCPT TO:<{B}>": "550 5.1.1 no"}, extensions=extensions, **protection) as server:
        session = await connect(client, server, protection)
        for content in (b"Subject: small\r\n\r\n", BIG, b"Subject: small\r\n\r\n"):
            result = await session.transact(client.message(content), [A, B])

            assert {r: refusal.reply.code for r, refusal in result.decided.items()} == {A: 250, B: 550}
            assert server.messages[-1].content == content
        await session.quit()

        assert server.connections == 1
        assert server.violations == []


async def test_a_lost_connection_is_noticed(client, protection):
    """Row A36 and A38: inside the content and after the dot."""
    script = {"body": [Reset()], "end of data": TakeThenClose()}
    async with SMTPServer(script, **protection) as server:
        session = await connect(client, server, protection)
        result = await session.transact(client.message(BIG), [A])
        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.DATA, "network")

        session = await connect(client, server, protection)
        result = await session.transact(client.message(), [A])
        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.END_OF_DATA, "outcome_unknown")


async def test_a_reader_that_stops_is_given_up(client, protection):
    """Row A40."""
    async with SMTPServer({"body": StopReading()}, **protection) as server:
        session = await connect(client, server, protection, block=timedelta(seconds=0.2))
        result = await session.transact(client.message(BIG), [A])

        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.DATA, "network")
        assert not session.in_doubt


async def test_a_cancelled_transaction_sends_nothing_more(client, protection):
    """Finding 2."""
    gate = Gate()
    async with SMTPServer({"body": gate}, **protection) as server:
        session = await connect(client, server, protection)
        transaction = asyncio.create_task(session.transact(client.message(BIG), [A]))
        await gate.reached()
        transaction.cancel()
        with pytest.raises(asyncio.CancelledError):
            await transaction
        gate.open()
        while not server.sessions[0].closed:  # noqa: ASYNC110
            await asyncio.sleep(0)

    assert server.messages == []


async def test_a_broken_handshake_is_done_without(client, certificates):
    """Row A16."""
    async with SMTPServer({"STARTTLS": [Reply("220 go", then=Close())]}, tls=certificates.server()) as server:
        session = await client.connect(server, "may")
        result = await session.transact(client.message(), [A])

        assert result.decided[A].reply.code == 250
        assert session.tls.version is None


async def test_a_closed_session_is_not_usable(client, protection):
    """Row A55."""
    async with SMTPServer(**protection) as server:
        session = await connect(client, server, protection)
        await session.transact(client.message(), [A])
        await server.disconnect()
        async with asyncio.timeout(5):
            while session.usable:  # noqa: ASYNC110
                await asyncio.sleep(0)
        result = await session.transact(client.message(), [A])

        assert result.untouched


async def test_tls_from_the_first_byte_on_may_begin_late(client, certificates):
    """What the client sent while the server was busy is not lost."""
    gate = Gate()
    async with SMTPServer({"connect": gate}, tls=certificates.server(), implicit_tls=True) as server:
        connecting = asyncio.create_task(client.connect(server, "verify", implicit_tls=True))
        await gate.reached()
        gate.open()
        session = await connecting

        assert session.tls.verified


async def test_a_server_ends_in_the_middle_of_a_handshake(raw_server, certificates):
    """The scripted server's own end does not wait for a client that never finishes its handshake."""
    async with asyncio.timeout(5):
        async with SMTPServer(tls=certificates.server(), implicit_tls=True) as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            while not server.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)

        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("rounds", range(6))
async def test_a_server_ends_while_it_accepts(rounds):
    """The scripted server's own end, at whatever moment of a connection's first ones."""
    async with asyncio.timeout(5):
        async with SMTPServer() as server:
            with socket.create_connection((server.host, server.port)):
                for _ in range(rounds):
                    await asyncio.sleep(0)
