"""A DNS server that answers what a test tells it."""

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from mailstrom_async.testing._actions import Gate
from mailstrom_async.testing._zone import (
    Answer,
    Entry,
    Fault,
    Forged,
    Found,
    InTurn,
    Late,
    Records,
    Truncated,
    Zone,
    as_key,
    parse,
)

PORTS_TRIED = 20
UDP_WITHOUT_EDNS = 512

Protocol = Literal["UDP", "TCP"]
Send = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Question:
    """A question that was asked: `Question("example.net", "MX", "UDP")`."""

    name: str
    kind: str
    protocol: Protocol = "UDP"


class DNSServer:
    """A nameserver on loopback, over UDP and TCP, which knows what a test writes down.

        async with DNSServer({
            "example.net": {"MX": ["10 mx1.example.net", "20 mx2.example.net"]},
            "mx1.example.net": {"A": ["127.0.0.1"], "AAAA": ["::1"]},
            "mx2.example.net": {"CNAME": ["mx1.example.net"]},
            "sick.example.net": Fault.SERVFAIL,
            "nomail.example.net": {"MX": ["0 ."]},
        }) as server:
            config = Config(helo_name="a.example.org", delivery=DirectDelivery(nameservers=[server.address]))
            ...
            server.records["example.net"] = {"MX": Late(timedelta(seconds=2), ["10 mx2.example.net"])}
            assert Question("example.net", "MX") in server.queries

    A name that is not written down does not exist (NXDOMAIN); one that is, or has names below it, has no other records
    than those written down (NODATA). CNAMEs are followed. What can go wrong is in `Fault`, `Late`, `Truncated`,
    `Forged` and `InTurn`.

    Args:
        records: What is known, by name and record type.
        ttl: In seconds, of all records that do not come in `Records`, and of "there is none". 0, so that what a test
            changes holds at once: resolvers have caches that know nothing of a `ManualClock`.
        host: The loopback address to listen on.
        port: 0: a free one.
        follow: Answer with the whole chain of CNAMEs, as resolvers should. False: with the first one only.
    """

    def __init__(
        self,
        records: Mapping[str, Entry] | None = None,
        *,
        ttl: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        follow: bool = True,
    ) -> None:
        self.records = Zone(records)
        """What is known; may be changed at any time."""
        self.queries: list[Question] = []
        """All questions that were asked, in order. Those that are repeated over TCP, or after an error, count again."""
        self.ttl = ttl
        self.follow = follow
        self.host = host
        self.port = port
        self._tcp: asyncio.Server | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []

    def __repr__(self) -> str:
        return f"<DNSServer at {self.address}, {len(self.records)} names, {len(self.queries)} questions>"

    @property
    def address(self) -> str:
        """As the `nameservers` of a delivery take it: "127.0.0.1:5353"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def asked(self, name: str, kind: str | None = None) -> int:
        """How often a name was asked for (its records of that type)."""
        key = as_key(name)
        return sum(question.name == key and kind in (None, question.kind) for question in self.queries)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for attempt in range(PORTS_TRIED):
            tcp = await asyncio.start_server(self._serve_stream, self.host, self.port)
            port = cast(int, tcp.sockets[0].getsockname()[1])
            try:
                # The port that was free for TCP may be somebody's for UDP.
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=(self.host, port)
                )
            except OSError:
                tcp.close()
                await tcp.wait_closed()
                if self.port or attempt == PORTS_TRIED - 1:
                    raise
            else:
                self._tcp, self.port = tcp, port
                break
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._tcp is not None
        assert self._udp is not None
        self._tcp.close()
        self._udp.close()
        answering = list(self._answering)
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        await self._tcp.wait_closed()
        await asyncio.sleep(0)
        if self._failures and error is None:
            raise ExceptionGroup("the DNS server could not answer", self._failures)

    def receive(self, packet: bytes, peer: tuple[str, int]) -> None:
        """A question came in a datagram."""
        udp = self._udp
        assert udp is not None
        task = asyncio.create_task(self._answer(packet, "UDP", lambda answer: udp.sendto(answer, peer)))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection: questions and answers, each behind its length (RFC 1035 section 4.2.2)."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._answering.add(task)
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                packet = await reader.readexactly(length)
                await self._answer(packet, "TCP", lambda answer: writer.write(struct.pack("!H", len(answer)) + answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # Cancelled by __aexit__ alone; asyncio's own callback would log it as an error.
            pass
        finally:
            self._answering.discard(task)
            writer.transport.abort()

    async def _answer(self, packet: bytes, protocol: Protocol, send: Send) -> None:
        try:
            question = dns.message.from_wire(packet)
        except dns.exception.DNSException:
            return  # no question
        if question.opcode() != dns.opcode.QUERY or len(question.question) != 1:
            return
        try:
            name = as_key(question.question[0].name.to_text(omit_final_dot=True))
            kind = dns.rdatatype.to_text(question.question[0].rdtype)
            self.queries.append(Question(name, kind, protocol))
            found = self.records.find(name, kind, follow=self.follow)
            await self._tell(question, kind, found, found.answer, protocol, send)
        except Exception as error:  # noqa: BLE001 - raised when the server closes, where the test sees it
            self._failures.append(error)

    async def _tell(
        self,
        question: dns.message.Message,
        kind: str,
        found: Found,
        answer: Answer,
        protocol: Protocol,
        send: Send,
    ) -> None:
        """Carry an answer out."""
        if isinstance(answer, InTurn):
            await self._tell(question, kind, found, answer.next_answer(), protocol, send)
        elif isinstance(answer, Late):
            await _wait(answer)
            await self._tell(question, kind, found, answer.then, protocol, send)
        elif isinstance(answer, Truncated):
            if protocol == "TCP":
                await self._tell(question, kind, found, answer.then, protocol, send)
            else:
                send(_marked_truncated(question))
        elif isinstance(answer, Forged):
            forged = self._response(question, kind, found, Records(*answer.forged, ttl=self.ttl))
            forged.id ^= 0x5555
            send(forged.to_wire())
            await self._tell(question, kind, found, answer.true, protocol, send)
        elif answer is Fault.MUTE:
            if protocol == "TCP":
                await asyncio.get_running_loop().create_future()
        elif isinstance(answer, Fault):
            send(_faulty(question, answer))
        else:
            records = answer if isinstance(answer, Records) else Records(*answer, ttl=self.ttl)
            response = self._response(question, kind, found, records)
            size = 65535 if protocol == "TCP" else max(question.payload, UDP_WITHOUT_EDNS)
            try:
                send(response.to_wire(max_size=size))
            except dns.exception.TooBig:
                send(_marked_truncated(question))

    def _response(
        self, question: dns.message.Message, kind: str, found: Found, records: Records
    ) -> dns.message.Message:
        response = _response_to(question)
        for alias, target in found.aliases:
            _add(response, alias, self.ttl, parse("CNAME", target))
        for text in records.texts:
            _add(response, found.name, records.ttl, parse(kind, text))
        if not records.texts:
            if not found.exists:
                response.set_rcode(dns.rcode.NXDOMAIN)
            # RFC 2308 section 3: how long "there is none" holds.
            soa = parse("SOA", f"ns. hostmaster. 1 3600 600 86400 {self.ttl}")
            zone = found.name.partition(".")[2] or "."
            _add(response, zone, self.ttl, soa, section=response.authority)
        return response


async def _wait(late: Late) -> None:
    if isinstance(late.until, Gate):
        await late.until.pass_through()
    else:
        await asyncio.sleep(late.until.total_seconds())


def _response_to(question: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(question, recursion_available=True)
    response.flags |= dns.flags.RA
    return response


def _add(
    response: dns.message.Message,
    name: str,
    ttl: int,
    record: dns.rdata.Rdata,
    *,
    section: list[dns.rrset.RRset] | None = None,
) -> None:
    rrset = response.find_rrset(
        response.answer if section is None else section,
        dns.name.from_text(name),
        dns.rdataclass.IN,
        record.rdtype,
        create=True,
    )
    rrset.add(record, ttl)


def _marked_truncated(question: dns.message.Message) -> bytes:
    response = _response_to(question)
    response.flags |= dns.flags.TC
    return response.to_wire()


def _faulty(question: dns.message.Message, fault: Fault) -> bytes:
    response = _response_to(question)
    match fault:
        case Fault.GARBAGE:
            return response.to_wire()[:2] + b"\xff" * 40
        case Fault.SHORT:
            return response.to_wire()[:6]
        case Fault.WRONG_ID:
            response.id ^= 0x5555
            response.set_rcode(dns.rcode.NXDOMAIN)
        case Fault.WRONG_QUESTION:
            asked = question.question[0]
            response.question = [dns.rrset.RRset(dns.name.from_text("other.example."), asked.rdclass, asked.rdtype)]
            response.set_rcode(dns.rcode.NXDOMAIN)
        case _:
            response.set_rcode(dns.rcode.from_text(fault.value))
    return response.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DNSServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.receive(data, addr)
