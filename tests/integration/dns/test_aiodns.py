"""The resolver, against a nameserver that may do anything."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address

import pytest

from mailstrom_async import ResolutionFailed, ResolverError
from mailstrom_async.dns import MX, AddressAnswer, AiodnsResolver, MXAnswer
from mailstrom_async.dns import aiodns as module
from mailstrom_async.dns.aiodns import LONGEST_TTL, MOST_ALIASES, NEGATIVE_TTL, end_of_chain
from mailstrom_async.testing import DNSServer, Fault, Gate, InTurn, Late, Records, Truncated

FOUR, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")
NOW = timedelta(0)


# Answers.


async def test_mx_records_are_found(server, resolver):
    """Hosts in lower case without a final dot."""
    server.records["example.net"] = {"MX": ["20 B.example.net.", "10 a.example.net"]}
    answer = await resolver.mx("Example.NET.")

    assert sorted(answer.records) == [MX(10, "a.example.net"), MX(20, "b.example.net")]
    assert (answer.exists, answer.ttl) == (True, NOW)


async def test_a_null_mx_is_a_record(server, resolver):
    """Row B7: its host is the root, ""."""
    server.records["example.net"] = {"MX": ["0 ."]}

    assert (await resolver.mx("example.net")).records == (MX(0, ""),)


async def test_addresses_of_both_families_are_found(server, resolver):
    """In one answer."""
    server.records["mx.example.net"] = {"A": [str(FOUR)], "AAAA": [str(SIX)]}

    assert await resolver.addresses("mx.example.net") == AddressAnswer((FOUR, SIX), True, NOW)


async def test_no_records_and_no_name_are_told_apart(server, resolver):
    """NODATA, also of a name that only has names below it, and NXDOMAIN."""
    server.records["host.below.example.net"] = {"TXT": ["x"]}

    assert await resolver.mx("host.below.example.net") == MXAnswer((), True, NEGATIVE_TTL)
    assert await resolver.mx("below.example.net") == MXAnswer((), True, NEGATIVE_TTL)
    assert await resolver.mx("missing.example.net") == MXAnswer((), False, NEGATIVE_TTL)
    assert await resolver.addresses("below.example.net") == AddressAnswer((), True, NEGATIVE_TTL)
    assert await resolver.addresses("missing.example.net") == AddressAnswer((), False, NEGATIVE_TTL)


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".example", ".".join(["a" * 63] * 5), "hidden.onion"])
async def test_what_can_be_no_name_does_not_exist(server, resolver, name):
    """Nobody is asked."""
    assert not (await resolver.mx(name)).exists
    assert server.queries == []


async def test_a_hundred_records_come_over_tcp(server, resolver):
    """Row B16."""
    server.records["example.net"] = {"MX": [f"{number} mx{number}.example.net" for number in range(100)]}

    assert len((await resolver.mx("example.net")).records) == 100
    assert [question.protocol for question in server.queries] == ["UDP", "TCP"]


# TTLs.


async def test_the_shortest_ttl_counts(server, resolver):
    """Of all records, also of the CNAME on the way."""
    server.records["alias.example.net"] = {"CNAME": ["example.net"]}
    server.records["example.net"] = {"MX": Records("10 a.example.net", ttl=300)}
    server.ttl = 30
    assert (await resolver.mx("alias.example.net")).ttl == timedelta(seconds=30)

    server.records["mx.example.net"] = {"A": Records(str(FOUR), ttl=50), "AAAA": Records(str(SIX), ttl=40)}
    assert (await resolver.addresses("mx.example.net")).ttl == timedelta(seconds=40)

    server.records["four.example.net"] = {"A": Records(str(FOUR), ttl=3600)}
    assert (await resolver.addresses("four.example.net")).ttl == timedelta(hours=1)


@pytest.mark.parametrize("ttl", [86401, 2**31 - 1])
async def test_no_ttl_is_longer_than_a_day(server, resolver, ttl):
    """Row B20."""
    server.records["example.net"] = {"MX": Records("10 a.example.net", ttl=ttl)}

    assert (await resolver.mx("example.net")).ttl == LONGEST_TTL


async def test_no_records_are_not_believed_for_long(server, resolver):
    """c-ares would hold to that for an hour, whatever the zone says; with a new channel it is asked again."""
    server.records["example.net"] = {"TXT": ["x"]}
    assert (await resolver.mx("example.net")).records == ()
    server.records["example.net"] = {"MX": ["10 mx.example.net"]}
    assert (await resolver.mx("example.net")).records == ()

    resolver._channel.fresh_until = 0
    assert (await resolver.mx("example.net")).records == (MX(10, "mx.example.net"),)


async def test_lookups_outlive_the_renewal_of_the_channel(server, resolver):
    """The last of them closes the old one."""
    gate = Gate()
    server.records["slow.example.net"] = {"MX": Late(gate, ["10 mx.example.net"])}
    slow = asyncio.create_task(resolver.mx("slow.example.net"))
    await gate.reached()
    old = resolver._channel
    old.fresh_until = 0
    assert not (await resolver.mx("missing.example.net")).exists
    assert resolver._channel is not old
    gate.open()

    assert (await slow).records == (MX(10, "mx.example.net"),)
    assert resolver._retired == set()


async def test_a_channel_that_can_not_be_renewed_serves_on(server, resolver, monkeypatch):
    """Such as when there are no file descriptors left."""

    def fail(*args, **options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module.aiodns, "DNSResolver", fail)
    resolver._channel.fresh_until = 0

    assert not (await resolver.mx("missing.example.net")).exists


# Aliases.


@pytest.mark.parametrize("follow", [True, False])
async def test_aliases_are_followed(server, resolver, follow):
    """By the nameserver, or by us if it leaves it to us."""
    server.follow = follow
    server.records["a.example.net"] = {"CNAME": ["b.example.net"]}
    server.records["b.example.net"] = {"CNAME": ["c.example.net"]}
    server.records["c.example.net"] = {"MX": ["10 mx.example.net"], "A": [str(FOUR)]}

    assert (await resolver.mx("a.example.net")).records == (MX(10, "mx.example.net"),)
    assert (await resolver.addresses("a.example.net")).addresses == (FOUR,)


@pytest.mark.parametrize("follow", [True, False])
async def test_an_alias_of_nothing_does_not_exist(server, resolver, follow):
    """RFC 6604: the response code is about the last name. One of a name without such records has none either."""
    server.follow = follow
    server.records["a.example.net"] = {"CNAME": ["missing.example.net"]}
    server.records["b.example.net"] = {"CNAME": ["text.example.net"]}
    server.records["text.example.net"] = {"TXT": ["x"]}

    assert not (await resolver.mx("a.example.net")).exists
    assert await resolver.mx("b.example.net") == MXAnswer((), True, NOW)


@pytest.mark.parametrize("follow", [True, False])
async def test_an_alias_of_a_sick_name_is_not_known_now(server, resolver, follow):
    """SERVFAIL at the end of the chain."""
    server.follow = follow
    server.records["a.example.net"] = {"CNAME": ["sick.example.net"]}
    server.records["sick.example.net"] = Fault.SERVFAIL

    with pytest.raises(ResolutionFailed):
        await resolver.mx("a.example.net")


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("length", [1, 2, 5])
async def test_aliases_in_a_circle_are_not_known_now(server, resolver, follow, length):
    """Row B11: bounded, and no verdict on the name."""
    server.follow = follow
    for number in range(length):
        server.records[f"c{number}.example.net"] = {"CNAME": [f"c{(number + 1) % length}.example.net"]}

    with pytest.raises(ResolutionFailed, match="circle"):
        await resolver.mx("c0.example.net")
    assert len(server.queries) <= length


def test_a_chain_is_followed_to_its_end_but_not_for_ever():
    """Row B11: up to ten CNAMEs."""
    chain = {f"n{number}": f"n{number + 1}" for number in range(MOST_ALIASES)}

    assert end_of_chain("n0", chain) == f"n{MOST_ALIASES}"
    assert end_of_chain("other", chain) == "other"
    with pytest.raises(ResolutionFailed, match="more than 10"):
        end_of_chain("n0", {**chain, f"n{MOST_ALIASES}": "one too many"})


# Trouble.


@pytest.mark.parametrize(
    "fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.NOTIMP, Fault.FORMERR, Fault.GARBAGE, Fault.SHORT]
)
async def test_errors_are_no_answers(server, resolver, fault):
    """Rows B4, B6, B26: temporary, and the domain's trouble rather than the resolver's."""
    server.records["example.net"] = fault

    with pytest.raises(ResolutionFailed, match=r"example\.net MX") as caught:
        await resolver.mx("example.net")
    assert caught.value.answered
    with pytest.raises(ResolutionFailed):
        await resolver.addresses("example.net")


@pytest.mark.parametrize("answer", [Fault.MUTE, Fault.WRONG_ID, Fault.WRONG_QUESTION, Truncated(Fault.MUTE)])
async def test_waiting_has_an_end(server, hurried, answer):
    """Rows B5, B24, B26: within the time that was set."""
    server.records["example.net"] = {"MX": answer}

    with pytest.raises(ResolutionFailed) as caught:
        await hurried.mx("example.net")
    assert not caught.value.answered


async def test_a_nameserver_that_recovers_between_two_questions(server, resolver):
    """Row B25: asked again within the same lookup."""
    server.records["example.net"] = {"MX": InTurn(Fault.SERVFAIL, ["10 mx.example.net"])}

    assert (await resolver.mx("example.net")).records == (MX(10, "mx.example.net"),)


async def test_a_nameserver_that_stalls_is_asked_until_the_time_is_over(server, resolver):
    """Rows B5, B25: c-ares expects of one that was fast until now that it stays so, and would give up after three."""
    for number in range(3):
        await resolver.mx(f"missing{number}.example.net")
    server.records["example.net"] = {"MX": InTurn(*[Fault.MUTE] * 4, ["10 mx.example.net"])}

    assert (await resolver.mx("example.net")).records == (MX(10, "mx.example.net"),)


@pytest.mark.parametrize(("sick", "well", "address"), [("AAAA", "A", FOUR), ("A", "AAAA", SIX)])
async def test_one_family_is_enough(server, resolver, sick, well, address):
    """The other can't be looked up now."""
    server.records["mx.example.net"] = {sick: Fault.SERVFAIL, well: [str(address)]}

    assert (await resolver.addresses("mx.example.net")).addresses == (address,)


@pytest.mark.parametrize(("sick", "well"), [("AAAA", "A"), ("A", "AAAA")])
async def test_no_address_in_one_family_says_nothing_of_the_other(server, resolver, sick, well):
    """None in one, and the other can't be looked up now: it may have some."""
    server.records["mx.example.net"] = {sick: Fault.SERVFAIL, well: []}

    with pytest.raises(ResolutionFailed):
        await resolver.addresses("mx.example.net")


async def test_a_nameserver_that_is_not_there_gives_no_answer(open_resolver):
    """Row B31: other names fare no better."""
    async with DNSServer() as closed:
        pass
    resolver = await open_resolver(closed.address)
    with pytest.raises(ResolutionFailed) as caught:
        await resolver.mx("example.net")

    assert not caught.value.answered


async def test_another_nameserver_is_asked_if_the_first_is_not_there(server, open_resolver):
    """Several may be given."""
    server.records["example.net"] = {"MX": ["10 mx.example.net"]}
    async with DNSServer() as closed:
        pass
    resolver = await open_resolver(closed.address, server.address)

    assert (await resolver.mx("example.net")).records == (MX(10, "mx.example.net"),)


async def test_a_nameserver_may_be_reached_by_ipv6(open_resolver):
    """Written as "[::1]:5353"."""
    async with DNSServer({"example.net": {"MX": ["10 mx.example.net"]}}, host="::1") as server:
        resolver = await open_resolver(server.address)

        assert (await resolver.mx("example.net")).records == (MX(10, "mx.example.net"),)


# Life.


async def test_nameservers_that_are_none_are_refused():
    """With what to do."""
    resolver = AiodnsResolver(["nonsense"], timeout=timedelta(seconds=1))

    with pytest.raises(ResolverError, match=r"nonsense.*set nameservers"):
        await resolver.open()


async def test_a_resolver_that_is_not_open_answers_nothing():
    """Before, and after."""
    resolver = AiodnsResolver(["127.0.0.1"], timeout=timedelta(seconds=1))
    with pytest.raises(ResolutionFailed, match="not open"):
        await resolver.mx("example.net")
    await resolver.open()
    await resolver.aclose()
    await resolver.aclose()

    with pytest.raises(ResolutionFailed, match="not open"):
        await resolver.addresses("example.net")


async def test_closing_ends_the_lookups_under_way(server, resolver, caplog):
    """Also those of a channel that was renewed meanwhile; nothing is left to complain later."""
    gates = [Gate(), Gate()]
    server.records["slow0.example.net"] = {"MX": Late(gates[0], [])}
    server.records["slow1.example.net"] = {"MX": Late(gates[1], [])}
    lookups = []
    for number, gate in enumerate(gates):
        lookups.append(asyncio.create_task(resolver.mx(f"slow{number}.example.net")))
        await gate.reached()
        resolver._channel.fresh_until = 0
    await resolver.aclose()

    for lookup in lookups:
        with pytest.raises(ResolutionFailed, match=r"(?i)cancel"):
            await lookup
    assert caplog.records == []


async def test_closing_ends_a_lookup_that_pauses_before_it_asks_again(server, resolver, monkeypatch):
    """It is no lookup of the nameserver's trouble any more, and no error of the library below."""
    server.records["example.net"] = {"MX": Fault.MUTE}
    paused = asyncio.Event()
    turn = resolver._turns.turn

    @asynccontextmanager
    async def noted():
        try:
            async with turn():
                yield
        finally:
            paused.set()

    for number in range(3):
        await resolver.mx(f"missing{number}.example.net")
    monkeypatch.setattr(resolver._turns, "turn", noted)
    lookup = asyncio.create_task(resolver.mx("example.net"))
    await paused.wait()
    await resolver.aclose()

    with pytest.raises(ResolutionFailed, match="closed meanwhile"):
        await lookup


async def test_cancelled_lookups_leave_nothing_behind(server, resolver, caplog):
    """A hundred at once; the resolver goes on."""
    gate = Gate()
    server.records["slow.example.net"] = {"MX": Late(gate, ["10 mx.example.net"])}
    lookups = [asyncio.create_task(resolver.mx("slow.example.net")) for _ in range(100)]
    await gate.reached()
    for lookup in lookups:
        lookup.cancel()
    await asyncio.wait(lookups)
    gate.open()

    assert all(lookup.cancelled() for lookup in lookups)
    assert (await resolver.mx("slow.example.net")).records == (MX(10, "mx.example.net"),)
    assert resolver._channel.lookups == 0
    assert caplog.records == []
