"""Several transactions on one session, and its end."""

import asyncio
import gc
from datetime import timedelta

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.testing import Close, Hang, Raw, Reply, Reset, SMTPServer

A, B = "a@example.test", "b@example.test"


async def send(client, session, *recipients: str):
    return await session.transact(client.message(), recipients or (A,))


async def until_closed(session) -> None:
    async with asyncio.timeout(5):
        while session.usable:  # noqa: ASYNC110 - what comes in is only seen by the event loop
            await asyncio.sleep(0)


async def test_many_messages_go_over_one_session(client, extensions):
    """No RSET is needed after a transaction that came to its end."""
    async with SMTPServer(extensions=extensions) as server:
        session = await client.connect(server)
        for _ in range(5):
            result = await send(client, session)
            assert result.decided[A].reply.code == 250

        assert session.transactions == 5
        assert server.connections == 1
        assert "RSET" not in server.sessions[0].commands
        assert server.violations == []


@pytest.mark.parametrize(
    "script",
    [
        {"MAIL": ["550 no"]},
        {"RCPT": ["550 no"]},
        {"DATA": ["451 no"]},
        {"end of data": ["554 no"]},
    ],
)
async def test_a_refused_transaction_does_not_harm_the_next(client, extensions, script):
    """Row A56: RSET clears what is left of it."""
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        await send(client, session)
        result = await send(client, session, B)

        assert result.decided[B].reply.code == 250
        assert result.decided[B].phase == Phase.END_OF_DATA
        assert ("RSET" in server.sessions[0].commands) is ("end of data" not in script)
        assert server.messages[0].recipients == (B,)
        assert server.violations == []


@pytest.mark.parametrize("action", ["502 5.5.1 no RSET here", "421 4.3.2 bye", Close(), Reset()])
async def test_a_refused_rset_harms_nobody(client, extensions, action):
    """Row A56: the message can go over a new session, and nothing of it was attempted."""
    async with SMTPServer({"RCPT": ["550 no"], "RSET": action}, extensions=extensions) as server:
        session = await client.connect(server)
        await send(client, session)
        result = await send(client, session, B)

        assert result.decided == {}
        assert result.untouched
        assert result.breakdown is not None
        assert not session.usable
    assert server.messages == []


async def test_a_session_that_was_closed_while_idle_is_not_usable(client):
    """Row A55: noticed before anything is sent."""
    async with SMTPServer() as server:
        session = await client.connect(server)
        await send(client, session)
        await server.disconnect()
        await until_closed(session)
        result = await send(client, session)

        assert result.decided == {}
        assert result.untouched


@pytest.mark.parametrize("action", [Close(), Reset(), "421 4.4.2 idle for too long"])
async def test_a_session_that_turns_out_to_be_closed_blames_nobody(client, extensions, action):
    """Row A55: closed before MAIL was answered, on a session that was used before."""
    async with SMTPServer({"MAIL": [None, action]}, extensions=extensions) as server:
        session = await client.connect(server)
        await send(client, session)
        result = await send(client, session)

        assert result.decided == {}
        assert result.untouched
        assert result.breakdown.phase == Phase.MAIL
    assert server.received == 1


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ({"MAIL": [Close()]}, "it was a new session"),
        ({"RCPT": [None, Close()]}, "MAIL was answered"),
        ({"MAIL": [None, Hang()]}, "it was not closed"),
        ({"MAIL": [None, Reply("junk", then=Close())]}, "it is no SMTP server"),
        ({"MAIL": [None, Raw(b"250-half a reply")]}, "it was not closed"),
    ],
)
async def test_other_ends_of_a_session_count_as_attempts(client, script, why):
    """Row A55: only what is without risk and without blame is done again at once."""
    extensions = ["8BITMIME"]
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server, timeouts={"command": timedelta(seconds=0.2)})
        result = await send(client, session)
        if result.breakdown is None:
            result = await send(client, session)

        assert result.breakdown is not None
        assert not result.untouched, why


@pytest.mark.parametrize("unasked", [b"421 4.3.2 going down\r\n", b"250 hello?\r\n", b"2", b"junk\r\n"])
async def test_whatever_comes_unasked_ends_the_session(client, raw_server, unasked):
    """Row A50: between transactions nothing is expected."""
    go_on = asyncio.Event()

    async def serve(reader, writer):
        writer.write(b"220 mx\r\n")
        await reader.readline()
        writer.write(b"250 mx\r\n")
        await go_on.wait()
        writer.write(unasked)
        await reader.read()

    async with raw_server(serve).running() as server:
        session = await client.connect(server)
        assert session.usable
        go_on.set()
        await until_closed(session)
        result = await send(client, session)

        assert result.decided == {}
        assert result.breakdown is not None


async def test_a_session_says_goodbye(client):
    """QUIT, and the connection is closed."""
    async with SMTPServer() as server:
        session = await client.connect(server)
        await send(client, session)
        await session.quit()

        assert not session.usable
        assert server.sessions[0].quit


@pytest.mark.parametrize("action", [Hang(), Close(), Reset(), "502 no", Raw(b"junk\r\n"), Raw(b"221 bye\r\n250 x\r\n")])
async def test_the_goodbye_is_not_waited_for(client, monkeypatch, action):
    """Row A59: every message has its outcome already."""
    monkeypatch.setattr("mailstrom_async.smtp.session.QUIT_SECONDS", 0.1)
    async with SMTPServer({"QUIT": action}) as server:
        session = await client.connect(server)
        result = await send(client, session)
        async with asyncio.timeout(2):
            await session.quit()
            await session.quit()

        assert result.decided[A].reply.code == 250
        assert not session.usable


async def test_nothing_is_left_of_a_session(client, extensions):
    """No task, no connection, no future that complains."""
    async with SMTPServer(extensions=extensions) as server:
        before = asyncio.all_tasks()
        for end in ("quit", "abort"):
            session = await client.connect(server)
            await send(client, session)
            if end == "quit":
                await session.quit()
            else:
                session.abort()
        client.sessions.clear()
        del session
        while not all(record.closed for record in server.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0)
        gc.collect()

        assert asyncio.all_tasks() == before
