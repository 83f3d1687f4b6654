"""DKIM: what is signed, and that others verify it."""

import base64
import hashlib
import re
from datetime import UTC, datetime

import dkim as dkimpy
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from mailstrom_async import Config, DKIMKey, DKIMKeyError
from mailstrom_async._message import dkim, lines
from mailstrom_async._message.dkim import (
    Signer,
    author_domain,
    hash_of_body,
    relaxed_fields,
    sign,
    signed_names,
    signers_for,
)
from mailstrom_async._message.dkim_keys import load_signer, new_key

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RSA, ED25519 = new_key("rsa"), new_key("ed25519")
RECORDS = {b"rsa._domainkey.example.org.": RSA.record, b"ed._domainkey.example.org.": ED25519.record}
SIGNERS = [
    load_signer(DKIMKey(domain="example.org", selector="rsa", private_key=RSA.pem)),
    load_signer(DKIMKey(domain="example.org", selector="ed", private_key=ED25519.pem)),
]
MESSAGE = (
    b"From: Ada <ada@example.org>\r\nTo: bob@example.net\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n folded\r\n"
    b"List-Unsubscribe: <https://example.org/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nHello  \r\n\r\n\t two\r\n\r\n\r\n"
)


def verified(content: bytes) -> list[bool]:
    """Whether each signature is good, as dkimpy sees it."""
    count = len(re.findall(rb"(?im)^dkim-signature:", content))
    return [is_good(dkimpy.DKIM(content), index) for index in range(count)]


def is_good(judge: dkimpy.DKIM, index: int) -> bool:
    try:
        return judge.verify(idx=index, dnsfunc=lambda name, **_: RECORDS.get(name, "").encode())
    except dkimpy.ValidationError:  # it says so where the body differs, or a field is there twice
        return False


def test_both_signatures_are_verified_by_another_implementation():
    """RSA for everybody, Ed25519 for those who know it."""
    signed = sign(MESSAGE, SIGNERS, NOW)

    assert signed.endswith(MESSAGE)
    assert verified(signed) == [True, True]
    assert b"a=rsa-sha256" in signed
    assert b"a=ed25519-sha256" in signed
    assert max(map(len, signed.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n \t\r\n",
        b"x",
        b"x\r\n",
        b" x \t y\t\r\n\r\n",
        b".\r\n",
        b"a  b\r\n" * 100_000 + b"\r\n" * 100_000,
    ],
)
def test_any_body_verifies(body):
    """Empty ones, blank ones, and such as are hashed in several blocks."""
    content = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body

    assert verified(sign(content, SIGNERS, NOW)) == [True, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b" ", b"  ", b"\t", b"\r\n", b"\r\n\r\n", b".", b"\xff"]), max_size=30).map(
        b"".join
    )
)
def test_any_blanks_verify(body):
    """Wherever they are, and however the body falls into blocks."""
    content = b"From: a@example.org\r\n\r\n" + body
    whole, blocks = hash_of_body(content, 23), []
    original, lines.BLOCK = lines.BLOCK, 4
    try:
        blocks.append(hash_of_body(content, 23))
    finally:
        lines.BLOCK = original

    assert blocks == [whole]
    assert verified(sign(content, SIGNERS[1:], NOW)) == [True]


@pytest.mark.parametrize(
    "added",
    [
        b"From: evil@example.com",
        b"Subject: evil",
        b"To: evil@example.com",
        b"Reply-To: evil@example.com",
        b"Content-Type: text/html",
        b"Cc: x",
        b"List-Unsubscribe: <https://evil.example/>",
        b"List-Unsubscribe-Post: x",
        b"Date: x",
        b"Message-ID: <x@y>",
        b"MIME-Version: 2.0",
        b"Content-Transfer-Encoding: base64",
        b"In-Reply-To: <x@y>",
        b"References: <x@y>",
    ],
)
def test_a_field_added_later_breaks_the_signature(added):
    """Row D27: oversigning, above the header and below it."""
    signed = sign(MESSAGE, SIGNERS, NOW)
    fields, _, body = signed.partition(b"\r\n\r\n")

    assert verified(added + b"\r\n" + signed) == [False, False]
    assert verified(fields + b"\r\n" + added + b"\r\n\r\n" + body) == [False, False]


def test_a_field_that_mailing_lists_add_is_theirs_to_add():
    """Unless the author had one."""
    signed = sign(b"From: a@example.org\r\n\r\nx\r\n", SIGNERS, NOW)

    assert verified(b"List-Id: <x.example.net>\r\nSender: l@example.net\r\nReceived: x\r\n" + signed) == [True, True]


@pytest.mark.parametrize(
    "change",
    [(b"Hello", b"Hallo"), (b"folded", b"changed"), (b"ada@", b"eve@"), (b"/u>", b"/v>"), (b"One-Click", b"Two")],
)
def test_what_is_changed_later_breaks_the_signature(change):
    """The body, the subject, the author, and what unsubscribes."""
    assert verified(sign(MESSAGE, SIGNERS, NOW).replace(*change)) == [False, False]


def test_signed_fields_are_named_once_more_than_they_occur():
    """Present or not, what a reader goes by can't be added."""
    names = signed_names(["from", "received", "list-unsubscribe", "list-unsubscribe-post"])

    assert names.count("from") == 2
    assert names.count("subject") == 1
    assert (names.count("list-unsubscribe"), names.count("list-unsubscribe-post")) == (2, 2)
    assert "received" not in names
    assert "sender" not in names


# RFC 6376 section 3.4.5: the examples of canonicalisation.


def test_the_example_of_relaxed_header_canonicalisation():
    """RFC 6376 section 3.4.5."""
    assert relaxed_fields(b"A: X\r\nB : Y\t\r\n\tZ  ") == [("a", b"a:X"), ("b", b"b:Y Z")]


def test_the_example_of_relaxed_body_canonicalisation():
    """RFC 6376 section 3.4.5."""
    expected = base64.b64encode(hashlib.sha256(b" C\r\nD E\r\n").digest())

    assert hash_of_body(b" C \r\nD \t E\r\n\r\n\r\n", 0) == expected


def test_the_hash_of_an_empty_body():
    """RFC 6376 section 3.4.4: for SHA-256 it is this one."""
    assert hash_of_body(b"", 0) == b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    assert hash_of_body(b"\r\n\r\n", 0) == b"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


# RFC 8463 appendix A: one message with two signatures.
FOOTBALL = (
    b"From: Joe SixPack <joe@football.example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
    b"\r\n"
    b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
)
NAMES = ["from", "to", "subject", "date", "message-id", "from", "subject", "date"]
BY_ED25519 = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
    b" subject : date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b="
)
ED25519_VALUE = b"/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="
ED25519_KEY = b"nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
BY_RSA = (
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r\n"
    b" date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b="
)
RSA_VALUE = (
    b"F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3"
    b"DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz"
    b"dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8="
)
RSA_PUBLIC = (
    b"MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/"
    b"byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
)


def canonical(head: bytes) -> bytes:
    fields, body_at = dkim._fields(FOOTBALL)

    assert hash_of_body(FOOTBALL, body_at) == b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
    return dkim.what_is_signed(fields, NAMES, head)


def test_the_ed25519_example_is_signed_as_the_standard_has_it():
    """RFC 8463 appendix A: the signature is deterministic, so it must be the very same."""
    private = ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode(ED25519_KEY))
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    signer = load_signer(DKIMKey(domain="football.example.com", selector="brisbane", private_key=pem))

    assert base64.b64encode(signer.sign(canonical(BY_ED25519))) == ED25519_VALUE


def test_the_rsa_example_verifies_over_what_we_would_sign():
    """RFC 8463 appendix A."""
    public = serialization.load_der_public_key(base64.b64decode(RSA_PUBLIC))
    public.verify(base64.b64decode(RSA_VALUE), canonical(BY_RSA), padding.PKCS1v15(), hashes.SHA256())

    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(RSA_VALUE), canonical(BY_RSA) + b"x", padding.PKCS1v15(), hashes.SHA256())


# Which keys.


def signer(domain: str, selector: str = "s") -> Signer:
    return Signer(domain, selector, "ed25519-sha256", bytes)


def test_the_from_domain_chooses_the_keys():
    """Its own, all of them; else those of the nearest domain above."""
    keys = [signer("example.org", "a"), signer("example.org", "b"), signer("news.example.org"), signer("example.net")]

    assert signers_for(keys, "example.org") == keys[:2]
    assert signers_for(keys, "news.example.org") == [keys[2]]
    assert signers_for(keys, "x.y.example.org") == keys[:2]
    assert signers_for(keys, "badexample.org") == []
    assert signers_for(keys, "org") == []
    assert signers_for(keys, None) == []


@pytest.mark.parametrize(
    ("field", "domain"),
    [
        (b"From: a@b.example", "b.example"),
        ("From: Jörg <j@BÜCHER.example>".encode(), "xn--bcher-kva.example"),
        (b"From: a@b.example, c@d.example", "b.example"),
        (b"From:\r\n =?utf-8?q?=C3=BC?=\r\n <a@b.example>", "b.example"),
        (b"From: Team: a@b.example;", "b.example"),
        (b"From: Nobody:;", None),
        (b"From: broken", None),
    ],
)
def test_the_author_has_a_domain(field, domain):
    """The first one's."""
    assert author_domain(relaxed_fields(b"To: x@y\r\n" + field)) == domain


def test_mail_from_a_domain_without_a_key_is_not_signed():
    """It is the very same object."""
    content = MESSAGE.replace(b"ada@example.org", b"ada@example.com")

    assert sign(content, SIGNERS, NOW) is content


# Keys.


def pem_of(private, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption).decode()


WRONG = {
    "no PEM": ("-----BEGIN nonsense", "PEM form"),
    "public": (
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode(),
        "PEM form",
    ),
    "short": (pem_of(rsa.generate_private_key(65537, 1024)), "1024 bits"),
    "curve": (pem_of(ec.generate_private_key(ec.SECP256R1())), "neither an RSA nor an Ed25519"),
    "password": (pem_of(ed25519.Ed25519PrivateKey.generate(), b"secret"), "password"),
    "missing file": ("/nowhere/to/be/found.pem", "can't be read from /nowhere/to/be/found.pem: No such file"),
}


@pytest.mark.parametrize(("private_key", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_told_by_name_and_reason(private_key, reason):
    """And never quoted."""
    key = DKIMKey(domain="example.org", selector="s1", private_key=private_key)
    with pytest.raises(DKIMKeyError, match=f"^the DKIM key 's1' of example.org .*{reason}") as wrong:
        load_signer(key)

    assert "BEGIN" not in str(wrong.value).replace("-----BEGIN PRIVATE KEY-----", "")


def test_a_key_may_be_a_file(tmp_path):
    """As most keys are."""
    path = tmp_path / "key.pem"
    path.write_text(RSA.pem.get_secret_value())

    assert load_signer(DKIMKey(domain="example.org", selector="s", private_key=path)).algorithm == "rsa-sha256"
    assert load_signer(DKIMKey(domain="example.org", selector="s", private_key=str(path))).algorithm == "rsa-sha256"


def test_a_traditional_rsa_file_is_read_too():
    """What openssl genrsa wrote for decades (PKCS #1)."""
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )

    assert load_signer(DKIMKey(domain="example.org", selector="s", private_key=pem)).algorithm == "rsa-sha256"


def test_a_key_is_never_shown():
    """Row D28: neither in a repr, nor in an error of pydantic's."""
    key = DKIMKey(domain="example.org", selector="s", private_key=RSA.pem.get_secret_value())
    secret = RSA.pem.get_secret_value().splitlines()[1]

    assert secret not in f"{key!r} {Config(helo_name='h.example', dkim=(key,))!r} {key.model_dump_json()} {RSA!r}"
    with pytest.raises(ValueError, match="selector") as missing:
        DKIMKey(domain="example.org", private_key=RSA.pem.get_secret_value())
    assert "BEGIN" not in str(missing.value)


@pytest.mark.parametrize(
    ("domain", "selector"), [("bad domain", "s"), ("example.org", "s;x"), ("example.org", ""), ("", "s"), ("a..b", "s")]
)
def test_a_wrong_name_is_told_at_once(domain, selector):
    """They stand in the signature and in the DNS."""
    with pytest.raises(ValueError, match="is not a host name"):
        DKIMKey(domain=domain, selector=selector, private_key="x")


def test_a_domain_in_another_script_is_its_a_label():
    """As it stands in d= and in the DNS."""
    assert DKIMKey(domain="bücher.example", selector="s", private_key="x").domain == "xn--bcher-kva.example"


def test_two_keys_can_not_have_one_name():
    """The DNS has room for one."""
    key = DKIMKey(domain="example.org", selector="s", private_key="x")

    with pytest.raises(ValueError, match="same domain and selector"):
        Config(helo_name="h.example", dkim=(key, key))
