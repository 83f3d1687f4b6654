"""Encryption: wished for, demanded, verified, stripped and broken."""

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from mailstrom_async._config import Timeouts
from mailstrom_async._reply import Phase
from mailstrom_async.smtp import Breakdown, SessionError, SMTPConnector
from mailstrom_async.testing import Close, Hang, Raw, Reply, Reset, SMTPServer

SHORT = timedelta(seconds=0.3)
ALERT = b"\x15\x03\x03\x00\x02\x02\x28"

BROKEN_HANDSHAKES = {
    "garbage": Reply("220 go", then=Raw(b"this is no TLS\r\n")),
    "alert": Reply("220 go", then=Raw(ALERT)),
    "FIN": Reply("220 go", then=Close()),
    "RST": Reply("220 go", then=Reset()),
    "hang": Reply("220 go", then=Hang()),
    "no answer at all": Hang(),
    "hung up": Close(),
    "another yes": "250 sure",
}


def tls_breakdown(error: SessionError, phase: Phase = Phase.STARTTLS) -> str:
    assert isinstance(error.why, Breakdown)
    assert (error.why.phase, error.why.cause) == (phase, "tls")
    assert error.why.reply is None
    return error.why.reason


async def deliver(client, session):
    result = await session.transact(client.message(), ["a@example.test"])
    assert result.decided["a@example.test"].reply.code == 250


@pytest.mark.parametrize("policy", ["may", "encrypt", "verify"])
async def test_tls_is_used_where_it_is_offered(client, certificates, policy):
    """With the host's name in SNI, and EHLO said again inside (row A21)."""
    async with SMTPServer(tls=certificates.server()) as server:
        session = await client.connect(server, policy)
        await deliver(client, session)

        assert session.tls.version == "TLSv1.3"
        assert session.tls.cipher is not None
        assert session.tls.verified is (policy == "verify")
        assert server.sessions[0].server_name == "mx.example.test"
        assert server.sessions[0].commands[:4] == [
            "EHLO client.example.test",
            "STARTTLS",
            "EHLO client.example.test",
            "MAIL FROM:<sender@example.org> SIZE=25",
        ]
        assert server.messages[0].tls
        assert server.violations == []


async def test_tls_that_is_switched_off_is_not_used(client, certificates):
    """The policy "none"."""
    async with SMTPServer(tls=certificates.server()) as server:
        session = await client.connect(server, "none")

        assert session.tls.version is None
        assert session.tls.why == "TLS is switched off"
        assert server.sessions[0].commands == ["EHLO client.example.test"]


async def test_a_wish_for_tls_takes_any_certificate_and_says_so(client):
    """Rows A17 to A19 (RFC 7435)."""
    stranger = trustme.CA().issue_cert("other.example.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.configure_cert(context)
    async with SMTPServer(tls=context) as server:
        session = await client.connect(server, "may")
        await deliver(client, session)

        assert session.tls.version is not None
        assert not session.tls.verified
        assert session.tls.why == 'the policy "may" takes any certificate'


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("expired", "expired"),
        ("not yet valid", "not yet valid"),
        ("wrong name", "mismatch"),
        ("unknown", "certificate"),
    ],
)
async def test_a_demand_for_verified_tls_is_strict(client, certificates, kind, problem):
    """Rows A17 to A19: an expired, early, misnamed or unknown certificate ends the session before MAIL."""
    context = {
        "expired": lambda: certificates.server(days=-1),
        "not yet valid": lambda: certificates.server(days=60),
        "wrong name": lambda: certificates.server("other.example.test"),
        "unknown": lambda: certificates.server(authority=trustme.CA()),
    }[kind]()
    async with SMTPServer(tls=context) as server:
        error = await client.failure(server, "verify")

        assert problem in tls_breakdown(error)
        assert server.sessions[0].commands == ["EHLO client.example.test", "STARTTLS"]
        assert server.connections == 1


@pytest.mark.parametrize("refusal", ["454 4.7.0 TLS not available", "554 5.7.0 no"])
async def test_a_refused_starttls_is_done_without_where_it_is_a_wish(client, certificates, refusal):
    """Row A15: in the same session."""
    async with SMTPServer({"STARTTLS": refusal}, tls=certificates.server()) as server:
        session = await client.connect(server, "may")
        await deliver(client, session)

        assert server.connections == 1
        assert session.tls.version is None
        assert session.tls.why == f"the server refused STARTTLS with: {refusal}"


@pytest.mark.parametrize("policy", ["encrypt", "verify"])
@pytest.mark.parametrize("refusal", ["454 4.7.0 TLS not available", "554 5.7.0 no"])
async def test_a_refused_starttls_ends_the_session_where_it_is_demanded(client, certificates, refusal, policy):
    """Row A15: no MAIL is sent."""
    async with SMTPServer({"STARTTLS": refusal}, tls=certificates.server()) as server:
        error = await client.failure(server, policy)

        assert refusal in tls_breakdown(error)
        assert server.sessions[0].commands == ["EHLO client.example.test", "STARTTLS"]


@pytest.mark.parametrize("kind", BROKEN_HANDSHAKES)
async def test_a_broken_handshake_is_done_without_where_tls_is_a_wish(client, certificates, kind):
    """Row A16: one new connection, in plaintext."""
    async with SMTPServer({"STARTTLS": BROKEN_HANDSHAKES[kind]}, tls=certificates.server()) as server:
        session = await client.connect(server, "may", timeouts={"connect": SHORT})
        await deliver(client, session)

        assert server.connections == 2
        assert session.tls.version is None
        assert session.tls.why is not None
        assert session.tls.why.startswith("TLS failed: ")
        assert "STARTTLS" not in server.sessions[1].commands


@pytest.mark.parametrize("policy", ["encrypt", "verify"])
@pytest.mark.parametrize("kind", BROKEN_HANDSHAKES)
async def test_a_broken_handshake_ends_the_session_where_tls_is_demanded(client, certificates, kind, policy):
    """Row A16: never plaintext."""
    async with SMTPServer({"STARTTLS": BROKEN_HANDSHAKES[kind]}, tls=certificates.server()) as server:
        error = await client.failure(server, policy, timeouts={"connect": SHORT})

        assert "TLS failed" in tls_breakdown(error)
        assert server.connections == 1


@pytest.mark.parametrize("policy", ["encrypt", "verify"])
async def test_a_stripped_offer_ends_the_session_where_tls_is_demanded(client, policy):
    """Row A20: it looks like a server without TLS."""
    async with SMTPServer() as server:
        error = await client.failure(server, policy)

        assert "TLS is demanded, but the server does not offer STARTTLS" in tls_breakdown(error)
        assert server.sessions[0].commands == ["EHLO client.example.test"]


INJECTED = Raw(b"220 go\r\n250-mx.example.test\r\n250 AUTH PLAIN\r\n")


@pytest.mark.parametrize("policy", ["encrypt", "verify"])
async def test_a_reply_injected_behind_starttls_is_not_believed(client, certificates, policy):
    """Row A21: what an attacker slips in before the handshake must not answer a command inside TLS."""
    async with SMTPServer({"STARTTLS": INJECTED}, tls=certificates.server()) as server:
        error = await client.failure(server, policy)

        assert "more replies than we sent commands" in tls_breakdown(error)
        assert server.connections == 1
        assert server.sessions[0].commands == ["EHLO client.example.test", "STARTTLS"]


async def test_a_reply_injected_behind_starttls_is_a_broken_handshake(client, certificates):
    """Rows A16 and A21: the connection is dropped, and where TLS is a wish, another one does without."""
    async with SMTPServer({"STARTTLS": INJECTED}, tls=certificates.server()) as server:
        session = await client.connect(server, "may")
        await deliver(client, session)

        assert server.connections == 2
        assert session.tls.why == "TLS failed: the server sent more replies than we sent commands"


async def test_nothing_that_was_offered_before_tls_counts(client, certificates):
    """Row A21: only the second EHLO does (RFC 3207 section 4.2)."""
    hellos = ["250-mx.example.test\nSTARTTLS\nPIPELINING\nSIZE 10", "250 mx.example.test"]
    async with SMTPServer({"EHLO": hellos}, tls=certificates.server()) as server:
        session = await client.connect(server, "verify")
        await deliver(client, session)

        assert "MAIL FROM:<sender@example.org>" in server.sessions[0].commands
        assert server.sessions[0].pipelined == 0


async def test_an_ehlo_that_fails_inside_tls_is_a_refusal(client, certificates):
    """And neither goes back to plaintext."""
    async with SMTPServer({"EHLO": [None, "451 4.3.0 later"]}, tls=certificates.server()) as server:
        error = await client.failure(server, "may")

        assert str(error) == "451 4.3.0 later"
        assert error.tls.version == "TLSv1.3"
        assert server.connections == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_of_tls_are_spoken(client, certificates, version):
    """Row A23."""
    context = certificates.server()
    context.minimum_version = context.maximum_version = version
    async with SMTPServer(tls=context) as server:
        session = await client.connect(server, "verify")
        await deliver(client, session)

        assert session.tls.version == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


@pytest.mark.parametrize("policy", ["may", "encrypt", "verify"])
async def test_tls_from_the_first_byte_on(client, certificates, policy):
    """Port 465."""
    async with SMTPServer(tls=certificates.server(), implicit_tls=True) as server:
        session = await client.connect(server, policy, implicit_tls=True)
        await deliver(client, session)

        assert session.tls.version == "TLSv1.3"
        assert session.tls.verified is (policy == "verify")
        assert server.sessions[0].server_name == "mx.example.test"


@pytest.mark.parametrize("policy", ["may", "verify"])
async def test_tls_from_the_first_byte_on_is_never_done_without(client, certificates, policy):
    """A server that speaks plaintext there is no server for us."""
    async with SMTPServer() as server:
        error = await client.failure(server, policy, implicit_tls=True)

        assert "TLS failed" in tls_breakdown(error, Phase.CONNECT)
        assert server.connections == 1


async def test_the_certificate_of_tls_from_the_first_byte_on_is_checked(client, certificates):
    """Rows A17 to A19, on port 465."""
    async with SMTPServer(tls=certificates.server("other.example.test"), implicit_tls=True) as server:
        error = await client.failure(server, "verify", implicit_tls=True)

        assert "mismatch" in tls_breakdown(error, Phase.CONNECT)


async def test_an_address_can_be_verified_too(client, certificates):
    """A relay may be given by its address."""
    async with SMTPServer(tls=certificates.server("127.0.0.1")) as server:
        session = await client.connect(server, "verify", host="127.0.0.1")

        assert session.tls.verified


@pytest.mark.parametrize("host", ["a" * 64 + ".example.test", ".example.test", "a..b.test"])
async def test_a_host_name_that_tls_can_not_ask_for(client, certificates, host):
    """A name that no certificate could be for is a failure of TLS, not a crash."""
    async with SMTPServer(tls=certificates.server()) as server:
        error = await client.failure(server, "encrypt", host=host)

        assert "TLS failed" in tls_breakdown(error)


@pytest.mark.parametrize("content", [None, b"", b"no certificate\n"])
async def test_authorities_that_can_not_be_read_are_our_own_trouble(client, certificates, tmp_path, content):
    """The reason names the file; once it is in order, sessions are opened."""
    path: Path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_bytes(content)  # noqa: ASYNC240
    connector = SMTPConnector("client.example.test", Timeouts(), ca_file=path)
    async with SMTPServer(tls=certificates.server()) as server:
        with pytest.raises(SessionError) as caught:
            await connector.connect(client.target(server, "verify"))

        assert isinstance(caught.value.why, Breakdown)
        assert caught.value.why.cause == "local"
        assert str(path) in str(caught.value)
        assert server.connections == 0

        path.write_bytes(certificates.ca_file.read_bytes())  # noqa: ASYNC240
        session = await connector.connect(client.target(server, "verify"))
        client.sessions.append(session)
        assert session.tls.verified


async def test_the_system_s_authorities_are_the_default(client, certificates):
    """They do not know the test's own."""
    async with SMTPServer(tls=certificates.server()) as server:
        with pytest.raises(SessionError) as caught:
            await SMTPConnector("client.example.test", Timeouts()).connect(client.target(server, "verify"))

        assert "certificate" in tls_breakdown(caught.value)
