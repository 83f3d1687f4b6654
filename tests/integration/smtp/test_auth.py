"""Logging in at a relay."""

import base64

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.smtp import Breakdown, Credentials, Refusal
from mailstrom_async.testing import Close, Reply, SMTPServer

SECRET = "s3cr3t pässwörd"
ADA = Credentials("ada", password=SECRET)


def nowhere(secret: str, text: str) -> bool:
    """Neither the secret nor what AUTH makes of it is in the text."""
    forms = [secret, *(base64.b64encode(form).decode() for form in (secret.encode(), f"\0ada\0{secret}".encode()))]
    return not any(form in text for form in forms)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_a_password_is_presented_in_the_way_that_the_relay_offers(client, certificates, mechanism):
    """PLAIN, LOGIN, CRAM-MD5; and it is in no transcript."""
    hello = f"250-mx.example.test\nAUTH {mechanism}"
    async with SMTPServer({"EHLO": [None, hello]}, tls=certificates.server(), users={"ada": SECRET}) as server:
        session = await client.connect(server, "verify", credentials=ADA)
        transcript = "\n".join(session.transcript)
        result = await session.transact(client.message(), ["a@example.test"])

        assert result.decided["a@example.test"].reply.code == 250
        assert server.sessions[0].username == "ada"
        assert server.sessions[0].commands[3].startswith(f"AUTH {mechanism}")
        assert "C: (credentials)" in transcript
        assert nowhere(SECRET, transcript)
        assert server.violations == []


@pytest.mark.parametrize("implicit_tls", [True, False])
async def test_a_fresh_token_is_asked_for_each_time(client, certificates, implicit_tls):
    """XOAUTH2: tokens live for an hour, connectors for months."""
    asked = []

    async def token() -> str:
        asked.append(len(asked))
        return "token-1"

    credentials = Credentials("ada", oauth_token=token)
    async with SMTPServer(tls=certificates.server(), implicit_tls=implicit_tls, tokens={"ada": "token-1"}) as server:
        for _ in range(2):
            session = await client.connect(server, "verify", credentials=credentials, implicit_tls=implicit_tls)
            assert nowhere("token-1", "\n".join(session.transcript))

        assert [record.username for record in server.sessions] == ["ada", "ada"]
        assert asked == [0, 1]


async def test_a_login_that_is_refused(client, certificates):
    """Row A60: with the relay's words, and without ours."""
    async with SMTPServer(tls=certificates.server(), users={"ada": "another"}) as server:
        error = await client.failure(server, "verify", credentials=ADA)

        assert isinstance(error.why, Refusal)
        assert (error.why.phase, error.why.reply.code) == (Phase.AUTH, 535)
        assert error.tls.verified
        assert nowhere(SECRET, "\n".join(error.transcript))
        assert nowhere(SECRET, repr(error) + str(error) + repr(ADA))


async def test_a_wrong_password_is_presented_once(client, certificates):
    """Row A60: relays lock an account after some failures, whatever the mechanism."""
    async with SMTPServer(tls=certificates.server(), users={"ada": "another"}) as server:
        error = await client.failure(server, "verify", credentials=ADA)
        logins = [line for line in server.sessions[0].commands if line.startswith("AUTH")]

        assert error.why.reply.code == 535
        assert len(logins) == 1


async def test_a_mechanism_that_the_relay_does_not_take_after_all_is_not_the_last(client, certificates):
    """RFC 4954 section 6: 504 and 538 are said of the mechanism, and not of the password."""
    script = {"AUTH": ["504 5.5.4 not that one", "538 5.7.11 encryption required", None]}
    async with SMTPServer(script, tls=certificates.server(), users={"ada": SECRET}) as server:
        session = await client.connect(server, "verify", credentials=ADA)

        assert server.sessions[0].username == "ada"
        assert any(line.startswith("AUTH CRAM-MD5") for line in server.sessions[0].commands)
        assert nowhere(SECRET, "\n".join(session.transcript))


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("534 5.7.9 Application-specific password required", 534),
        (Reply("535 5.7.8 no", then=Close()), 535),
        ("454 4.7.0 Temporary authentication failure", 454),
        (Reply("421 4.7.0 Too many errors", then=Close()), 421),
    ],
)
async def test_a_login_that_ends_the_session(client, certificates, action, code):
    """Row A60: the reply counts, not the lost connection."""
    async with SMTPServer({"AUTH": action}, tls=certificates.server(), users={"ada": SECRET}) as server:
        error = await client.failure(server, "verify", credentials=ADA)

        assert isinstance(error.why, Refusal)
        assert (error.why.phase, error.why.reply.code) == (Phase.AUTH, code)


async def test_a_token_that_is_refused(client, certificates):
    """Row A60, XOAUTH2: the challenge with the reason is answered, and the final reply counts."""

    async def token() -> str:
        return "stale"

    async with SMTPServer(tls=certificates.server(), tokens={"ada": "fresh"}) as server:
        error = await client.failure(server, "verify", credentials=Credentials("ada", oauth_token=token))

        assert isinstance(error.why, Refusal)
        assert error.why.reply.code == 535


@pytest.mark.parametrize("policy", ["none", "may"])
async def test_credentials_are_never_sent_in_plaintext(client, policy):
    """Row A61: not even to a relay that asks for it."""
    async with SMTPServer(users={"ada": SECRET}, auth_without_tls=True) as server:
        error = await client.failure(server, policy, credentials=ADA)

        assert isinstance(error.why, Breakdown)
        assert (error.why.phase, error.why.cause) == (Phase.AUTH, "policy")
        assert "no TLS" in error.why.reason
        assert server.sessions[0].commands == ["EHLO client.example.test"]


async def test_credentials_are_not_sent_after_a_handshake_failed(client, certificates):
    """Rows A16 and A61: a session that fell back to plaintext does not log in."""
    broken = Reply("220 go", then=Close())
    async with SMTPServer(
        {"STARTTLS": broken}, tls=certificates.server(), users={"ada": SECRET}, auth_without_tls=True
    ) as server:
        error = await client.failure(server, "may", credentials=ADA)

        assert isinstance(error.why, Breakdown)
        assert (error.why.phase, error.why.cause) == (Phase.AUTH, "policy")


@pytest.mark.parametrize("credentials", [ADA, Credentials("ada", oauth_token=lambda: None)])  # type: ignore[arg-type, return-value]
async def test_a_relay_that_offers_no_login(client, certificates, credentials):
    """The settings and the relay do not fit together; the reason says so."""
    async with SMTPServer(tls=certificates.server()) as server:
        error = await client.failure(server, "verify", credentials=credentials)

        assert isinstance(error.why, Breakdown)
        assert (error.why.phase, error.why.cause) == (Phase.AUTH, "policy")
        assert "offers no login" in error.why.reason


async def test_a_token_that_can_not_be_had(client, certificates):
    """Our own trouble. What the callable's error says may be secret, and is not shown."""

    async def token() -> str:
        raise RuntimeError("client_secret=hunter2 is wrong")

    async with SMTPServer(tls=certificates.server(), tokens={"ada": "x"}) as server:
        error = await client.failure(server, "verify", credentials=Credentials("ada", oauth_token=token))

        assert isinstance(error.why, Breakdown)
        assert (error.why.phase, error.why.cause) == (Phase.AUTH, "local")
        assert "RuntimeError" in error.why.reason
        assert "hunter2" not in error.why.reason
