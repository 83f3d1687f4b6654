"""The Rust original's bugs, as its source has them: none of them is here. The engine, and who gets which result."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import anyio
import pytest

from mailstrom_async import (
    AlreadyQueued,
    Config,
    Email,
    InvalidEmail,
    MailerStateError,
    Mailstrom,
    MemoryStorage,
    MessageNotFound,
    MessageStatus,
    RelayDelivery,
    RetryPolicy,
    SQLiteStorage,
)
from mailstrom_async.testing import Fault, Gate

from .world import DOMAIN, A, B, deferred, delivered, failed

LATER = "451 4.7.1 come back later"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
STEADY = RetryPolicy(jitter=0)


@pytest.fixture
def anyio_backend():
    """What is pinned here does not depend on the kind of event loop."""
    return "asyncio"


async def every(mails: Iterable) -> list[dict]:
    return [await mail.completed() for mail in mails]


# Its worker.


async def test_mails_due_at_one_instant_are_all_sent(world):
    """Its heap took two tasks with the same instant for equal, and dropped one."""
    server = await world.exchanger({"RCPT": [LATER] * 20})
    async with world.mailer(retry=STEADY) as mailer:
        mails = [await world.send(mailer, A) for _ in range(20)]
        for mail in mails:
            await mail.attempted()
        due = {(await mail.result()).next_attempt_at for mail in mails}
        assert len(due) == 1
        await every(mails)

    assert server.received == 20


async def test_a_slow_server_does_not_hold_others_up(world):
    """It served one message at one exchanger at a time."""
    await world.exchanger({"greeting": Gate()})
    await world.internet.exchanger("mx.quick.example.com")
    world.internet.domain("quick.example.com", mx=["mx.quick.example.com"])
    async with world.mailer() as mailer:
        await world.send(mailer, A)
        quick = await world.send(mailer, "x@quick.example.com")

        assert await quick.completed() == {"x@quick.example.com": delivered()}


async def test_steady_traffic_does_not_hurry_what_is_deferred(world):
    """Its refresh made every incomplete message due at once, so that greylisting became a failure within minutes."""
    await world.exchanger({f"RCPT TO:<{A}>": LATER})
    async with world.mailer(retry=STEADY) as mailer:
        mail = await world.send(mailer, A)
        await mail.attempted()
        due = (await mail.result()).next_attempt_at
        for _ in range(17):  # seconds that are together a little less than three minutes
            world.clock.advance(timedelta(seconds=10))
            await every([await world.send(mailer, B)])

        assert len(await mail.attempts()) == 1
        assert (await mail.result()).next_attempt_at == due
        assert await mail.attempted_again() == {A: deferred("smtp", "4.7.1", 451, attempts=2)}


async def test_a_deferred_mail_does_not_delay_a_new_one(world):
    """Its refresh could come nine minutes late while one deferred task was all it had."""
    await world.exchanger({f"RCPT TO:<{A}>": LATER})
    async with world.mailer() as mailer:
        await (await world.send(mailer, A)).attempted()

        assert await (await world.send(mailer, B)).attempted() == {B: delivered()}


async def test_a_restart_keeps_due_times(world, tmp_path):
    """Its due times were in memory only: a restart tried everything at once."""
    server = await world.exchanger({"RCPT": LATER})
    storage = SQLiteStorage(tmp_path / "mail.db")
    async with world.mailer(storage=storage, retry=STEADY) as mailer:
        mail = await world.send(mailer, A)
        await mail.attempted()
        before = await mail.result()
    server.script["RCPT"] = None
    world.clock.advance(MINUTE)
    async with world.mailer(storage=storage, retry=STEADY) as mailer:
        mail.mailer = mailer
        await every([await world.send(mailer, B)])
        assert await mail.result() == before
        assert len(await mail.attempts()) == 1

        assert await mail.completed() == {A: delivered(attempts=2)}
    assert world.clock.now() == before.next_attempt_at


async def test_the_last_attempt_ends_in_a_final_result(world):
    """After its last attempt a recipient stayed deferred for ever, and the message never completed."""
    await world.exchanger({"RCPT": LATER})
    async with world.sent(A, retry=RetryPolicy(lifetime=HOUR, jitter=0)) as mail:
        seen = (await mail.completed())[A]

        assert (seen.state, seen.cause, seen.enhanced) == ("failed", "expired", "4.4.7")
        assert (await mail.status()).completed


async def test_an_outage_of_a_domain_with_many_exchangers_is_survived(world):
    """Each exchanger tried counted as an attempt: five of them failed a mail for good in the first pass."""
    names = [f"mx{number}.{DOMAIN}" for number in range(1, 7)]
    for name in names:
        world.internet.down(name)
    world.internet.domain(DOMAIN, mx=names)
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: deferred("network", "4.4.1")}
        await world.internet.exchanger(names[2])

        assert await mail.completed() == {A: delivered(attempts=2)}


async def test_attempts_are_counted_beyond_255(world):
    """Its counters were of eight bits, and wrapped or panicked."""
    server = await world.exchanger({"RCPT": [LATER] * 260})
    quick = RetryPolicy(base_delay=MINUTE, factor=1, jitter=0, lifetime=timedelta(days=30))
    async with world.sent(A, retry=quick) as mail:
        assert await mail.completed() == {A: delivered(attempts=261)}
    assert server.received == 1


async def test_a_mail_asked_for_twice_is_attempted_once(world):
    """A refresh and a message to the worker could both queue one id, which burnt an attempt."""
    server = await world.exchanger({"RCPT": [LATER, None]})
    async with world.mailer() as mailer:
        mail = await world.send(mailer, A)
        await mail.attempted()
        await asyncio.gather(*(mailer.retry_now(mail.message_id) for _ in range(5)))

        assert await mail.completed() == {A: delivered(attempts=2)}
        await anyio.wait_all_tasks_blocked()
        assert len(await mail.attempts()) == 2
    assert server.received == 1


async def test_two_mailers_over_one_file_send_each_mail_once(world, tmp_path):
    """Two processes with one storage both sent."""
    server = await world.exchanger()
    path = tmp_path / "mail.db"
    async with (
        world.mailer(storage=SQLiteStorage(path)) as first,
        world.mailer(storage=SQLiteStorage(path)) as second,
    ):
        for number in range(20):
            await world.send(first if number % 2 else second, A)
        await server.wait_for_messages(20)
        for status in await first.query_recent():
            await first.wait(status.message_id)
        await anyio.wait_all_tasks_blocked()

    assert server.received == len({message.email["Message-ID"] for message in server.messages}) == 20


async def test_sessions_are_used_again(world):
    """Every message had a connection and a handshake of its own."""
    server = await world.exchanger()
    async with world.mailer(limits={"connections_per_host": 1}) as mailer:
        await every([await world.send(mailer, A) for _ in range(5)])

    assert (server.received, server.connections) == (5, 1)


# Its results.


async def test_a_recipient_keeps_its_own_result_when_others_try_the_next_exchanger(world):
    """The worst one: what a shared exchanger said of one recipient was written over those already delivered."""
    first, second = await world.exchangers({f"RCPT TO:<{B}>": LATER}, {"RCPT": "550 5.1.1 no such person"})
    async with world.sent(A, B) as mail:
        seen = await mail.attempted()
        assert seen[A] == delivered()
        first.script["greeting"] = "421 4.3.2 down"
        await first.disconnect()
        seen = await mail.attempted_again()

    assert seen == {A: delivered(), B: failed("smtp", "5.1.1", 550, attempts=2)}
    assert first.received == 1
    assert second.messages == []


async def test_a_later_success_does_not_repair_an_earlier_failure(world):
    """A 250 for others turned an earlier 550 into "delivered"."""
    await world.exchanger({f"RCPT TO:<{A}>": "550 5.1.1 no such person", f"RCPT TO:<{B}>": [LATER, None]})
    async with world.sent(A, B) as mail:
        assert await mail.completed() == {A: failed("smtp", "5.1.1", 550), B: delivered(attempts=2)}


@pytest.mark.parametrize(
    ("reply", "seen"),
    [("550 5.1.1 no such person", failed("smtp", "5.1.1", 550)), ("450 4.2.1 full", deferred("smtp", "4.2.1", 450))],
)
async def test_one_bad_recipient_does_not_sink_the_others(world, reply, seen):
    """The first refused RCPT ended the transaction for all."""
    server = await world.exchanger({f"RCPT TO:<{A}>": reply})
    async with world.sent(A, B) as mail:
        assert await mail.attempted() == {A: seen, B: delivered()}
    assert [message.recipients for message in server.messages] == [(B,)]


async def test_a_backup_exchanger_that_takes_the_mail_completes_it(world):
    """The message stayed incomplete for another empty pass, because the first exchanger had deferred."""
    await world.exchangers({"greeting": "421 4.3.2 busy"}, None)
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}
        assert (await mail.status()).completed


async def test_a_status_without_recipients_has_not_succeeded(world):
    """It was vacuously a success."""
    status = MessageStatus(message_id="1@example.org", queued_at=world.clock.now(), recipients=())

    assert not status.succeeded


# Its hosts.


async def test_exchangers_are_looked_up_again(world):
    """They were looked up once in a message's life."""
    old = await world.exchanger({"greeting": "421 4.3.2 moved"})
    async with world.sent(A) as mail:
        await mail.attempted()
        new = await world.internet.exchanger("new.example.net")
        world.internet.domain(DOMAIN, mx=["new.example.net"])

        assert await mail.completed() == {A: delivered(attempts=2)}
    assert (old.received, new.received) == (0, 1)


async def test_trouble_with_dns_does_not_lead_to_the_web_server(world):
    """Any resolver error meant "no MX", so that mail went to the domain's own address, and stayed there."""
    exchanger = await world.exchanger()
    web = await world.internet.exchanger(DOMAIN)
    world.internet.dns.records[DOMAIN] = {"MX": Fault.SERVFAIL, "A": [web.host]}
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: deferred("dns", "4.4.3")}
        world.internet.domain(DOMAIN, mx=[f"mx1.{DOMAIN}"])

        assert await mail.completed() == {A: delivered(attempts=2)}
    assert (web.connections, exchanger.received) == (0, 1)


async def test_a_null_mx_is_told_as_what_it_is(world):
    """It failed by accident, with a text of no use."""
    world.internet.domain(DOMAIN, mx=["."])
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: failed("dns", "5.1.10")}
        assert "takes no mail" in (await mail.result()).reason


async def test_all_addresses_of_a_host_are_tried(world):
    """Only the first address was."""
    exchanger = await world.exchanger()
    world.internet.dns.records[f"mx1.{DOMAIN}"] = {"A": ["127.0.7.7", "127.0.8.8", exchanger.host]}
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}


@pytest.mark.parametrize("second_is_up", [True, False])
async def test_a_host_that_can_not_be_looked_up_stops_nothing(world, second_is_up):
    """A failed lookup, even a temporary one, was final, and the other exchangers were not tried."""
    await world.exchangers(None, None)
    world.internet.dns.records[f"mx1.{DOMAIN}"] = Fault.SERVFAIL
    if not second_is_up:
        world.internet.dns.records[f"mx2.{DOMAIN}"] = Fault.SERVFAIL
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered() if second_is_up else deferred("dns", "4.4.3")}


async def test_an_address_literal_is_refused_before_it_is_queued(world):
    """`user@[192.0.2.1]` was accepted, and failed only when it was sent."""
    async with world.mailer() as mailer:
        with pytest.raises(InvalidEmail, match=r"bracketed IP address"):
            await mailer.send_email(Email(from_="a@example.org", to="ada@[192.0.2.1]", text="Hello"))


# Its interface.


async def test_an_address_named_twice_gets_one_copy(world):
    """Only neighbours that were equal to the letter were one: To and Cc gave two RCPTs."""
    server = await world.exchanger()
    email = Email(
        from_="a@example.org",
        to=f"Ada <{A}>, b@example.net",
        cc=A.replace(DOMAIN, DOMAIN.upper()),
        bcc=f'"A. L." <{A}>',
        text="Hello",
    )
    async with world.sent(email=email) as mail:
        assert set(await mail.completed()) == {A, B}
    assert server.messages[0].recipients == (A, B)


@pytest.mark.parametrize(
    ("fields", "sender"),
    [
        ({"from_": "Ada Lovelace <ada@example.org>"}, "ada@example.org"),
        ({"from_": ["Ada <ada@example.org>", "grace@example.org"], "sender": "s@example.org"}, "s@example.org"),
        ({"from_": "ada@example.org", "sender": "Secretary <s@example.org>"}, "s@example.org"),
    ],
    ids=["a name", "several authors", "a sender"],
)
async def test_the_envelope_sender_is_an_address(world, fields, sender):
    """The From field was printed whole, so that one with a display name was refused."""
    server = await world.exchanger()
    async with world.sent(email=Email(to=A, text="Hello", **fields)) as mail:
        await mail.completed()
    assert server.messages[0].sender == sender


@pytest.mark.parametrize("address", ["two words@localhost", "@localhost", "a@b@localhost", "a b@x.localhost"])
async def test_nothing_passes_because_it_ends_in_localhost(world, address):
    """Whatever ended in "localhost" was taken for an address."""
    async with world.mailer() as mailer:
        with pytest.raises(InvalidEmail):
            await mailer.send_email(Email(from_="a@example.org", to=address, text="Hello"))


async def test_names_of_domains_may_be_in_any_script(world):
    """There was no IDN."""
    server = await world.internet.exchanger("mx.xn--mller-kva.example.com")
    world.internet.domain("xn--mller-kva.example.com", mx=["mx.xn--mller-kva.example.com"])
    async with world.sent("ada@müller.example.com") as mail:
        assert await mail.completed() == {"ada@xn--mller-kva.example.com": delivered()}
    assert server.messages[0].recipients == ("ada@xn--mller-kva.example.com",)


async def test_a_known_message_id_overwrites_nothing(world):
    """The stored mail was replaced, its state reset, and sent again."""
    server = await world.exchanger()
    email = Email(from_="a@example.org", to=A, text="Hello", message_id="1@example.org")
    async with world.sent(email=email) as mail:
        await mail.completed()
        before = await mail.status()
        with pytest.raises(AlreadyQueued):
            await mail.mailer.send_email(email.model_copy(update={"text": "Other"}))
        await anyio.wait_all_tasks_blocked()

        assert await mail.status() == before
    assert server.received == 1


async def test_a_mailer_that_is_not_running_stores_nothing(world):
    """With a dead worker it stored the mail and then told the caller that it had failed."""
    storage = MemoryStorage()
    mailer = Mailstrom(Config(helo_name="a.example.org"), storage, clock=world.clock)
    with pytest.raises(MailerStateError):
        await mailer.send_email(Email(from_="a@example.org", to=A, text="Hello"))

    assert repr(storage) == "<MemoryStorage [0 messages, 0 unfinished]>"


async def test_bodies_are_not_kept_for_ever(world):
    """The memory store never forgot anything."""
    await world.exchanger()
    async with world.sent(A) as mail:
        await mail.completed()
        with pytest.raises(MessageNotFound):
            await mail.mailer.query_prepared(mail.message_id)
        world.clock.advance(HOUR)
        assert await mail.mailer.purge(world.clock.now()) == 1
        assert "0 messages" in repr(mail.mailer._storage)


async def test_asking_for_recent_ones_takes_nothing_away(world):
    """Reading was destructive: a crash after the call lost the news."""
    await world.exchanger()
    async with world.sent(A) as mail:
        begin = world.clock.now()
        await mail.completed()
        answers = [await mail.mailer.query_recent(since=begin) for _ in range(3)]

    assert answers[0] == answers[1] == answers[2]
    assert [status.message_id for status in answers[0]] == [mail.message_id]


def test_a_demand_for_tls_is_not_ignored_at_a_relay():
    """`require_tls` did nothing if the relay's own setting was without."""
    for tls in ("encrypt", "verify"):
        with pytest.raises(ValueError, match="contradict"):
            Config(
                helo_name="a.example.org",
                tls=tls,
                delivery=RelayDelivery(host="relay.example.com", security="none"),
            )


def test_the_name_of_this_host_has_no_default():
    """It was "localhost", which hurts delivery and makes bad Message-IDs."""
    with pytest.raises(ValueError, match="helo_name"):
        Config()
