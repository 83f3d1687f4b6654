"""Rows B1 to B28 and B31 of the delivery rules: what DNS may answer, and what becomes of the mail then.

Each is seen from outside: a mailer, a nameserver and mail exchangers on loopback, and a clock that the test moves.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from mailstrom_async import DirectDelivery, InvalidEmail, Mailstrom, RelayDelivery, Timeouts, WorkerStatusChanged
from mailstrom_async.testing import DNSServer, Fault, Forged, Gate, InTurn, Late, Question, Truncated

from .dns_world import DELIVERED, NOT_RESOLVED, PATIENCE, PROHIBITED, DNSWorld, ForeverResolver, email

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[DNSWorld]:
    """An internet with one exchanger, mx.example.net, that takes everything."""
    async with DNSWorld(lambda seen: request.node.user_properties.append(("seen", seen))) as world:
        await world.exchanger("mx.example.net")
        yield world


@pytest.mark.rule("B1", "F 5.1.2, no connection")
async def test_a_domain_that_does_not_exist_fails(world):
    """Row B1: NXDOMAIN."""
    assert await world.result("ada@missing.example.com") == "F dns 5.1.2"
    assert world.dns.asked("missing.example.com") == 1
    assert world.connections == 0


@pytest.mark.rule("B2", "implicit MX, V")
@pytest.mark.parametrize("ipv6", [False, True])
async def test_a_domain_without_mx_is_its_own_exchanger(world, ipv6):
    """Row B2: no MX records, but an A or AAAA record (RFC 5321 section 5.1)."""
    exchanger = await world.exchanger("example.com", ipv6=ipv6)
    assert await world.result("ada@example.com") == DELIVERED
    assert exchanger.received == 1


@pytest.mark.rule("B3", "F 5.1.2")
async def test_a_domain_without_mx_and_address_fails(world):
    """Row B3: the name exists, but neither MX nor A nor AAAA records."""
    world.dns.records["example.com"] = {"TXT": ['"not for mail"']}
    assert await world.result("ada@example.com") == "F dns 5.1.2"


@pytest.mark.rule("B4", "D 4.4.3, no fallback to A")
async def test_trouble_with_mx_is_not_the_lack_of_it(world):
    """Row B4: SERVFAIL for MX, though an exchanger listens at the domain's own address."""
    exchanger = await world.exchanger("example.com")
    world.dns.records["example.com"] = {"MX": Fault.SERVFAIL, "A": [exchanger.host]}
    assert await world.result("ada@example.com") == NOT_RESOLVED
    assert world.connections == 0
    assert world.dns.asked("example.com", "A") == 0


@pytest.mark.rule("B5", "D 4.4.3 within the lookup budget; other domains not delayed")
async def test_a_mute_nameserver_defers(world):
    """Row B5: no answer within `Timeouts.dns`."""
    world.dns.records["example.com"] = Fault.MUTE
    world.domain("example.net", mx=["mx.example.net"])
    async with world.mailer(timeouts=Timeouts(dns=timedelta(seconds=1.5))) as mailer:
        mute = await mailer.send_email(email("ada@example.com"))
        healthy = await mailer.send_email(email())
        assert await world.completed(mailer, healthy) == DELIVERED
        assert (await mailer.query_status(mute)).recipients[0].attempts == 0

        assert await world.attempted(mailer, mute) == NOT_RESOLVED


@pytest.mark.rule("B6", "D")
@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.NOTIMP, Fault.FORMERR])
async def test_other_errors_of_the_nameserver_defer(world, fault):
    """Row B6."""
    world.dns.records["example.net"] = fault

    assert await world.result() == NOT_RESOLVED


@pytest.mark.rule("B7", "F 5.1.10, no connection, no A lookup")
async def test_a_null_mx_fails(world):
    """Row B7: RFC 7505."""
    exchanger = await world.exchanger("example.com")
    world.domain("example.com", mx=["."])
    assert await world.result("ada@example.com") == "F dns 5.1.10"
    assert exchanger.connections == 0
    assert {question.kind for question in world.dns.queries} == {"MX"}


@pytest.mark.rule("B8", '"." ignored, others used')
async def test_a_null_mx_beside_others_is_ignored(world):
    """Row B8."""
    world.domain("example.net", mx=["0 .", "10 mx.example.net"])

    assert await world.result() == DELIVERED


@pytest.mark.rule("B9", "followed, V")
@pytest.mark.parametrize("follow", [True, False])
async def test_an_exchanger_may_be_an_alias(world, follow):
    """Row B9: the MX names a CNAME, which RFC 2181 section 10.3 forbids, and many do. The nameserver may leave it to
    us to follow it."""
    world.dns.follow = follow
    world.dns.records["alias.example.net"] = {"CNAME": ["mx.example.net"]}
    world.domain("example.net", mx=["alias.example.net"])

    assert await world.result() == DELIVERED


@pytest.mark.rule("B10", "MX of the target; envelope address unchanged")
@pytest.mark.parametrize("follow", [True, False])
async def test_a_domain_may_be_an_alias(world, follow):
    """Row B10: RFC 5321 section 5.1."""
    world.dns.follow = follow
    world.dns.records["alias.example.com"] = {"CNAME": ["example.net"]}
    world.domain("example.net", mx=["mx.example.net"])
    assert await world.result("ada@alias.example.com") == DELIVERED
    assert world.exchangers["mx.example.net"].messages[0].recipients == ("ada@alias.example.com",)


@pytest.mark.rule("B11", "bounded; D")
@pytest.mark.parametrize("follow", [True, False])
async def test_endless_aliases_defer(world, follow):
    """Row B11: a circle, and a chain of 12."""
    world.dns.follow = follow
    world.dns.records["circle.example.com"] = {"CNAME": ["back.example.com"]}
    world.dns.records["back.example.com"] = {"CNAME": ["circle.example.com"]}
    for number in range(12):
        world.dns.records[f"chain{number}.example.com"] = {"CNAME": [f"chain{number + 1}.example.com"]}
    world.dns.records["chain12.example.com"] = {"MX": ["10 mx.example.net"]}

    assert await world.result("ada@circle.example.com") == NOT_RESOLVED
    assert await world.result("ada@chain0.example.com") == NOT_RESOLVED
    assert await world.result("ada@chain2.example.com") == DELIVERED
    assert world.dns.asked("chain11.example.com", "MX") == (0 if follow else 1)  # by the mail that was delivered
    assert world.dns.asked("circle.example.com", "MX") == 1


INTERNAL = ["127.0.0.2", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"]
INTERNAL += ["::1", "::", "fd00::1", "fe80::1", "fec0::1"]
INTERNAL += ["::ffff:127.0.0.2", "::127.0.0.2", "64:ff9b::7f00:2", "2002:7f00:2::1"]  # IPv4 in disguise


@pytest.mark.rule("B12", "skipped after resolution; none left: F 5.4.6, no connection; a switch opens networks")
@pytest.mark.parametrize("address", INTERNAL)
async def test_internal_addresses_are_not_dialled(world, address):
    """Row B12: whoever owns a domain must not choose which of our internal hosts we talk to."""
    world.dns.records["evil.example.com"] = {"AAAA" if ":" in address else "A": [address]}
    world.domain("example.com", mx=["evil.example.com"])
    closed = DirectDelivery(port=world.delivery.port, nameservers=world.delivery.nameservers)
    assert await world.result("ada@example.com", delivery=closed) == PROHIBITED
    assert world.connections == 0


@pytest.mark.rule("B12", "skipped after resolution; none left: F 5.4.6, no connection; a switch opens networks")
async def test_internal_networks_can_be_opened(world):
    """Row B12: an internal address is skipped in favour of an allowed one; only what is named is opened."""
    trap = await world.exchanger("trap.example.net")
    mx = world.exchangers["mx.example.net"]
    world.dns.records["both.example.net"] = {"A": [trap.host, mx.host]}
    world.domain("example.net", mx=["both.example.net"])
    opened = world.delivery.model_copy(update={"allowed_networks": (f"{mx.host}/32",)})
    assert await world.result(delivery=opened) == DELIVERED
    assert trap.connections == 0


@pytest.mark.rule("B13", "the checked address is the one dialled")
async def test_a_rebound_name_is_not_looked_up_again(world):
    """Row B13: allowed when it is checked, internal were it asked for once more."""
    trap = await world.exchanger("trap.example.net")
    mx = world.exchangers["mx.example.net"]
    world.dns.records["rebound.example.net"] = {"A": InTurn([mx.host], [trap.host])}
    world.domain("example.net", mx=["rebound.example.net"])
    opened = world.delivery.model_copy(update={"allowed_networks": (f"{mx.host}/32",)})
    assert await world.result(delivery=opened) == DELIVERED
    assert world.dns.asked("rebound.example.net", "A") == 1
    assert trap.connections == 0


@pytest.mark.rule("B14", "skipped, never dialled as an IP; alone: F 5.4.4")
async def test_an_address_is_no_exchanger(world):
    """Row B14: alone it fails for good, like any MX without a host; the zone was read, and says so."""
    mx = world.exchangers["mx.example.net"]
    world.domain("alone.example.com", mx=[f"10 {mx.host}"])
    assert await world.result("ada@alone.example.com") == "F dns 5.4.4"
    assert mx.connections == 0

    trap = await world.exchanger("trap.example.net")
    world.domain("beside.example.com", mx=[f"10 {trap.host}", "20 mx.example.net"])

    assert await world.result("ada@beside.example.com") == DELIVERED
    assert trap.connections == 0


@pytest.mark.rule("B15", "we and what is worse are ignored; none left: F 5.4.6")
async def test_we_are_no_exchanger(world):
    """Row B15: known by our HELO name, or by our address if that is a literal."""
    us = await world.exchanger("app.example.org")
    world.domain("circle.example.com", mx=["10 app.example.org", "20 mx.example.net"])
    assert await world.result("ada@circle.example.com") == PROHIBITED
    assert await world.result("ada@app.example.org") == PROHIBITED
    assert await world.result("ada@circle.example.com", helo_name=f"[{us.host}]") == PROHIBITED
    assert world.connections == 0

    world.down("better.example.net")
    world.domain("example.net", mx=["10 better.example.net", "20 APP.example.org", "30 mx.example.net"])

    assert await world.result() == "D network 4.4.1"
    assert world.connections == 0


@pytest.mark.rule("B16", "works; at most 10 hosts in an attempt, total time bounded")
async def test_a_hundred_exchangers(world):
    """Row B16: the answer needs TCP; of the hosts ten are looked up, and `hosts_per_attempt` addresses dialled."""
    names = [f"mx{number}.example.com" for number in range(100)]
    for name in names:
        world.down(name)
    world.domain("example.com", mx=[f"10 {name}" for name in names])
    limits = {"hosts_per_attempt": 100}
    async with world.mailer(limits=limits) as mailer:
        message_id = await mailer.send_email(email("ada@example.com"))
        assert await world.attempted(mailer, message_id) == "D network 4.4.1"
        (attempt,) = await mailer.query_attempts(message_id)

    asked = {question.name for question in world.dns.queries if question.kind == "A"}
    assert len(asked) == 10
    assert sum(any(name in line for line in attempt.transcript) for name in names) == 10
    assert [question.protocol for question in world.dns.queries if question.name == "example.com"] == ["UDP", "TCP"]

    world.domain("example.com", mx=["5 mx.example.net", *(f"10 {name}" for name in names)])
    assert await world.result("ada@example.com") == DELIVERED


@pytest.mark.rule("B17", "spread: of 200 messages each takes 70 to 130; the other is tried on failure")
async def test_equals_share_the_load(world):
    """Row B17: RFC 5321 section 5.1."""
    exchangers = [await world.exchanger("a.example.net"), await world.exchanger("b.example.net")]
    world.domain("example.net", mx=["10 a.example.net", "10 b.example.net"])
    async with world.mailer() as mailer:
        for message_id in await mailer.send_emails([email() for _ in range(200)]):
            await world.completed(mailer, message_id)
    taken = [exchanger.received for exchanger in exchangers]
    assert sum(taken) == 200
    assert all(70 <= count <= 130 for count in taken)

    exchangers[0].script["greeting"] = "421 4.3.2 not now"
    assert {await world.result() for _ in range(8)} == {DELIVERED}


@pytest.mark.rule("B18", "the good one used")
async def test_an_exchanger_that_does_not_exist_is_passed_over(world):
    """Row B18."""
    world.domain("example.net", mx=["missing.example.net", "mx.example.net"])

    assert await world.result() == DELIVERED


@pytest.mark.rule("B19", "F 5.4.4; SERVFAIL for any: D")
async def test_no_exchanger_exists(world):
    """Row B19: final as in Postfix, since DNS answered for every host; but only if it did."""
    world.domain("example.net", mx=["missing1.example.net", "missing2.example.net"])
    assert await world.result() == "F dns 5.4.4"

    world.dns.records["missing2.example.net"] = Fault.SERVFAIL
    assert await world.result() == NOT_RESOLVED


@pytest.mark.rule("B20", "0: not beyond the attempt; huge: at most a day; a moved MX is followed")
async def test_an_answer_without_a_lifetime_is_asked_for_again(world):
    """Row B20: TTL 0; the exchanger has moved when the mail is tried again."""
    moved = await world.exchanger("moved.example.net")
    world.exchangers["mx.example.net"].script["RCPT"] = "450 4.2.1 I am leaving"
    world.domain("example.net", mx=["mx.example.net"])
    async with world.mailer() as mailer:
        message_id = await mailer.send_email(email())
        assert await world.attempted(mailer, message_id) == "D smtp 4.2.1"
        world.domain("example.net", mx=["moved.example.net"])
        world.clock.advance(HOUR)

        assert await world.completed(mailer, message_id) == "V (2)"
    assert moved.received == 1


@pytest.mark.rule("B20", "0: not beyond the attempt; huge: at most a day; a moved MX is followed")
async def test_an_answer_for_ever_holds_for_a_day(world):
    """Row B20: TTL 2^31-1."""
    resolver = ForeverResolver()
    async with world.mailer(resolver=resolver) as mailer:
        for wait, questions in [(timedelta(0), 1), (DAY - MINUTE, 1), (MINUTE, 2)]:
            world.clock.advance(wait)
            assert await world.completed(mailer, await mailer.send_email(email())) == DELIVERED
            assert resolver.asked.count("example.net") == questions


@pytest.mark.rule("B21", "retry uses the new host")
async def test_a_retry_finds_the_new_exchangers(world):
    """Row B21: the old one was down, and is not even in the records any more."""
    world.down("old.example.net")
    world.domain("example.net", mx=["old.example.net"])
    async with world.mailer() as mailer:
        message_id = await mailer.send_email(email())
        assert await world.attempted(mailer, message_id) == "D network 4.4.1"
        world.domain("example.net", mx=["mx.example.net"])
        world.clock.advance(HOUR)

        assert await world.completed(mailer, message_id) == "V (2)"


@pytest.mark.rule("B22", "looked up as A-label, V; an invalid one refused by send()")
async def test_international_domains(world):
    """Row B22: RFC 5890."""
    world.domain("xn--bcher-kva.example.net", mx=["mx.example.net"])
    assert await world.result("ada@bücher.example.net") == DELIVERED
    assert world.dns.asked("xn--bcher-kva.example.net", "MX") == 1

    async with world.mailer() as mailer:
        for bad in ("ada@xn--a.example.net", "ada@bü\u0000cher.example.net", "ada@-x.example.net"):
            with pytest.raises(InvalidEmail):
                await mailer.send_email(email(bad))


@pytest.mark.rule("B23", "V over ::1; falls to v4 in the same attempt")
async def test_both_address_families_are_tried(world):
    """Row B23."""
    world.dns.records["two.example.net"] = {"AAAA": ["::1"], "A": [world.exchangers["mx.example.net"].host]}
    world.domain("example.net", mx=["two.example.net"])
    assert await world.result() == DELIVERED

    six = await world.exchanger("six.example.net", ipv6=True)
    world.domain("example.com", mx=["six.example.net"])
    assert await world.result("ada@example.com") == DELIVERED
    assert six.received == 1


@pytest.mark.rule("B24", "D")
async def test_a_truncated_answer_that_never_comes_in_full_defers(world):
    """Row B24: TC=1, and then silence over TCP."""
    world.dns.records["example.net"] = {"MX": Truncated(Fault.MUTE)}
    assert await world.result(timeouts=Timeouts(dns=timedelta(seconds=0.4))) == NOT_RESOLVED
    assert Question("example.net", "MX", "TCP") in world.dns.queries


@pytest.mark.rule("B25", "V in the end; never F")
async def test_a_flapping_nameserver_only_delays(world):
    """Row B25: every second answer is SERVFAIL, and then whole attempts see nothing else."""
    world.dns.records["example.net"] = {"MX": InTurn(Fault.SERVFAIL, ["10 mx.example.net"])}
    assert await world.result() == DELIVERED

    # The resolver asks three times before it gives up.
    world.dns.records["example.net"] = {"MX": InTurn(*[Fault.SERVFAIL] * 3, ["10 mx.example.net"])}
    async with world.mailer() as mailer:
        message_id = await mailer.send_email(email())
        assert await world.attempted(mailer, message_id) == NOT_RESOLVED
        world.clock.advance(HOUR)

        assert await world.completed(mailer, message_id) == "V (2)"


@pytest.mark.rule("B26", "D; no crash, no poisoned cache")
@pytest.mark.parametrize("fault", [Fault.GARBAGE, Fault.SHORT, Fault.WRONG_ID, Fault.WRONG_QUESTION])
async def test_broken_answers_mean_nothing(world, fault):
    """Row B26: two of them say "no such domain", to another question or under another id."""
    world.dns.records["example.net"] = fault
    async with world.mailer(timeouts=Timeouts(dns=timedelta(seconds=1))) as mailer:
        message_id = await mailer.send_email(email())
        assert await world.attempted(mailer, message_id) == NOT_RESOLVED
        world.domain("example.net", mx=["mx.example.net"])
        world.clock.advance(HOUR)

        assert await world.completed(mailer, message_id) == "V (2)"


@pytest.mark.rule("B27", "true one used")
async def test_a_forged_answer_is_not_believed(world):
    """Row B27: it is there first, but does not know the id of the question."""
    trap = await world.exchanger("trap.example.net")
    world.dns.records["example.net"] = {"MX": Forged(["10 trap.example.net"], ["10 mx.example.net"])}

    assert await world.result() == DELIVERED
    assert trap.connections == 0


@pytest.mark.rule("B28", "others are not delayed")
async def test_a_slow_lookup_delays_nobody_else(world):
    """Row B28: fifty others are delivered while one domain's answer is held back."""
    gate = Gate()
    world.dns.records["slow.example.com"] = {"MX": Late(gate, ["10 mx.example.net"])}
    for number in range(50):
        world.domain(f"d{number}.example.net", mx=["mx.example.net"])
    async with world.mailer() as mailer:
        slow = await mailer.send_email(email("ada@slow.example.com"))
        await gate.reached()
        for message_id in await mailer.send_emails([email(f"ada@d{number}.example.net") for number in range(50)]):
            assert await world.completed(mailer, message_id) == DELIVERED
        assert (await mailer.query_status(slow)).recipients[0].attempts == 0
        gate.open()

        assert await world.completed(mailer, slow) == DELIVERED


@pytest.mark.rule("B31", "start and send() work; D; state degraded until it heals by itself")
async def test_a_resolver_that_is_down_at_the_start(world):
    """Row B31: the state says it before any mail does, and recovers without any."""
    async with DNSServer() as closed:
        pass
    world.domain("example.net", mx=["mx.example.net"])
    delivery = world.delivery.model_copy(update={"nameservers": (closed.address,)})
    async with world.mailer(delivery=delivery) as mailer:
        await until_state(mailer, "degraded")
        assert "resolver" in mailer.worker_status.reason
        message_id = await mailer.send_email(email())
        assert await world.attempted(mailer, message_id) == NOT_RESOLVED

        async with DNSServer(world.dns.records, port=closed.port):
            world.clock.advance(MINUTE)
            await until_state(mailer, "running")
            world.clock.advance(HOUR)
            assert await world.completed(mailer, message_id) == "V (2)"


async def until_state(mailer: Mailstrom, state: str) -> None:
    async with asyncio.timeout(PATIENCE.total_seconds()), mailer.events(WorkerStatusChanged) as changes:
        while mailer.worker_status.state != state:
            await anext(changes)


@pytest.mark.rule("D9", "if allowed: delivered there without DNS, subject to B12")
async def test_an_address_literal_is_delivered_there_where_it_is_allowed(world):
    """Row D9: RFC 5321 sections 4.1.3 and 5.1; the envelope and the header keep the literal."""
    exchanger = world.exchangers["mx.example.net"]
    async with world.mailer(allow_address_literals=True) as mailer:
        message_id = await mailer.send_email(email(f"Ada <ada@[{exchanger.host}]>"))
        assert await world.completed(mailer, message_id) == DELIVERED
        (recipient,) = (await mailer.query_status(message_id)).recipients

    (message,) = exchanger.messages
    assert (message.recipients, recipient.result.host) == ((f"ada@[{exchanger.host}]",), exchanger.host)
    assert message.email["To"] == f"Ada <ada@[{exchanger.host}]>"
    assert not [question for question in world.dns.queries if exchanger.host in question.name]


@pytest.mark.rule("D9", "if allowed: delivered there without DNS, subject to B12")
async def test_an_address_literal_of_ipv6_is_delivered_there(world):
    """Row D9: the other form."""
    exchanger = await world.exchanger("six.example.net", ipv6=True)

    assert await world.result(f"ada@[IPv6:{exchanger.host}]", allow_address_literals=True) == DELIVERED
    assert exchanger.received == 1


@pytest.mark.rule("D9", "if allowed: delivered there without DNS, subject to B12")
@pytest.mark.parametrize("literal", ["[10.0.0.1]", "[127.0.0.1]", "[169.254.169.254]", "[IPv6:::1]", "[IPv6:fe80::1]"])
async def test_an_address_literal_does_not_lead_into_private_networks(world, literal):
    """Rows D9, B12: nor to ourselves (row B15)."""
    closed = DirectDelivery(port=world.delivery.port, nameservers=world.delivery.nameservers)

    assert await world.result(f"ada@{literal}", delivery=closed, allow_address_literals=True) == PROHIBITED
    assert await world.result("ada@[9.9.9.9]", helo_name="[9.9.9.9]", allow_address_literals=True) == PROHIBITED
    assert world.connections == 0


@pytest.mark.rule("D9", "if allowed: a dotless name is looked up as any other")
async def test_a_dotless_domain_is_looked_up_where_it_is_allowed(world):
    """Row D9: by MX, or by its address; and localhost is this host, without a question (RFC 6761 section 6.3)."""
    world.domain("intranet", mx=["mx.example.net"])
    host = await world.exchanger("mailhost")

    assert await world.result("ada@intranet", allow_dotless_domains=True) == DELIVERED
    assert await world.result("ada@mailhost", allow_dotless_domains=True) == DELIVERED
    assert await world.result("ada@elsewhere", allow_dotless_domains=True) == "F dns 5.1.2"
    assert host.received == 1

    assert await world.result("root@localhost", allow_dotless_domains=True) == "D network 4.4.1"
    assert not world.dns.asked("localhost")


@pytest.mark.rule("D9", "if allowed: a relay gets it as it is")
@pytest.mark.parametrize("address", ["ada@[10.0.0.1]", "root@localhost"])
async def test_a_relay_gets_such_addresses_as_they_are(world, address):
    """Row D9: where it leads is the relay's affair."""
    exchanger = world.exchangers["mx.example.net"]
    relay = RelayDelivery(host=exchanger.host, port=exchanger.port, security="none")
    settings = {"allow_address_literals": True, "allow_dotless_domains": True}

    assert await world.result(address, delivery=relay, **settings) == DELIVERED
    assert exchanger.messages[0].recipients == (address,)
