"""The scripted nameserver, as another resolver's codecs see it."""

import asyncio
import socket

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from mailstrom_async.testing import DNSServer, Fault, Forged, Gate, InTurn, Late, Question, Records, Truncated

RECORDS = {
    "example.net": {"MX": ["10 mx.example.net", "20 mx2.example.net"], "TXT": ['"v=spf1 -all"']},
    "mx.example.net": {"A": ["127.0.0.1"], "AAAA": ["::1"]},
}


@pytest.fixture
async def server():
    """A nameserver with some records."""
    async with DNSServer(RECORDS) as server:
        yield server


async def ask(server, name, kind, *, tcp=False, timeout=10, **options) -> dns.message.Message:
    question = dns.message.make_query(name, kind, **options)
    query = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await query(question, server.host, timeout=timeout, port=server.port)


def texts(response):
    return sorted(record.to_text() for rrset in response.answer for record in rrset)


@pytest.mark.parametrize("tcp", [False, True])
async def test_records_are_answered(server, tcp):
    """Over UDP and TCP, on the same port."""
    assert texts(await ask(server, "example.net", "MX", tcp=tcp)) == ["10 mx.example.net.", "20 mx2.example.net."]
    assert texts(await ask(server, "EXAMPLE.net", "TXT", tcp=tcp)) == ['"v=spf1 -all"']
    assert texts(await ask(server, "mx.example.net", "AAAA", tcp=tcp)) == ["::1"]
    assert Question("example.net", "MX", "TCP" if tcp else "UDP") in server.queries
    assert server.asked("Example.net", "MX") == 1
    assert server.asked("example.net") == 2


async def test_what_is_not_there_is_said_with_a_lifetime(server):
    """RFC 2308: NODATA and NXDOMAIN come with an SOA record."""
    server.ttl = 30
    for name, rcode in [("mx.example.net", dns.rcode.NOERROR), ("missing.example.net", dns.rcode.NXDOMAIN)]:
        response = await ask(server, name, "MX")

        assert response.rcode() == rcode
        assert response.answer == []
        assert (response.authority[0].ttl, response.authority[0][0].minimum) == (30, 30)


async def test_records_may_be_changed(server):
    """From one question to the next."""
    server.records["example.net"] = {"MX": Records("0 .", ttl=77)}
    response = await ask(server, "example.net", "MX")
    assert (texts(response), response.answer[0].ttl) == (["0 ."], 77)
    del server.records["example.net"]
    assert (await ask(server, "xexample.net", "MX")).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED, Fault.NOTIMP, Fault.FORMERR])
async def test_response_codes(server, fault):
    """For all types of a name, or one."""
    server.records["example.net"] = fault
    server.records["mx.example.net"] = {"A": fault, "AAAA": ["::1"]}

    assert (await ask(server, "example.net", "MX")).rcode() == dns.rcode.from_text(fault.value)
    assert (await ask(server, "mx.example.net", "A")).rcode() == dns.rcode.from_text(fault.value)
    assert texts(await ask(server, "mx.example.net", "AAAA")) == ["::1"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Fault.MUTE, dns.exception.Timeout),
        (Fault.GARBAGE, dns.exception.DNSException),
        (Fault.SHORT, dns.exception.DNSException),
        (Fault.WRONG_ID, dns.query.BadResponse),
        (Fault.WRONG_QUESTION, dns.query.BadResponse),
    ],
)
@pytest.mark.parametrize("tcp", [False, True])
async def test_what_is_no_answer(server, answer, error, tcp):
    """Another resolver does not take it for one."""
    server.records["example.net"] = answer

    with pytest.raises(error):
        await ask(server, "example.net", "MX", tcp=tcp, timeout=0.2 if answer is Fault.MUTE else 10)


async def test_a_forged_answer_comes_before_the_true_one(server):
    """Under another id."""
    server.records["example.net"] = {"MX": Forged(["10 evil.example"], ["10 good.example"])}
    question = dns.message.make_query("example.net", "MX")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((server.host, server.port))
        sock.send(question.to_wire())
        responses = [await dns_message(sock) for _ in range(2)]

    assert [texts(response) for response in responses] == [["10 evil.example."], ["10 good.example."]]
    assert responses[0].id != question.id == responses[1].id


async def dns_message(sock):
    return dns.message.from_wire(await asyncio.get_running_loop().sock_recv(sock, 65535))


async def test_truncation(server):
    """By the script, and by itself where the answer is too long for a datagram (RFC 1035 section 4.2.1)."""
    server.records["scripted.example"] = {"A": Truncated(["127.0.0.1"])}
    server.records["long.example"] = {"A": [f"127.0.0.{number}" for number in range(200)]}
    for name, count in [("scripted.example", 1), ("long.example", 200)]:
        response = await ask(server, name, "A")
        assert response.flags & dns.flags.TC
        assert texts(response) == []
        assert len(texts(await ask(server, name, "A", tcp=True))) == count
    assert len(texts(await ask(server, "long.example", "A", use_edns=0, payload=4096))) == 200


async def test_late_answers_and_answers_in_turn(server):
    """Others are answered meanwhile."""
    gate = Gate()
    server.records["late.example"] = {"A": Late(gate, InTurn(["127.0.0.1"], ["127.0.0.2"]))}
    late = asyncio.create_task(ask(server, "late.example", "A"))
    await gate.reached()
    assert texts(await ask(server, "mx.example.net", "A")) == ["127.0.0.1"]
    assert not late.done()
    gate.open()

    assert texts(await late) == ["127.0.0.1"]
    assert texts(await ask(server, "late.example", "A")) == ["127.0.0.2"]


async def test_what_is_no_question_is_ignored(server):
    """The server lives on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for packet in (b"", b"\0", b"\xff" * 100, dns.message.Message().to_wire()):
            sock.sendto(packet, (server.host, server.port))

    assert texts(await ask(server, "mx.example.net", "A")) == ["127.0.0.1"]
    assert len(server.queries) == 1


async def test_a_mistake_in_the_script_comes_to_light():
    """What can't be answered is raised when the server closes, not swallowed."""
    answers = ["127.0.0.1"]
    server = await DNSServer({"example.net": {"A": answers}}).__aenter__()
    answers.append("nonsense")
    with pytest.raises(dns.exception.Timeout):
        await ask(server, "example.net", "A", timeout=0.1)

    with pytest.raises(ExceptionGroup, match="could not answer"):
        await server.__aexit__(None, None, None)


async def test_a_port_that_is_taken_for_udp_only():
    """Given by the test it is an error; by chance another one is tried."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="in use"):
            async with DNSServer(port=taken.getsockname()[1]):
                pass


async def test_closing_ends_what_is_under_way(server):
    """A client that waits for an answer over TCP is cut off."""
    async with DNSServer({"mute.example": Fault.MUTE}) as server:
        asking = asyncio.create_task(ask(server, "mute.example", "A", tcp=True))
        while not server.queries:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises((EOFError, ConnectionError)):
        await asking


async def test_the_address_is_what_nameservers_takes(server):
    """Also of IPv6."""
    assert server.address == f"127.0.0.1:{server.port}"
    assert repr(server) == f"<DNSServer at 127.0.0.1:{server.port}, 2 names, 0 questions>"
    async with DNSServer(host="::1") as six:
        assert six.address == f"[::1]:{six.port}"
