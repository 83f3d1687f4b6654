"""Rows A24 to A35 and A41 to A57: from MAIL to the reply to the final dot, recipient by recipient.

Each recipient has the outcome of its own reply; what concerns all, such as a refusal of the content, concerns those who
were accepted before. What is no reply, or the reply to something else, decides nothing.
"""

import json

import pytest

from mailstrom_async import Email
from mailstrom_async.testing import Close, Raw, Records, Reply, Reset

from .world import DOMAIN, OFFERS, PIPELINED, A, B, C, D, deferred, delivered, failed

MX1, MX2 = f"mx1.{DOMAIN}", f"mx2.{DOMAIN}"


async def outcome(world, script, *recipients, again=False, **server):
    """What becomes of a mail to these recipients; the exchanger."""
    exchanger = await world.exchanger(script, **server)
    async with world.sent(*recipients) as mail:
        seen = await mail.attempted()
        if again:
            seen |= await mail.attempted_again()
    assert exchanger.violations == []
    return seen, exchanger


@pytest.mark.rule("A24", "4xx at MAIL: all D")
async def test_a24_a_refusal_for_now_at_mail_defers_everybody(world, extensions):
    """Row A24: and nothing is sent."""
    seen, exchanger = await outcome(world, {"MAIL": ["451 4.3.0 not now"]}, A, B, again=True, extensions=extensions)

    assert seen == {A: delivered(attempts=2), B: delivered(attempts=2)}
    assert [message.recipients for message in exchanger.messages] == [(A, B)]


@pytest.mark.rule("A24", "4xx at MAIL: backup MX is tried in the same attempt (our choice); none takes it: D")
@pytest.mark.parametrize("second", [None, "452 4.3.1 full, too"])
async def test_a24_a_refusal_for_now_at_mail_leads_to_the_backup(world, extensions, second):
    """Row A24: the host has said nothing of the recipients, and another one may be well."""
    script = {"MAIL": "452 4.3.1 the disk is full"}
    _, backup = await world.exchangers(script, {"MAIL": second}, extensions=extensions)
    async with world.sent(A) as mail:
        seen = await mail.attempted()
        (attempt,) = await mail.attempts()

    assert seen == {A: delivered() if second is None else deferred("smtp", "4.3.1", 452)}
    assert attempt.host == MX2
    assert backup.received == (second is None)


@pytest.mark.rule("A25", "5xx at MAIL: all of this transaction F, with code; no other MX")
async def test_a25_a_refusal_for_good_at_mail_fails_everybody(world, extensions):
    """Row A25: another exchanger of the domain would say the same."""
    first, second = await world.exchangers({"MAIL": "550 5.1.8 bad sender"}, None, extensions=extensions)
    async with world.sent(A, B) as mail:
        assert await mail.attempted() == {A: failed("smtp", "5.1.8", 550), B: failed("smtp", "5.1.8", 550)}
        assert (await mail.result()).reply.command == "MAIL"

    assert (first.received, second.connections) == (0, 0)


@pytest.mark.rule("A26", "4xx at one RCPT: that one D, others go on in the same transaction")
async def test_a26_a_refusal_for_now_at_rcpt_defers_one(world, extensions):
    """Row A26: the retry is for that one alone."""
    script = {f"RCPT TO:<{B}>": ["450 4.2.1 mailbox busy"]}
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B, C) as mail:
        assert await mail.attempted() == {A: delivered(), B: deferred("smtp", "4.2.1", 450), C: delivered()}
        assert await mail.attempted_again() == {A: delivered(), B: delivered(attempts=2), C: delivered()}

    assert [message.recipients for message in exchanger.messages] == [(A, C), (B,)]


@pytest.mark.rule("A27", "5xx at one RCPT: that one F; others go on")
async def test_a27_a_refusal_for_good_at_rcpt_fails_one(world, extensions):
    """Row A27: the others have the message."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no such person"}
    seen, exchanger = await outcome(world, script, A, B, C, extensions=extensions)

    assert seen == {A: delivered(), B: failed("smtp", "5.1.1", 550), C: delivered()}
    assert [message.recipients for message in exchanger.messages] == [(A, C)]


@pytest.mark.rule("A28", "4xx at DATA: accepted recipients D; earlier 5xx RCPT stay F")
async def test_a28_a_refusal_for_now_at_data_defers_the_accepted(world, extensions):
    """Row A28: and they get it with the retry."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", "DATA": ["451 4.3.0 not now"]}
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B) as mail:
        assert await mail.attempted() == {A: deferred("smtp", "4.3.0", 451), B: failed("smtp", "5.1.1", 550)}
        assert await mail.attempted_again() == {A: delivered(attempts=2), B: failed("smtp", "5.1.1", 550)}

    assert [message.recipients for message in exchanger.messages] == [(A,)]


@pytest.mark.rule("A29", "5xx at DATA: accepted recipients F")
async def test_a29_a_refusal_for_good_at_data_fails_the_accepted(world, extensions):
    """Row A29: who was refused before keeps the reply of its own."""
    script = {f"RCPT TO:<{B}>": "450 4.2.1 busy", "DATA": "554 5.7.1 no"}
    seen, exchanger = await outcome(world, script, A, B, extensions=extensions)

    assert seen == {A: failed("smtp", "5.7.1", 554), B: deferred("smtp", "4.2.1", 450)}
    assert exchanger.messages == []


@pytest.mark.rule("A30", "4xx at end-of-data: as A28")
async def test_a30_a_refusal_for_now_of_the_content_defers_the_accepted(world, extensions):
    """Row A30: the server said that it did not take it, so nobody gets it twice."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", "end of data": ["451 4.3.0 not now"]}
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B) as mail:
        assert await mail.attempted() == {A: deferred("smtp", "4.3.0", 451), B: failed("smtp", "5.1.1", 550)}
        assert await mail.attempted_again() == {A: delivered(attempts=2), B: failed("smtp", "5.1.1", 550)}

    assert [message.recipients for message in exchanger.messages] == [(A,)]


@pytest.mark.rule("A31", "5xx at end-of-data: as A29")
async def test_a31_a_refusal_for_good_of_the_content_fails_the_accepted(world, extensions):
    """Row A31: it is spam to them."""
    script = {f"RCPT TO:<{B}>": "450 4.2.1 busy", "end of data": "554 5.7.1 spam"}
    seen, exchanger = await outcome(world, script, A, B, extensions=extensions)

    assert seen == {A: failed("smtp", "5.7.1", 554), B: deferred("smtp", "4.2.1", 450)}
    assert exchanger.messages == []


@pytest.mark.rule(
    "A32", "mixed RCPT 250/450/550 + 250 at end: V / D / F each with its own reply; retry holds only the D"
)
async def test_a32_each_recipient_has_its_own_outcome(world, extensions):
    """Row A32: the core of it all."""
    script = {f"RCPT TO:<{B}>": ["450 4.2.1 busy"], f"RCPT TO:<{C}>": "550 5.1.1 no such person"}
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B, C) as mail:
        assert await mail.attempted() == {
            A: delivered(),
            B: deferred("smtp", "4.2.1", 450),
            C: failed("smtp", "5.1.1", 550),
        }
        assert [(await mail.result(address)).reply.text for address in (A, B, C)] == [
            "Taken as 1",
            "busy",
            "no such person",
        ]
        assert await mail.attempted_again() == {
            A: delivered(),
            B: delivered(attempts=2),
            C: failed("smtp", "5.1.1", 550),
        }
        first, second = await mail.attempts()

    assert (first.recipients, second.recipients) == ((A, B, C), (B,))
    assert [message.recipients for message in exchanger.messages] == [(A,), (B,)]


@pytest.mark.rule("A33", "all RCPT refused: DATA not sent; each its own state; pipelined: 354 then a lone dot")
@pytest.mark.parametrize("data", [None, "354 go on", "503 5.5.1 no recipients"])
async def test_a33_all_recipients_are_refused(world, extensions, data):
    """Row A33: no content leaves us, and nothing is delivered, whatever the server makes of the dot."""
    script = {f"RCPT TO:<{A}>": "450 4.2.1 busy", f"RCPT TO:<{B}>": "550 5.1.1 no", "DATA": data}
    if data is not None and data.startswith("354"):
        script["end of data"] = "250 2.0.0 thanks for nothing"
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B) as mail:
        assert await mail.attempted() == {A: deferred("smtp", "4.2.1", 450), B: failed("smtp", "5.1.1", 550)}
        (attempt,) = await mail.attempts()

    assert not any("bytes of content" in line for line in attempt.transcript)
    assert ("DATA" in exchanger.sessions[0].commands) is (extensions is PIPELINED)


@pytest.mark.rule("A34", "552 at 2nd.. RCPT: as 452: in a further transaction now, no attempt charged; V")
async def test_a34_552_means_too_many_recipients(world, extensions):
    """Row A34: as RFC 821 called it."""
    limit = {"RCPT": lambda context: "552 5.5.3 too many recipients" if len(context.recipients) >= 2 else None}
    seen, exchanger = await outcome(world, limit, A, B, C, extensions=extensions)

    assert seen == {A: delivered(), B: delivered(), C: delivered()}
    assert [message.recipients for message in exchanger.messages] == [(A, B), (C,)]


@pytest.mark.rule("A34", "552 at the only RCPT: never F for too many")
async def test_a34_552_for_a_single_recipient_defers(world, extensions):
    """Row A34: nothing tells it from "too many", so it is tried again."""
    seen, _ = await outcome(world, {"RCPT": ["552 5.2.2 full"]}, A, extensions=extensions)

    assert seen == {A: deferred("smtp", "5.2.2", 552)}


@pytest.mark.rule("A35", "452 after n RCPT: the n are V now; the rest at once in further transactions; one attempt")
async def test_a35_452_means_another_transaction_now(world, extensions):
    """Row A35: on the same session, with no attempt charged."""
    limit = {"RCPT": lambda context: "452 4.5.3 too many recipients" if context.recipients else None}
    exchanger = await world.exchanger(limit, extensions=extensions)
    async with world.sent(A, B, C, D) as mail:
        assert await mail.attempted() == {A: delivered(), B: delivered(), C: delivered(), D: delivered()}
        assert len(await mail.attempts()) == 1

    assert [message.recipients for message in exchanger.messages] == [(A,), (B,), (C,), (D,)]
    assert exchanger.connections == 1


@pytest.mark.rule("A35", "452 to everybody: D, no spin")
async def test_a35_452_to_everybody_defers(world, extensions):
    """Row A35: there is no point in another transaction now."""
    seen, exchanger = await outcome(world, {"RCPT": "452 4.2.2 full"}, A, B, extensions=extensions)

    assert seen == {A: deferred("smtp", "4.2.2", 452), B: deferred("smtp", "4.2.2", 452)}
    assert exchanger.sessions[0].transactions == 1


@pytest.mark.rule("A41", "421 at n-th RCPT, then close: recorded results kept (5xx = F), all others D 421")
async def test_a41_a_server_that_goes_in_the_middle_of_the_recipients(world, extensions):
    """Row A41: the one refused for good stays refused; the one accepted before waits like the rest."""
    script = {
        f"RCPT TO:<{B}>": "550 5.1.1 no such person",
        f"RCPT TO:<{C}>": [Reply("421 4.3.2 going down", then=Close())],
    }
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B, C, D) as mail:
        gone = deferred("smtp", "4.3.2", 421)
        refused = failed("smtp", "5.1.1", 550)
        assert await mail.attempted() == {A: gone, B: refused, C: gone, D: gone}
        again = delivered(attempts=2)
        assert await mail.attempted_again() == {A: again, B: refused, C: again, D: again}

    assert [message.recipients for message in exchanger.messages] == [(A, C, D)]


@pytest.mark.rule("A42", "550 at MAIL or RCPT and immediate close: F by the reply, not D by the read error")
@pytest.mark.parametrize("moment", ["MAIL", "RCPT"])
@pytest.mark.parametrize("then", [Close(), Reset()])
async def test_a42_a_refusal_counts_though_the_connection_is_closed(world, moment, then):
    """Row A42: the reply came first. (Pipelined, a reset may destroy it in the kernel before anybody can read it.)"""
    seen, _ = await outcome(world, {moment: Reply("550 5.7.1 go away", then=then)}, A, extensions=OFFERS)

    assert seen == {A: failed("smtp", "5.7.1", 550)}


@pytest.mark.rule("A42", "550 at RCPT and immediate close, pipelined: F; who was not reached D")
async def test_a42_a_refusal_counts_in_a_group(world):
    """Row A42: the second recipient has no reply."""
    script = {"RCPT": Reply("550 5.7.1 go away", then=Close())}
    seen, _ = await outcome(world, script, A, B, extensions=PIPELINED)

    assert seen == {A: failed("smtp", "5.7.1", 550), B: deferred("network", "4.4.2")}


HOSTILE = b"550 5.1.1 \xff\xfe\x00caf\xc3\xa9 \x1b[31mred\x1b[0m\x07 a\rb \xe2\x80\xae\xc2\x85nel \xed\xa0\x80\r\n"


@pytest.mark.rule(
    "A43", "non-UTF-8, NUL, control characters, ANSI in reply text: stored as printable text; log not forged"
)
@pytest.mark.parametrize("moment", ["greeting", "MAIL", "RCPT", "end of data"])
async def test_a43_hostile_text_is_made_safe(world, moment, caplog):
    """Row A43: in the status, the attempt, its transcript and the log."""
    await world.exchanger({moment: Raw(HOSTILE)})
    with caplog.at_level("DEBUG"):
        async with world.sent(A) as mail:
            await mail.attempted()
            result = await mail.result()
            status = (await mail.status()).model_dump_json()
            (attempt,) = await mail.attempts()

    assert "caf\u00e9" in result.reply.text
    json.loads(status).keys()
    assert result.reply.text.isprintable()
    assert result.reason.isprintable()
    assert all(line.isprintable() for line in attempt.transcript)
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name.startswith("mailstrom"))


NO_REPLIES = [b"999 x", b"25", b"+25 ok", b" 25 ok", b"2500 ok", b"abc", b"099 x", b"250x", b"250-a\r\n550 b"]


@pytest.mark.rule(
    "A44", "codes 999, 25, +25, ' 25', 2500, abc, 099: protocol error: D, connection dropped; never V or F"
)
@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("line", NO_REPLIES, ids=str)
async def test_a44_what_is_no_reply_decides_nothing(world, extensions, moment, line):
    """Row A44: nothing after it can be trusted to answer what we said."""
    seen, exchanger = await outcome(world, {moment: Raw(line + b"\r\n")}, A, extensions=extensions)

    assert seen == {A: deferred("protocol", "4.5.0")}
    assert exchanger.messages == []
    assert not exchanger.sessions[0].quit


@pytest.mark.rule("A44", "the same after the dot: D, outcome unknown")
@pytest.mark.parametrize("line", NO_REPLIES, ids=str)
async def test_a44_what_is_no_reply_to_the_dot_is_in_doubt(world, extensions, line):
    """Row A44: the server has the message, and may have taken it."""
    seen, _ = await outcome(world, {"end of data": Raw(line + b"\r\n")}, A, extensions=extensions)

    assert seen == {A: deferred("outcome_unknown", "4.4.2")}


@pytest.mark.rule("A45", "multiline with differing codes: D; never V if any line is 4xx/5xx")
@pytest.mark.parametrize("reply", [b"550-no\r\n250 yes\r\n", b"250-yes\r\n550 no\r\n", b"250-yes\r\n450 no\r\n"])
@pytest.mark.parametrize("moment", ["RCPT", "end of data"])
async def test_a45_a_reply_that_changes_its_mind(world, extensions, moment, reply):
    """Row A45: neither half is believed."""
    seen, exchanger = await outcome(world, {moment: Raw(reply)}, A, extensions=extensions)

    assert seen[A].state == "deferred"
    assert seen[A].cause == ("protocol" if moment == "RCPT" else "outcome_unknown")
    assert all(message.recipients == (A,) for message in exchanger.messages)


@pytest.mark.rule("A46", "550 2.1.5 / 250 5.1.1: basic code decides; enhanced becomes 5.0.0 / 2.0.0")
async def test_a46_a_status_that_contradicts_its_code(world, extensions):
    """Row A46: it stays in the text as a curiosity."""
    script = {f"RCPT TO:<{B}>": "550 2.1.5 fine", f"RCPT TO:<{C}>": "450 5.1.1 no", "end of data": "250 5.1.1 no"}
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.sent(A, B, C) as mail:
        assert await mail.attempted() == {
            A: delivered(),
            B: failed("smtp", "5.0.0", 550),
            C: deferred("smtp", "4.0.0", 450),
        }
        (attempt,) = await mail.attempts()
    assert attempt.outcome[A].enhanced == "2.0.0"
    assert attempt.outcome[B].reply.text == "2.1.5 fine"
    assert exchanger.received == 1


@pytest.mark.rule("A47", "250 or 220 to DATA in place of 354: protocol error: D, abort")
@pytest.mark.parametrize("reply", ["250 2.0.0 ok", "220 hello"])
async def test_a47_data_wants_354(world, extensions, reply):
    """Row A47: no content is sent to a server that does not ask for it."""
    seen, exchanger = await outcome(world, {"DATA": reply}, A, extensions=extensions)

    assert seen == {A: deferred("protocol", "4.5.0")}
    assert exchanger.messages == []
    assert not exchanger.sessions[0].quit


@pytest.mark.rule("A48", "354 at end-of-data: D")
async def test_a48_354_to_the_dot_delivers_nothing(world, extensions):
    """Row A48: the server wants more, and there is no more."""
    seen, _ = await outcome(world, {"end of data": "354 go on"}, A, extensions=extensions)

    assert seen == {A: deferred("protocol", "4.5.0")}


@pytest.mark.rule("A48", "2yz other than 250 at end-of-data: V")
@pytest.mark.parametrize("code", [200, 251, 252, 299])
async def test_a48_any_positive_reply_to_the_dot_delivers(world, extensions, code):
    """Row A48: the first digit decides."""
    seen, exchanger = await outcome(world, {"end of data": f"{code} ok"}, A, extensions=extensions)

    assert seen == {A: delivered(code)}
    assert exchanger.received == 1


@pytest.mark.rule("A49", "two replies in one segment (354 and 250, then 554): never V")
async def test_a49_a_reply_that_comes_before_the_dot_delivers_nothing(world, extensions):
    """Row A49: the 250 was sent before the server had the message."""
    script = {"DATA": Raw(b"354 go\r\n250 early\r\n"), "end of data": "554 no"}
    seen, exchanger = await outcome(world, script, A, extensions=extensions)

    assert seen == {A: deferred("protocol", "4.5.0")}
    assert exchanger.messages == []


@pytest.mark.rule("A49", "an extra reply never decides for the next recipient")
@pytest.mark.parametrize("extra", [b"250 ok\r\n250 again\r\n", b"250 ok\r\n550 no\r\n", b"250 ok\r\n450 no\r\n"])
@pytest.mark.parametrize("moment", ["MAIL", f"RCPT TO:<{A}>"])
@pytest.mark.parametrize("refused", ["550 5.1.1 no", None])
async def test_a49_a_reply_too_many_decides_for_nobody(world, extensions, moment, extra, refused):
    """Row A49: in whatever segments the replies come, nobody fails by a reply that was another's."""
    script = {moment: Raw(extra), f"RCPT TO:<{B}>": refused}
    seen, exchanger = await outcome(world, script, A, B, C, extensions=extensions)

    assert {state.state for state in seen.values()} == {"deferred"}
    assert exchanger.messages == []


@pytest.mark.rule("A50", "unsolicited 421 between commands: session over; D for what was not yet acknowledged")
async def test_a50_a_farewell_between_commands(world):
    """Row A50: it came behind the reply to a recipient. Who was refused before stays refused."""
    script = {f"RCPT TO:<{A}>": "550 5.1.1 no", f"RCPT TO:<{B}>": Raw(b"250 2.1.5 ok\r\n421 4.3.2 going down\r\n")}
    seen, exchanger = await outcome(world, script, A, B, C, extensions=OFFERS)

    gone = deferred("smtp", "4.3.2", 421)
    assert seen == {A: failed("smtp", "5.1.1", 550), B: gone, C: gone}
    assert exchanger.messages == []


@pytest.mark.rule("A50", "unsolicited 421 behind the reply to the dot: V; the next message over a new session")
async def test_a50_a_farewell_after_the_message_was_taken(world, extensions):
    """Row A50: what was acknowledged is delivered."""
    script = {"end of data": Raw(b"250 2.0.0 taken\r\n421 4.3.2 going down\r\n")}
    exchanger = await world.exchanger(script, extensions=extensions)
    async with world.mailer() as mailer:
        for _ in range(2):
            mail = await world.send(mailer, A)
            assert await mail.attempted() == {A: delivered()}

    assert exchanger.connections == exchanger.received == 2


@pytest.mark.rule("A51", "SIZE smaller than the message: no DATA; F 5.3.4")
async def test_a51_a_message_that_is_too_big_is_not_sent(world, extensions):
    """Row A51: the server said so in its reply to EHLO."""
    small = [*(name for name in extensions if not name.startswith("SIZE")), "SIZE 100"]
    seen, exchanger = await outcome(world, {}, A, extensions=small)

    assert seen == {A: failed("policy", "5.3.4")}
    assert not any(command.startswith("MAIL") for command in exchanger.sessions[0].commands)


@pytest.mark.rule("A51", "SIZE smaller than the message, other MX allows more: V")
async def test_a51_a_message_that_is_too_big_for_one_goes_to_another(world):
    """Row A51: in the same attempt."""
    first, second = await world.exchangers(None, None)
    first.extensions[:] = ["PIPELINING", "SIZE 100"]
    async with world.sent(A) as mail:
        assert await mail.attempted() == {A: delivered()}
        assert (await mail.result()).host == MX2
        (attempt,) = await mail.attempts()

    assert attempt.host == MX2
    assert (first.received, second.received) == (0, 1)


@pytest.mark.rule("A52", "552 at MAIL or at end-of-data for size: F")
@pytest.mark.parametrize("moment", ["MAIL", "end of data"])
async def test_a52_552_for_the_size_fails(world, extensions, moment):
    """Row A52: at RCPT it means something else (row A34)."""
    seen, exchanger = await outcome(world, {moment: "552 5.3.4 too big"}, A, extensions=extensions)

    assert seen == {A: failed("smtp", "5.3.4", 552)}
    assert exchanger.messages == []


@pytest.mark.rule("A53", "no 8BITMIME, 8-bit content: sent as 7-bit, prepared so from the start")
async def test_a53_content_is_seven_bit(world):
    """Row A53: whatever the server offers."""
    exchanger = await world.exchanger(extensions=())
    email = Email(from_="a@example.org", to=A, subject="Grüße", text="Schöne Grüße\n")
    async with world.sent(email=email) as mail:
        assert await mail.attempted() == {A: delivered()}

    (message,) = exchanger.messages
    assert message.content.isascii()
    assert message.email.get_content() == "Schöne Grüße\r\n"
    assert exchanger.violations == []


EIGHT_BIT = "From: a@example.org\r\nTo: a@example.net\r\nSubject: x\r\n\r\nGrüße\r\n".encode()


@pytest.mark.rule(
    "A53", "8-bit bytes of the caller's: sent as they are with BODY=8BITMIME, else other MX, else F 5.6.3"
)
@pytest.mark.parametrize(("first", "second"), [(True, None), (False, True), (False, False)])
async def test_a53_eight_bit_bytes_need_an_offer(world, first, second):
    """Row A53: they are the caller's, perhaps signed, and not rewritten."""
    servers = await world.exchangers(None, *([] if second is None else [None]))
    for server, offers in zip(servers, (first, second), strict=False):
        server.extensions[:] = ["8BITMIME"] if offers else []
    async with world.sent(A, email=EIGHT_BIT) as mail:
        seen = await mail.attempted()

    taken = [message for server in servers for message in server.messages]
    if first or second:
        assert seen == {A: delivered()}
        assert "BODY=8BITMIME" in taken[0].mail_options
        assert "Grüße".encode() in taken[0].content
    else:
        assert seen == {A: failed("policy", "5.6.3")}
        assert taken == []


@pytest.mark.rule("A54", "no SMTPUTF8, non-ASCII local part: other MX, else F 5.6.7")
@pytest.mark.parametrize(("first", "second"), [(True, None), (False, True), (False, False)])
async def test_a54_a_non_ascii_address_needs_an_offer(world, first, second):
    """Row A54: there is no other way to write it."""
    servers = await world.exchangers(None, *([] if second is None else [None]))
    for server, offers in zip(servers, (first, second), strict=False):
        server.extensions[:] = ["SMTPUTF8", "8BITMIME"] if offers else ["8BITMIME"]
    jorg = f"jörg@{DOMAIN}"
    async with world.sent(jorg) as mail:
        seen = await mail.attempted()

    taken = [message for server in servers for message in server.messages]
    if first or second:
        assert seen == {jorg: delivered()}
        assert "SMTPUTF8" in taken[0].mail_options
        assert taken[0].recipients == (jorg,)
    else:
        assert seen == {jorg: failed("policy", "5.6.7")}
        assert taken == []


@pytest.mark.rule("A54", "domain alone non-ASCII: A-label, V")
async def test_a54_a_non_ascii_domain_needs_nothing(world):
    """Row A54: its A-label goes out."""
    exchanger = await world.internet.exchanger("mx.xn--bcher-kva.example", extensions=())
    world.internet.domain("xn--bcher-kva.example.com", mx=["mx.xn--bcher-kva.example"])
    async with world.sent("ada@bücher.example.com") as mail:
        assert await mail.attempted() == {"ada@xn--bcher-kva.example.com": delivered()}

    assert exchanger.messages[0].recipients == ("ada@xn--bcher-kva.example.com",)
    assert exchanger.messages[0].mail_options == ()


@pytest.mark.rule("A57", "replies with bare LF: read as lines")
async def test_a57_replies_with_bare_line_feeds(world, extensions):
    """Row A57: old servers send them."""
    script = {
        "greeting": Raw(b"220 mx\n"),
        "MAIL": Raw(b"250-2.1.0 ok\n250 2.1.0 go on\n"),
        "RCPT": Raw(b"250 ok\n"),
        "end of data": Raw(b"250 2.0.0 taken\n"),
    }
    seen, exchanger = await outcome(world, script, A, extensions=extensions)

    assert seen == {A: delivered()}
    assert exchanger.received == 1


@pytest.mark.rule("A32", "recipients of several domains at one site share a transaction; each its own state")
async def test_a32_recipients_of_several_domains_at_one_site_share_a_transaction(world, extensions):
    """Row A32: one copy of the content for all of them, on the way to each of which the same exchanger lies."""
    x, y = "x@one.example.com", "y@two.example.com"
    exchanger = await world.exchanger({f"RCPT TO:<{x}>": [None, "450 4.2.1 busy"]}, extensions=extensions)
    for domain in (DOMAIN, "one.example.com", "two.example.com"):
        world.internet.dns.records[domain] = {"MX": Records(f"10 {MX1}", ttl=600)}
    world.internet.dns.records[MX1] = {"A": Records(exchanger.host, ttl=600)}
    async with world.mailer() as mailer:
        for address in (A, x, y):  # their routes are known from now on
            mail = await world.send(mailer, address)
            assert await mail.attempted() == {address: delivered()}
        mail = await world.send(mailer, A, x, y)
        assert await mail.attempted() == {A: delivered(), x: deferred("smtp", "4.2.1", 450), y: delivered()}
        assert await mail.attempted_again() == {A: delivered(), x: delivered(attempts=2), y: delivered()}
        attempts = await mail.attempts()

    assert [message.recipients for message in exchanger.messages[3:]] == [(A, y), (x,)]
    assert sorted(attempt.destination for attempt in attempts) == [DOMAIN, *["one.example.com"] * 2, "two.example.com"]
