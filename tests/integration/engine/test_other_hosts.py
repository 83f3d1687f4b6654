"""Another host of the route is asked in the same attempt."""

from datetime import timedelta

from mailstrom_async import Config, Limits, Mailstrom, MemoryStorage
from mailstrom_async.testing import Close, Delay, FakeInternet, Reply

from .conftest import email

PATIENCE = timedelta(seconds=20)


async def test_a_host_that_closes_between_two_transactions_leaves_nobody_without_an_outcome():
    """Rows A24, I6: the second host takes one recipient and is gone: that one is delivered once, the other deferred."""
    async with FakeInternet() as internet:
        first = await internet.exchanger("mx1.example.org")
        second = await internet.exchanger("mx2.example.org")
        internet.domain("example.org", mx=["10 mx1.example.org", "20 mx2.example.org"])
        first.script["MAIL"] = "451 4.3.2 not now"
        second.script["end of data"] = Reply("250 2.0.0 taken", then=Close())
        config = Config(
            helo_name="app.example.net",
            delivery=internet.delivery,
            limits=Limits(recipients_per_transaction=1),
            shutdown_grace=timedelta(0),
        )
        async with Mailstrom(config, MemoryStorage()) as mailer:
            message_id = await mailer.send_email(email(["ada@example.org", "eve@example.org"]))
            status = await mailer.wait(message_id, until="attempted", timeout=PATIENCE)

        assert [recipient.result.state for recipient in status.recipients] == ["delivered", "deferred"]
        assert [recipient.attempts for recipient in status.recipients] == [1, 1]
        assert len(second.messages) == 1


async def test_a_session_to_another_host_takes_the_place_of_the_first():
    """I13: there are never more connections than the limits allow, also while another host is asked."""
    async with FakeInternet() as internet:
        first = await internet.exchanger("mx1.example.org", {"MAIL": "451 4.3.2 not now"})
        second = await internet.exchanger("mx2.example.org")
        internet.domain("example.org", mx=["10 mx1.example.org", "20 mx2.example.org"])
        at_once = []

        def arrived(context):
            sessions = [*first.sessions, *second.sessions]
            at_once.append(sum(not (session.quit or session.closed) for session in sessions))

        second.script["MAIL"] = arrived
        config = Config(
            helo_name="app.example.net",
            delivery=internet.delivery,
            limits=Limits(connections=1, connections_per_host=1),
            shutdown_grace=timedelta(0),
        )
        async with Mailstrom(config, MemoryStorage()) as mailer:
            for message_id in await mailer.send_emails([email(f"r{number}@example.org") for number in range(4)]):
                assert (await mailer.wait(message_id, timeout=PATIENCE)).succeeded

    assert at_once == [1] * 4


async def test_what_was_sent_ahead_is_not_given_up_to_ask_another_host():
    """Messages on their way in a window have their replies still to come, and would be in doubt for nothing."""
    async with FakeInternet() as internet:
        answers = iter([None] * 5 + ["451 4.3.2 not now"])
        first = await internet.exchanger("mx1.example.org", {"MAIL": lambda context: next(answers, None)})
        first.extensions.append("CHUNKING")
        first.script["end of data"] = Delay(timedelta(milliseconds=20))
        await internet.exchanger("mx2.example.org")
        internet.domain("example.org", mx=["10 mx1.example.org", "20 mx2.example.org"])
        config = Config(
            helo_name="app.example.net",
            delivery=internet.delivery,
            limits=Limits(connections=1, connections_per_host=1, bdat_window=8),
            shutdown_grace=timedelta(0),
        )
        async with Mailstrom(config, MemoryStorage()) as mailer:
            for message_id in await mailer.send_emails([email(f"r{number}@example.org") for number in range(30)]):
                assert (await mailer.wait(message_id, until="attempted", timeout=PATIENCE)).succeeded
