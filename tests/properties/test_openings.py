"""Openings of sessions with a server that says anything, in any pieces: over real sockets, as aiosmtplib speaks."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom_async._config import Timeouts, TLSPolicy
from mailstrom_async._policy.verdict import judge, judge_breakdown
from mailstrom_async.smtp import Refusal, SessionError, SMTPConnector, Target

PATIENCE = 10
SHORT = timedelta(seconds=0.2)
TIMEOUTS = Timeouts(connect=SHORT, greeting=SHORT, command=SHORT)
LINES = (
    b"220 mx\r\n", b"220-mx\r\n220 two\r\n", b"250 mx\r\n", b"250-mx\r\n250-STARTTLS\r\n250 SIZE 10\r\n",
    b"250-mx\r\n250 SIZE \xff\r\n", b"250 \x00\r\n", b"220 go\r\n", b"502 what?\r\n", b"421 bye\r\n", b"554 no\r\n",
    b"25", b"0 x\r\n", b"2200 x\r\n", b"-", b"\r\n", b"250-", b"\x16\x03\x01\x00\x05hello", b"999 x\r\n", b"220 x\n",
)  # fmt: skip

pieces = st.builds(
    lambda begin, rest: [*[b"220 mx\r\n", b"250-mx\r\n250 STARTTLS\r\n", b"220 go\r\n"][:begin], *rest],
    st.integers(0, 3),
    st.lists(st.one_of(st.sampled_from(LINES), st.binary(min_size=1, max_size=30)), max_size=6),
)


async def open_to(pieces: list[bytes], policy: TLSPolicy, *, one_by_one: bool) -> tuple[bool, SessionError | None]:
    """Connect to a server that says this, and closes when it has nothing more to say. Whether a session was opened."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for number, piece in enumerate(pieces):
                if number and one_by_one:
                    await reader.read(1000)
                writer.write(piece)
                await asyncio.sleep(0)
        except ConnectionError:
            pass  # the client has heard enough
        finally:
            writer.close()

    before = asyncio.all_tasks()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connector = SMTPConnector("app.example.org", TIMEOUTS)
        target = Target("mx.example.net", ip_address("127.0.0.1"), port, policy)
        try:
            async with asyncio.timeout(PATIENCE):
                session = await connector.connect(target)
        except SessionError as error:
            return False, error
        else:
            session.abort()
            return True, None
        finally:
            async with asyncio.timeout(PATIENCE):
                while asyncio.all_tasks() != before:  # noqa: ASYNC110
                    await asyncio.sleep(0)


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
@given(pieces, st.sampled_from(["none", "may", "encrypt"]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_an_opening_ends_in_a_session_or_in_a_reason_to_wait(new_loop, pieces, policy, one_by_one):
    """Whatever a server sends: no crash, no hang, no task left; and what goes wrong defers the mail, never fails it."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        opened, error = runner.run(open_to(pieces, policy, one_by_one=one_by_one))

    if error is not None:
        why = error.why
        outcome = (
            judge(why.phase, why.reply)
            if isinstance(why, Refusal)
            else judge_breakdown(why.phase, why.cause, why.reason, enhanced=why.enhanced, reply=why.reply)
        )
        assert outcome.state == "deferred"
        assert outcome.reason.replace("\n", "").isprintable()
        assert all(line.replace("\n", "").isprintable() for line in error.transcript)
    else:
        assert opened
        assert policy != "encrypt"
        assert b"".join(pieces).startswith(b"220")
