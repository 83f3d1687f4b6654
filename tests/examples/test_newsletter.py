"""examples/newsletter.py, run as its first lines say."""

import dkim

from mailstrom_async._message.dkim_keys import new_key

from .conftest import EXAMPLES


async def test_each_reader_gets_a_signed_copy(run, internet, tmp_path):
    """With an unsubscribe URL of its own, and nothing for bulk_problems to tell."""
    key = new_key("rsa")
    path = tmp_path / "news.example.org.pem"
    path.write_text(key.pem.get_secret_value())
    status, out = await run(f"{EXAMPLES}/newsletter.py", str(path), "ada@example.net", "bob@example.net")

    assert (status, out) == (0, "ada@example.net: delivered\nbob@example.net: delivered\n")
    received = internet.exchangers["mx.example.net"].messages
    assert [message.recipients for message in received] == [("ada@example.net",), ("bob@example.net",)]
    assert len({message.email["List-Unsubscribe"] for message in received}) == 2
    for message in received:
        assert dkim.verify(message.content, dnsfunc=lambda *_, **__: key.record.encode())
        assert message.email["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert [part.get_filename() for part in message.email.iter_attachments()] == ["catalogue.pdf"]
