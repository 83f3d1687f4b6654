"""From MAIL to the reply after the dot: every recipient gets its own outcome from its own reply."""

from datetime import timedelta

import pytest

from mailstrom_async._reply import Phase
from mailstrom_async.testing import Close, Hang, Raw, Reply, Reset, SMTPServer

A, B, C = "a@example.test", "b@example.test", "c@example.test"


def decided(result) -> dict[str, tuple[Phase, int]]:
    return {recipient: (phase, reply.code) for recipient, (phase, reply) in result.decided.items()}


async def test_a_message_reaches_its_recipients(client, extensions):
    """Byte for byte, with one reply for all; and the session is ready for the next."""
    content = b"Subject: Dots\r\n\r\n.\r\n..\r\n.leading\r\n\r\nend"
    async with SMTPServer(extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(content), [A, B])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250), B: (Phase.END_OF_DATA, 250)}
        assert result.decided[A].reply.host == "mx.example.test"
        assert (result.breakdown, result.postponed, result.untouched) == (None, (), False)
        assert (session.usable, session.transactions, session.in_doubt) == (True, 1, False)
        assert server.messages[0].recipients == (A, B)
        assert server.messages[0].content == content + b"\r\n"
        assert server.violations == []


async def test_commands_go_out_in_one_group_if_the_server_offers_it(client):
    """RFC 2920: one round trip for the envelope."""
    async with SMTPServer() as server:
        session = await client.connect(server)
        await session.transact(client.message(), [A, B, C])

        assert server.sessions[0].pipelined == 4


async def test_commands_go_out_one_by_one_if_it_does_not(client):
    """Without PIPELINING each waits for its reply."""
    async with SMTPServer(extensions=["8BITMIME"]) as server:
        session = await client.connect(server)
        await session.transact(client.message(), [A, B, C])

        assert server.sessions[0].pipelined == 0
        assert server.messages[0].recipients == (A, B, C)


async def test_the_transcript_tells_what_was_said(client, extensions):
    """Commands and replies in turn, without content; and only of the last transaction."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no such user"}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        await session.transact(client.message(b"Subject: first\r\n\r\nsecret words\r\n"), ["x@example.test"])
        await session.transact(client.message(b"Subject: second\r\n\r\nsecret words\r\n"), [A, B])

    assert session.transcript == (
        "C: MAIL FROM:<sender@example.org> SIZE=33",
        "S: 250 2.1.0 Sender accepted",
        f"C: RCPT TO:<{A}>",
        "S: 250 2.1.5 Recipient accepted",
        f"C: RCPT TO:<{B}>",
        "S: 550 5.1.1 no such user",
        "C: DATA",
        "S: 354 End with a dot on a line by itself",
        "C: (33 bytes of content)",
        "S: 250 2.0.0 Taken as 2",
    )


async def test_the_transcript_is_bounded(client):
    """However many recipients, and however long what is said about them."""
    async with SMTPServer({"RCPT": "550 " + "x" * 1900}) as server:
        session = await client.connect(server)
        await session.transact(client.message(), [f"r{n}@example.test" for n in range(100)])

    assert len(session.transcript) == 50
    assert max(len(line) for line in session.transcript) == 300


@pytest.mark.parametrize("code", [451, 550])
async def test_a_refusal_at_mail_concerns_everybody(client, extensions, code):
    """Rows A24 and A25."""
    async with SMTPServer({"MAIL": f"{code} 5.1.8 bad sender"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == {A: (Phase.MAIL, code), B: (Phase.MAIL, code)}
        assert result.breakdown is None
        assert session.usable
        assert server.messages == []


@pytest.mark.parametrize("code", [450, 550])
async def test_a_refusal_at_rcpt_concerns_that_recipient(client, extensions, code):
    """Rows A26 and A27."""
    async with SMTPServer({f"RCPT TO:<{B}>": f"{code} no"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B, C])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250), B: (Phase.RCPT, code), C: (Phase.END_OF_DATA, 250)}
        assert server.messages[0].recipients == (A, C)


@pytest.mark.parametrize("code", [251, 252])
async def test_any_positive_reply_accepts_a_recipient(client, extensions, code):
    """251 and 252 are yes, too."""
    async with SMTPServer({"RCPT": f"{code} will try"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}


@pytest.mark.parametrize("code", [451, 554])
@pytest.mark.parametrize(("moment", "phase"), [("DATA", Phase.DATA), ("end of data", Phase.END_OF_DATA)])
async def test_a_refusal_of_the_content_concerns_those_who_were_accepted(client, extensions, moment, phase, code):
    """Rows A28 to A31: who was refused before stays refused by that reply."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", moment: f"{code} not this"}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == {A: (phase, code), B: (Phase.RCPT, 550)}
        assert session.usable


async def test_each_recipient_has_its_own_outcome(client, extensions):
    """Row A32: delivered, deferred and failed in one transaction."""
    script = {f"RCPT TO:<{B}>": "450 4.2.1 later", f"RCPT TO:<{C}>": "550 5.1.1 never"}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B, C])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250), B: (Phase.RCPT, 450), C: (Phase.RCPT, 550)}
        assert [result.decided[r].reply.enhanced for r in (A, B, C)] == ["2.0.0", "4.2.1", "5.1.1"]
        assert server.messages[0].recipients == (A,)


@pytest.mark.parametrize("data", [None, "354 go on then", "354 go\nwith two lines"])
async def test_nothing_is_sent_if_all_recipients_are_refused(client, extensions, data):
    """Row A33: no DATA, or, where it was sent with its group and answered 354, a lone dot."""
    script = {f"RCPT TO:<{A}>": "450 later", f"RCPT TO:<{B}>": "550 never", "DATA": data}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == {A: (Phase.RCPT, 450), B: (Phase.RCPT, 550)}
        assert result.breakdown is None
        assert session.usable
        assert all(message.content == b"" for message in server.messages)
        assert ("DATA" in server.sessions[0].commands) == ("PIPELINING" in extensions)

        del server.script[f"RCPT TO:<{A}>"]
        server.script["DATA"] = None
        result = await session.transact(client.message(), [A])
        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}
        assert server.violations == []


@pytest.mark.parametrize("code", [452, 552])
async def test_too_many_recipients_are_postponed(client, extensions, code):
    """Rows A34 and A35: those taken are served now; the rest may follow in another transaction at once."""
    async with SMTPServer(
        {"RCPT #2": f"{code} too many", "RCPT #3": f"{code} too many"}, extensions=extensions
    ) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B, C])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}
        assert result.postponed == (B, C)
        assert result.breakdown is None

        result = await session.transact(client.message(), list(result.postponed))
        assert decided(result) == {B: (Phase.END_OF_DATA, 250)}
        assert result.postponed == (C,)


@pytest.mark.parametrize("code", [452, 552])
async def test_the_first_recipient_is_never_one_too_many(client, extensions, code):
    """Rows A34 and A35: then it is about this recipient, or about the server's disk."""
    async with SMTPServer({f"RCPT TO:<{A}>": f"{code} full"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == {A: (Phase.RCPT, code), B: (Phase.END_OF_DATA, 250)}
        assert result.postponed == ()


async def test_a_server_that_goes_in_the_middle_of_the_recipients(client, extensions):
    """Row A41: what was refused before stays refused; 421 concerns all others."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", f"RCPT TO:<{C}>": Reply("421 4.3.2 going down", then=Close())}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B, C, "d@example.test"])

        assert decided(result) == {B: (Phase.RCPT, 550)}
        assert result.breakdown.reply.code == 421
        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.RCPT, "network")
        assert not result.untouched
        assert not session.usable
        assert server.messages == []


@pytest.mark.parametrize("moment", ["MAIL", "DATA", "end of data"])
async def test_a_server_that_goes(client, extensions, moment):
    """421 concerns all that is not decided, wherever it comes; the session is over."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", moment: "421 4.3.2 going down"}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == ({} if moment == "MAIL" else {B: (Phase.RCPT, 550)})
        assert result.breakdown.reply.code == 421
        assert not session.usable
        assert not session.in_doubt


@pytest.mark.parametrize("then", [Close(), Reset()])
@pytest.mark.parametrize(("moment", "phase"), [("MAIL", Phase.MAIL), ("RCPT", Phase.RCPT)])
async def test_a_refusal_counts_though_the_connection_is_lost_with_it(client, extensions, moment, phase, then):
    """Row A42: some say no and hang up at once."""
    async with SMTPServer({moment: Reply("550 5.7.1 go away", then=then)}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (phase, 550)}
        assert result.breakdown is None


@pytest.mark.parametrize("line", [b"999 x", b"25", b"+25 x", b" 25 x", b"2500 x", b"abc", b"099 x", b"250-a\r\n550 b"])
@pytest.mark.parametrize("moment", ["MAIL", "RCPT", "DATA", "end of data"])
async def test_what_is_no_reply_decides_nothing(client, extensions, moment, line):
    """Rows A44 and A45: nobody is delivered or failed by it, and the connection is dropped."""
    script = {f"RCPT TO:<{B}>": "550 5.1.1 no", moment: Raw(line + b"\r\n")}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert A not in result.decided
        assert result.breakdown.cause == ("outcome_unknown" if moment == "end of data" else "protocol")
        assert result.breakdown.reply is None
        assert not session.usable


async def test_a_status_that_contradicts_its_code(client, extensions):
    """Row A46: the code decides."""
    async with SMTPServer({"RCPT": "550 2.1.5 well"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.RCPT, 550)}
        assert result.decided[A].reply.enhanced is None


@pytest.mark.parametrize("reply", ["250 fine", "220 hello", "350 hm"])
async def test_data_wants_354(client, extensions, reply):
    """Row A47: no content goes out, and what was said before may be off by one, too."""
    async with SMTPServer({f"RCPT TO:<{B}>": "550 no", "DATA": reply}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == {}
        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.DATA, "protocol")
        assert not session.usable
        assert server.messages == []


@pytest.mark.parametrize("moment", ["MAIL", "RCPT"])
async def test_354_answers_nothing_but_data(client, extensions, moment):
    """A reply of 3yz is neither yes nor no."""
    async with SMTPServer({moment: "354 go"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {}
        assert result.breakdown.cause == "protocol"


@pytest.mark.parametrize("code", [200, 250, 251, 252, 299])
async def test_any_positive_reply_to_the_dot_delivers(client, extensions, code):
    """Row A48: the first digit says it all."""
    async with SMTPServer({"end of data": f"{code} taken"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.END_OF_DATA, code)}
        assert session.usable


async def test_354_to_the_dot_delivers_nothing(client, extensions):
    """Row A48."""
    async with SMTPServer({"end of data": "354 more please"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {}
        assert (result.breakdown.phase, result.breakdown.cause) == (Phase.END_OF_DATA, "protocol")
        assert not session.usable


async def test_a_reply_that_comes_before_the_dot_delivers_nothing(client, extensions):
    """Row A49: "354 go, 250 early" in one segment, and the truth after the dot."""
    script = {"DATA": Raw(b"354 go\r\n250 early\r\n"), "end of data": "554 5.7.1 spam"}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {}
        assert result.breakdown.cause == "protocol"
        assert server.messages == []


async def test_a_reply_too_many_does_not_fail_the_next_recipient(client, extensions):
    """Row A49: "250 fine, 550 no" to one recipient."""
    script = {f"RCPT TO:<{A}>": Raw(b"250 fine\r\n550 no\r\n")}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

        assert decided(result) == {}
        assert result.breakdown.cause == "protocol"
        assert server.messages == []


@pytest.mark.parametrize("data", [b"354 go\r\n", b"503 no recipients\r\n"])
async def test_a_reply_too_many_does_not_move_a_refusal_to_data(client, raw_server, data):
    """Row A49: however the replies are cut into segments. Here B's refusal comes where DATA's reply should be."""

    async def serve(reader, writer):
        writer.write(b"220 mx\r\n")
        await reader.readline()
        writer.write(b"250-mx\r\n250 PIPELINING\r\n")
        for reply in (b"250 MAIL\r\n250 again\r\n", b"250 A\r\n", b"550 B\r\n", b""):
            assert await reader.readline()
            writer.write(reply)
        assert await reader.readline() == b"RSET\r\n"
        writer.write(data)
        await reader.read()

    async with raw_server(serve).running() as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A, B])

    assert result.decided == {}
    assert result.breakdown.cause == "protocol"


@pytest.mark.parametrize("then", [Close(), Reset(), Hang()])
async def test_a_refusal_of_data_stands_though_the_connection_is_lost_behind_it(client, then):
    """Row A42: only what comes in the place of a reply to RSET could revoke it."""
    async with SMTPServer({"DATA": Reply("554 5.7.1 no"), "RSET": then}) as server:
        session = await client.connect(server, timeouts={"command": timedelta(seconds=0.2)})
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.DATA, 554)}
        assert not session.usable


async def test_two_replies_to_the_dot_are_no_yes(client, extensions):
    """Row A49: which of them is about this message nobody knows."""
    script = {"end of data": Raw(b"250 early\r\n554 5.7.1 spam\r\n")}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {}
        assert result.breakdown.cause == "outcome_unknown"


async def test_a_server_may_go_right_after_it_took_the_message(client, extensions):
    """Row A50: "250 taken, 421 going down" is a delivery."""
    script = {"end of data": Raw(b"250 taken\r\n421 4.3.2 going down\r\n")}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}
        assert result.breakdown is None
        assert not session.usable


async def test_a_message_that_is_too_big_is_not_sent(client):
    """Row A51: the limit is known since EHLO (RFC 1870). Another host may allow more."""
    async with SMTPServer(extensions=["PIPELINING", "SIZE 100"]) as server:
        session = await client.connect(server)
        fits = await session.transact(client.message(b"x" * 98 + b"\r\n"), [A])
        result = await session.transact(client.message(b"x" * 99 + b"\r\n"), [A])

        assert decided(fits) == {A: (Phase.END_OF_DATA, 250)}
        assert decided(result) == {}
        assert (result.breakdown.cause, result.breakdown.enhanced) == ("policy", "5.3.4")
        assert result.breakdown.reason == f"{session.target} takes messages of at most 100 bytes, and this one has 101"
        assert session.usable
        assert len([line for line in server.sessions[0].commands if line.startswith("MAIL")]) == 1


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE lots", "size 1000000"])
async def test_a_size_without_a_limit_limits_nothing(client, size):
    """RFC 1870: 0 or nothing."""
    async with SMTPServer(extensions=[size]) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}
        assert server.messages[0].mail_options == ("SIZE=25",)


@pytest.mark.parametrize(("moment", "phase"), [("MAIL", Phase.MAIL), ("end of data", Phase.END_OF_DATA)])
async def test_552_for_the_size(client, extensions, moment, phase):
    """Row A52: at MAIL and after the dot it is about the message."""
    async with SMTPServer({moment: "552 5.3.4 too big"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (phase, 552)}


@pytest.mark.parametrize(("offers", "fine"), [((), False), (("8BITMIME",), True)])
async def test_eight_bit_content_needs_an_offer(client, offers, fine):
    """Row A53: content is 7-bit clean, but for what a caller hands in whole."""
    message = client.message("Subject: é\r\n\r\n".encode(), eight_bit=True)
    async with SMTPServer(extensions=offers) as server:
        session = await client.connect(server)
        result = await session.transact(message, [A])

        assert (decided(result) == {A: (Phase.END_OF_DATA, 250)}) is fine
        if fine:
            assert server.messages[0].mail_options == ("BODY=8BITMIME",)
        else:
            assert (result.breakdown.cause, result.breakdown.enhanced) == ("policy", "5.6.3")
            assert "8BITMIME" in result.breakdown.reason
        assert session.usable
        assert server.violations == []


@pytest.mark.parametrize(("offers", "fine"), [((), False), (("8BITMIME", "SMTPUTF8"), True)])
async def test_a_non_ascii_address_needs_an_offer(client, offers, fine):
    """Row A54 (RFC 6531)."""
    message = client.message(sender="dösender@example.org", smtputf8=True)
    async with SMTPServer(extensions=offers) as server:
        session = await client.connect(server)
        result = await session.transact(message, ["ädä@example.test"])

        if fine:
            assert decided(result) == {"ädä@example.test": (Phase.END_OF_DATA, 250)}
            assert server.messages[0].mail_options == ("SMTPUTF8",)
            assert server.messages[0].sender == "dösender@example.org"
            assert server.messages[0].recipients == ("ädä@example.test",)
        else:
            assert (result.breakdown.cause, result.breakdown.enhanced) == ("policy", "5.6.7")
            assert "SMTPUTF8" in result.breakdown.reason
        assert server.violations == []


async def test_replies_with_bare_line_feeds(client, extensions):
    """Row A57."""
    script = {"MAIL": Raw(b"250-2.1.0 yes\n250 2.1.0 indeed\n"), "end of data": Raw(b"250 2.0.0 taken\n")}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}


async def test_a_server_that_wants_tls_first(client, extensions):
    """Row A62: said at MAIL."""
    async with SMTPServer({"MAIL": "530 5.7.0 Must issue STARTTLS first"}, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

        assert decided(result) == {A: (Phase.MAIL, 530)}


async def test_hostile_text_is_safe_in_every_reply(client, extensions):
    """Row A43: in a recipient's reply and in the transcript."""
    script = {"RCPT": Raw(b"550 no\x00\x1b[31m \xff\xe2\x80\xae\r\n")}
    async with SMTPServer(script, extensions=extensions) as server:
        session = await client.connect(server)
        result = await session.transact(client.message(), [A])

    assert result.decided[A].reply.text == "no\ufffd\ufffd[31m \ufffd\ufffd"
    assert all(line.isprintable() for line in session.transcript)


@pytest.mark.parametrize(
    "sender", ["", "s@example.org", '"a b"@example.org', "a+b=c'{}|~@example.org", "-a@example.org"]
)
async def test_addresses_go_out_as_they_are(client, extensions, sender):
    """Rows D8: the null sender, quoted local parts and odd characters."""
    recipient = '"x> y\\""@example.test'
    async with SMTPServer(extensions=extensions) as server:
        session = await client.connect(server)
        await session.transact(client.message(sender=sender), [recipient])

        assert (server.messages[0].sender, server.messages[0].recipients) == (sender, (recipient,))


BAD_ADDRESSES = [
    "a@example.test\r\nDATA",
    "a@example.test\n",
    "a\x00@example.test",
    "a@example.test> SIZE=1",
    "a b@example.test",
    "<a@example.test>",
    "a@b@example.test",
    '"a\r\nb"@example.test',
    '"a"b"@example.test',
    "example.test",
    "@example.test",
    "a@",
    "",
    "ädä@example.test",
    "a\udc80@example.test",
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
async def test_an_address_that_could_be_a_command_is_never_written(client, extensions, address):
    """Rows D5 to D7, once more: nothing of the transaction goes out."""
    async with SMTPServer(extensions=extensions) as server:
        session = await client.connect(server)
        with pytest.raises(ValueError, match=r"SMTP command|codec can't encode"):
            await session.transact(client.message(), [A, address])
        if address:
            with pytest.raises(ValueError, match=r"SMTP command|codec can't encode"):
                await session.transact(client.message(sender=address), [A])

        assert session.usable
        assert session.transactions == 0
        result = await session.transact(client.message(), [A])
        assert decided(result) == {A: (Phase.END_OF_DATA, 250)}
        assert len(server.sessions[0].commands) == 4
