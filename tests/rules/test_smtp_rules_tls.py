"""Rows A15 to A23 and A62: encryption, as a wish (the policy "may") and as a demand ("encrypt", "verify").

A wish is never a reason not to deliver, and what became of it is said in the attempt. A demand is never given up:
without TLS not a command about mail is sent (promise I14), and the mail waits.
"""

import ssl

import pytest

from mailstrom_async.testing import Close, Hang, Raw, Reply, Reset

from .world import DOMAIN, SHORT, A, deferred, delivered, failing_host

HOSTS = ("mx.alone.example.com", "mx1.backed.example.com", "mx2.backed.example.com", f"mx1.{DOMAIN}", f"mx2.{DOMAIN}")
DEMANDS = pytest.mark.parametrize("policy", ["encrypt", "verify"])
REFUSALS = pytest.mark.parametrize("refusal", ["454 4.7.0 TLS not available", "554 5.7.0 no"])
BROKEN = {
    "garbage": Reply("220 go", then=Raw(b"this is no TLS\r\n")),
    "alert": Reply("220 go", then=Raw(b"\x15\x03\x03\x00\x02\x02\x28")),
    "FIN": Reply("220 go", then=Close()),
    "RST": Reply("220 go", then=Reset()),
    "hang": Reply("220 go", then=Hang()),
}


@pytest.fixture
def good(authority) -> ssl.SSLContext:
    """The certificate of hosts that are what they say."""
    return authority.server_context(*HOSTS)


def said_no_mail(server) -> bool:
    """The server heard nothing about mail."""
    return not any(
        command.startswith(("MAIL", "RCPT", "DATA")) for record in server.sessions for command in record.commands
    )


@pytest.mark.rule("A15", "STARTTLS offered and refused, opportunistic: same session in plaintext, V, logged tls=no")
@REFUSALS
async def test_a15_a_refused_starttls_is_done_without(world, good, refusal, caplog):
    """Row A15: where TLS is a wish."""
    exchanger = await world.exchanger({"STARTTLS": refusal}, tls=good)
    with caplog.at_level("INFO", "mailstrom_async"):
        async with world.sent(A) as mail:
            assert await mail.attempted() == {A: delivered()}
            assert (await mail.result()).tls is None
            (attempt,) = await mail.attempts()

    assert exchanger.connections == 1
    assert attempt.tls.why == f"the server refused STARTTLS with: {refusal}"
    assert "tls=no" in caplog.text


@pytest.mark.rule("A15", "STARTTLS offered and refused, required: D 4.7.x, no MAIL sent")
@REFUSALS
@DEMANDS
async def test_a15_a_refused_starttls_makes_the_mail_wait(world, good, refusal, policy):
    """Row A15: where TLS is demanded."""
    failure = await failing_host(world, {"STARTTLS": refusal}, tls=good, second_tls=good, policy=policy)

    assert failure.seen == deferred("tls", "4.7.5")
    assert refusal in failure.result.reason
    assert said_no_mail(failure.server)


@pytest.mark.rule("A16", "handshake garbage, alert, FIN, RST, hang; opportunistic: one new plaintext connection, V")
@pytest.mark.parametrize("kind", BROKEN)
async def test_a16_a_broken_handshake_is_done_without(world, good, kind):
    """Row A16: in the same attempt; a handshake that hangs, after its timeout."""
    exchanger = await world.exchanger({"STARTTLS": BROKEN[kind]}, tls=good)
    async with world.sent(A, timeouts={"connect": SHORT}) as mail:
        assert await mail.attempted() == {A: delivered()}
        (attempt,) = await mail.attempts()

    assert exchanger.connections == 2
    assert attempt.tls.version is None
    assert attempt.tls.why.startswith("TLS failed: ")


@pytest.mark.rule("A16", "handshake garbage, alert, FIN, RST, hang; required: next MX, D, never plaintext")
@pytest.mark.parametrize("kind", BROKEN)
@DEMANDS
async def test_a16_a_broken_handshake_makes_the_mail_wait(world, good, kind, policy):
    """Row A16: where TLS is demanded."""
    failure = await failing_host(
        world, {"STARTTLS": BROKEN[kind]}, tls=good, second_tls=good, policy=policy, timeouts={"connect": SHORT}
    )

    assert failure.seen == deferred("tls", "4.7.5")
    assert said_no_mail(failure.server)
    assert failure.server.connections == 1


@pytest.fixture
def bad(request, authority, stranger) -> ssl.SSLContext:
    """A certificate with which something is wrong."""
    if request.param == "self-signed":
        return stranger.server_context(*HOSTS)
    if request.param == "wrong name":
        return authority.server_context("mail.elsewhere.example.org", DOMAIN, "backed.example.com", "alone.example.com")
    return authority.server_context(*HOSTS, **{request.param: True})


async def taken_all_the_same(world, bad) -> None:
    """Encryption to whoever answers is better than none (RFC 7435); the attempt says that it is no more than that."""
    exchanger = await world.exchanger(tls=bad)
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}
        assert (await mail.result()).tls == "TLSv1.3"
        (attempt,) = await mail.attempts()
    assert exchanger.connections == 1
    assert exchanger.messages[0].tls
    assert not attempt.tls.verified
    assert 'the policy "may"' in attempt.tls.why


async def not_trusted(world, good, bad, problem: str) -> None:
    """Where a valid certificate is demanded, the mail waits."""
    failure = await failing_host(world, {}, tls=bad, second_tls=good, policy="verify")
    assert failure.seen == deferred("tls", "4.7.5")
    assert problem in failure.result.reason
    assert said_no_mail(failure.server)


@pytest.mark.rule("A17", "certificate expired / not yet valid, opportunistic: V, logged unverified")
@pytest.mark.parametrize("bad", ["expired", "not_yet_valid"], indirect=True)
async def test_a17_a_certificate_out_of_its_time_is_taken(world, bad):
    """Row A17: where TLS is a wish."""
    await taken_all_the_same(world, bad)


@pytest.mark.rule("A17", "certificate expired / not yet valid, verified policy: D, no MAIL")
@pytest.mark.parametrize(("bad", "problem"), [("expired", "expired"), ("not_yet_valid", "not yet")], indirect=["bad"])
async def test_a17_a_certificate_out_of_its_time_makes_the_mail_wait(world, good, bad, problem):
    """Row A17: where a valid one is demanded."""
    await not_trusted(world, good, bad, problem)


@pytest.mark.rule("A18", "wrong name, opportunistic: as A17")
@pytest.mark.parametrize("bad", ["wrong name"], indirect=True)
async def test_a18_a_certificate_of_another_name_is_taken(world, bad):
    """Row A18: where TLS is a wish."""
    await taken_all_the_same(world, bad)


@pytest.mark.rule("A18", "wrong name, verified: D; the name checked is the MX name, not the domain")
@pytest.mark.parametrize("bad", ["wrong name"], indirect=True)
async def test_a18_a_certificate_of_another_name_makes_the_mail_wait(world, good, bad):
    """Row A18: one that names the recipient's domain does not name its exchanger."""
    await not_trusted(world, good, bad, "Hostname mismatch")


@pytest.mark.rule("A18", "the MX name is the one in SNI and in the certificate: V, verified")
async def test_a18_the_name_of_the_exchanger_is_checked(world, authority):
    """Row A18: the certificate names the exchanger and nothing else."""
    exchanger = await world.exchanger(tls=authority.server_context(f"mx1.{DOMAIN}"))
    async with world.sent(A, tls="verify") as mail:
        assert await mail.attempted() == {A: delivered()}
        (attempt,) = await mail.attempts()

    assert attempt.tls.verified
    assert attempt.tls.why is None
    assert exchanger.sessions[0].server_name == f"mx1.{DOMAIN}"


@pytest.mark.rule("A19", "self-signed, unknown CA, opportunistic: as A17")
@pytest.mark.parametrize("bad", ["self-signed"], indirect=True)
async def test_a19_a_stranger_s_certificate_is_taken(world, bad):
    """Row A19: where TLS is a wish."""
    await taken_all_the_same(world, bad)


@pytest.mark.rule("A19", "self-signed, unknown CA, verified: D, no MAIL")
@pytest.mark.parametrize("bad", ["self-signed"], indirect=True)
async def test_a19_a_stranger_s_certificate_makes_the_mail_wait(world, good, bad):
    """Row A19: where a valid one is demanded."""
    await not_trusted(world, good, bad, "unable to get local issuer certificate")


@pytest.mark.rule("A20", "STARTTLS not offered, opportunistic: plaintext")
async def test_a20_no_offer_is_done_without(world):
    """Row A20: where TLS is a wish."""
    await world.exchanger()
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}
        (attempt,) = await mail.attempts()

    assert attempt.tls.why == "the server does not offer STARTTLS"


@pytest.mark.rule("A20", "STARTTLS not offered, required: D; V once it is back")
@DEMANDS
async def test_a20_a_stripped_offer_makes_the_mail_wait(world, good, policy):
    """Row A20: somebody on the way may have taken it out."""
    stripped = f"250-mx1.{DOMAIN}\nSIZE 1000000"
    exchanger = await world.exchanger({"EHLO": [stripped]}, tls=good)
    async with world.sent(A, tls=policy) as mail:
        assert await mail.attempted() == {A: deferred("tls", "4.7.5")}
        assert said_no_mail(exchanger)
        assert await mail.attempted_again() == {A: delivered(attempts=2)}

    assert exchanger.messages[0].tls


INJECTED = Raw(b"220 go\r\n250-mx.example.net\r\n250 AUTH PLAIN\r\n")


@pytest.mark.rule("A21", "reply injected behind 220: connection dropped; opportunistic: V on a new one")
async def test_a21_a_reply_injected_behind_starttls_is_not_believed(world, good):
    """Row A21: it could answer a command inside TLS."""
    exchanger = await world.exchanger({"STARTTLS": INJECTED}, tls=good)
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}

    assert exchanger.connections == 2
    assert exchanger.sessions[0].commands == ["EHLO app.example.org", "STARTTLS"]


@pytest.mark.rule("A21", "reply injected behind 220, required: D, no MAIL")
@DEMANDS
async def test_a21_a_reply_injected_behind_starttls_makes_the_mail_wait(world, good, policy):
    """Row A21: where TLS is demanded."""
    failure = await failing_host(world, {"STARTTLS": INJECTED}, tls=good, second_tls=good, policy=policy)

    assert failure.seen == deferred("tls", "4.7.5")
    assert said_no_mail(failure.server)


@pytest.mark.rule("A21", "EHLO again inside TLS; no capability from before TLS used")
async def test_a21_what_was_offered_before_tls_is_forgotten(world, good):
    """Row A21: an attacker may have offered it, or a limit that fits no mail."""
    hellos = [f"250-mx1.{DOMAIN}\nSTARTTLS\nPIPELINING\nSIZE 10", f"250 mx1.{DOMAIN}"]
    exchanger = await world.exchanger({"EHLO": hellos}, tls=good)
    async with world.sent(A, tls="verify") as mail:
        assert await mail.attempted() == {A: delivered()}

    (session,) = exchanger.sessions
    assert session.commands[:3] == ["EHLO app.example.org", "STARTTLS", "EHLO app.example.org"]
    assert exchanger.messages[0].mail_options == ()
    assert session.pipelined == 0


@pytest.mark.rule("A22", "nothing is pipelined behind STARTTLS")
async def test_a22_nothing_follows_starttls_in_plaintext(world, good):
    """Row A22: nothing has come with it, and nothing comes behind it but the handshake."""
    heard: list[list[str]] = []

    def listen(context):
        heard.append(list(context.session.commands))

    exchanger = await world.exchanger({"STARTTLS": listen}, tls=good)
    async with world.sent(A, tls="verify") as mail:
        assert await mail.attempted() == {A: delivered()}

    assert heard == [["EHLO app.example.org", "STARTTLS"]]
    assert exchanger.violations == []


@pytest.mark.rule("A23", "TLS 1.2 only server / 1.3 only: V")
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("policy", ["may", "verify"])
async def test_a23_both_versions_of_tls_are_spoken(world, good, policy, version):
    """Row A23: whichever alone the server has."""
    good.minimum_version = good.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    await world.exchanger(tls=good)
    async with world.sent(A, tls=policy) as mail:
        assert await mail.attempted() == {A: delivered()}
        assert (await mail.result()).tls == version


@pytest.mark.rule("A62", "server needs STARTTLS (530): TLS used if possible, V")
async def test_a62_a_server_that_needs_tls_gets_it(world, good):
    """Row A62: it is used wherever it is offered."""
    await world.exchanger(
        {"MAIL": lambda context: None if context.session.tls else "530 5.7.0 STARTTLS first"}, tls=good
    )
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}


@pytest.mark.rule("A62", "server needs STARTTLS (530) and does not offer it, or we do not use it: D")
@pytest.mark.parametrize("moment", ["MAIL", "RCPT"])
async def test_a62_a_server_that_needs_tls_and_can_not_get_it_is_waited_for(world, good, moment):
    """Row A62: the settings are at fault, ours or theirs, and not the mail."""
    await world.exchanger({moment: "530 5.7.0 STARTTLS first"}, tls=good)
    async with world.sent(A, tls="none") as mail:
        assert await mail.attempted() == {A: deferred("smtp", "5.7.0", 530)}
