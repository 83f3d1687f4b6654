"""A session with a window of BDAT transactions: cancelled anywhere, over TLS, and what it tells afterwards."""

import asyncio
from collections import deque
from itertools import count

import pytest

from mailstrom_async.smtp import SMTPConnector
from mailstrom_async.testing import Close, Reply, SMTPServer

TO = "a@example.test"
EXTENSIONS = ("PIPELINING", "CHUNKING", "8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 52428800")
SMALL = b"Subject: x\r\n\r\n.Hello\r\n.\r\n"
LARGE = b"Subject: x\r\n\r\n" + (b"x" * 76 + b"\r\n") * 2_000  # above 64 KiB: piece by piece, in its turn


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request):
    """Which event loop the test runs on."""
    return request.param


class Stream:
    """Messages that follow one another on a session.

    Attributes:
        told: For each message, by its number: "taken", "unknown" or "unsent".
    """

    def __init__(self, client, session, contents: list[bytes]) -> None:
        self.session = session
        self.told: dict[int, str] = {}
        self._left = deque(
            (number, client.message(content, sender=f"s{number}@example.org"))
            for number, content in enumerate(contents)
        )
        self._named = deque()

    def _following(self):
        if not self._left:
            return None
        self._named.append(self._left.popleft())
        return self._named[-1][1], [TO]

    async def run(self) -> None:
        """Send all; cancelled, tell what became of each."""
        number = -1
        try:
            while self._named or self._left:
                number, message = (self._named or self._left).popleft()
                self._tell(number, await self.session.transact(message, [TO], self._following))
        except asyncio.CancelledError:
            self.told[number] = "unknown" if self.session.in_doubt else "unsent"
            for result in self.session.abandon():
                self._tell(self._named.popleft()[0], result)
            raise

    def _tell(self, number, result) -> None:
        decided = result.decided.get(TO)
        if decided is not None:
            assert decided.reply.code == 250
            self.told[number] = "taken"
        elif result.breakdown is not None and result.breakdown.cause == "outcome_unknown":
            self.told[number] = "unknown"
        else:
            self.told[number] = "unsent"


def taken(server: SMTPServer) -> list[int]:
    return [int(message.sender[1:].partition("@")[0]) for message in server.messages]


@pytest.mark.parametrize("protection", ["plaintext", "STARTTLS"])
async def test_a_cancel_anywhere_in_a_window_says_what_became_of_each(client, certificates, protection):
    """What the server took is taken or unknown; and what is neither it did not take, nor will it."""
    tls = {"tls": certificates.server()} if protection == "STARTTLS" else {}
    contents = [SMALL, SMALL, SMALL, LARGE, SMALL, SMALL]
    doubts = 0
    async with SMTPServer(extensions=EXTENSIONS, **tls) as server:
        connector = SMTPConnector("client.example.test", client.connector()._timeouts, bdat_window=4)
        for rounds in count(1):
            session = await connector.connect(client.target(server))
            client.sessions.append(session)
            server.messages.clear()
            stream = Stream(client, session, contents)
            task = asyncio.create_task(stream.run())
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with asyncio.timeout(10):
                while not all(record.closed for record in server.sessions) and task.cancelled():  # noqa: ASYNC110
                    await asyncio.sleep(0)
            for number in taken(server):
                assert stream.told.get(number) in ("taken", "unknown")
            assert all(number in taken(server) for number, fate in stream.told.items() if fate == "taken")
            doubts += "unknown" in stream.told.values()
            if not task.cancelled():
                break
            assert not session.usable

        assert session.usable
        assert list(stream.told.values()) == ["taken"] * len(contents)
        assert [message.content for message in server.messages] == contents
        assert server.violations == []
    assert doubts > 2
    assert rounds > 10


async def test_an_idle_session_that_the_server_closed_is_in_nobodys_way(client):
    """Row A55: nothing of the message was sent, so it may go over another session at no risk."""
    async with SMTPServer(extensions=EXTENSIONS) as server:
        connector = SMTPConnector("client.example.test", client.connector()._timeouts, bdat_window=4)
        session = await connector.connect(client.target(server))
        client.sessions.append(session)
        assert (await session.transact(client.message(), [TO])).decided[TO].reply.code == 250
        sending = asyncio.create_task(session.transact(client.message(), [TO]))
        await server.disconnect()
        result = await sending

        assert result.untouched or result.decided
        assert server.received == (1 if result.untouched else 2)


async def test_a_message_that_nobody_may_get_is_not_sent(client):
    """Row A33: all are refused before the content would go, and the next message begins anew."""
    async with SMTPServer({"RCPT": ["550 5.1.1 no", "550 5.1.1 no"]}, extensions=EXTENSIONS) as server:
        connector = SMTPConnector("client.example.test", client.connector()._timeouts, bdat_window=4)
        session = await connector.connect(client.target(server))
        client.sessions.append(session)
        refused = await session.transact(client.message(), [TO, "b@example.test"])
        after = await session.transact(client.message(), [TO])
        await session.quit()

        assert [refusal.reply.code for refusal in refused.decided.values()] == [550, 550]
        assert after.decided[TO].reply.code == 250
        verbs = [command.split()[0] for command in server.sessions[0].commands]
        assert verbs == ["EHLO", "MAIL", "RCPT", "RCPT", "RSET", "MAIL", "RCPT", "BDAT", "QUIT"]
        assert server.violations == []


async def test_a_message_that_was_held_back_is_the_next_one_whatever_comes_between(client):
    """Named ahead of others and too large to be sent ahead, it is asked for before anything else is named: else the
    results of those behind it would be taken for its own."""
    first, ahead, held, last = (client.message(content) for content in (SMALL, SMALL, LARGE, SMALL))
    named = iter([(ahead, ["one@example.net"]), (held, [TO]), (last, [TO])])

    def following():
        return next(named, None)

    async with SMTPServer(extensions=EXTENSIONS) as server:
        session = await SMTPConnector("client.example.test", client.connector()._timeouts, bdat_window=4).connect(
            client.target(server)
        )
        client.sessions.append(session)
        await session.transact(client.message(SMALL), [TO])  # the window grows
        await session.transact(first, [TO], following)
        await session.transact(ahead, ["one@example.net"])
        await session.transact(ahead, ["two@example.net"], following)

        assert session.abandon() == []
        assert next(named)[0] is last
    assert len(server.messages) == 4


async def test_a_session_that_was_ended_in_place_of_the_answer_to_mail_blames_nobody_and_tells_why(client):
    """The message may go over another session at no risk; and the host has said that it has enough."""
    farewell = Reply("421 4.7.0 that is enough", then=Close())
    async with SMTPServer({"MAIL": [None, farewell]}, extensions=EXTENSIONS) as server:
        connector = SMTPConnector("client.example.test", client.connector()._timeouts, bdat_window=4)
        session = await connector.connect(client.target(server))
        client.sessions.append(session)
        await session.transact(client.message(), [TO])
        result = await session.transact(client.message(), [TO])

        assert result.untouched
        assert (result.breakdown.reply.code, result.breakdown.reply.text) == (421, "that is enough")
