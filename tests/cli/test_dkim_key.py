"""`mailstrom-async dkim-key`."""

import re
import stat

from mailstrom_async import DKIMKey
from mailstrom_async._message.dkim_keys import load_signer


async def test_a_key_is_made_and_its_record_printed(command):
    """The key is for the owner's eyes only, and signs; the record has strings that a zone file takes."""
    ended = await command("dkim-key", "Example.org", "s2026")
    path = command.folder / "s2026.example.org.pem"
    signer = load_signer(DKIMKey(domain="example.org", selector="s2026", private_key=path))

    assert ended.status == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signer.algorithm == "rsa-sha256"
    record = re.fullmatch(r's2026\._domainkey\.example\.org\. IN TXT \( ("[^"]{1,255}" "[^"]{1,255}") \)\n', ended.out)
    assert record
    assert re.fullmatch(r'"v=DKIM1; k=rsa; p=[A-Za-z0-9+/=]+"', record[1].replace('" "', ""))
    assert 'DKIMKey(domain="example.org", selector="s2026", private_key="s2026.example.org.pem")' in ended.err
    assert "BEGIN" not in ended.out + ended.err


async def test_an_ed25519_key_has_a_short_record(command):
    """RFC 8463."""
    ended = await command("dkim-key", "example.org", "e", "--type", "ed25519", "--out", "key.pem")

    assert re.search(r'\( "v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}=" \)$', ended.out)
    assert load_signer(DKIMKey(domain="example.org", selector="e", private_key=command.folder / "key.pem"))


async def test_an_old_key_is_never_overwritten(command):
    """Mail that it signed may still be on its way."""
    (command.folder / "s.example.org.pem").write_text("old")
    ended = await command("dkim-key", "example.org", "s")

    assert ended.status == 1
    assert "exists; take another selector" in ended.err
    assert (command.folder / "s.example.org.pem").read_text() == "old"


async def test_a_wrong_name_is_told(command):
    """In one line, and nothing is written."""
    ended = await command("dkim-key", "bad domain", "s")

    assert ended.status == 2
    assert "'bad domain' is not a host name" in ended.err
    assert list(command.folder.iterdir()) == []
