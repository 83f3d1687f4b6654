"""What bulk mail lacks."""

import pytest

from mailstrom_async import Config, DKIMKey, Email, InvalidEmail, bulk_problems
from mailstrom_async._message.dkim_keys import new_key

RSA, ED25519 = (
    DKIMKey(domain="example.org", selector=kind, private_key=new_key(kind).pem) for kind in ("rsa", "ed25519")
)
CONFIG = Config(helo_name="mail.example.org", dkim=(RSA, ED25519))
LETTER = Email(
    from_="News <news@mail.example.org>",
    to="ada@example.net",
    subject="News",
    text="Hello",
    list_unsubscribe="https://example.org/u?id=4711",
)


def test_a_letter_that_has_all_has_no_problems():
    """A key of a domain above is as good (relaxed alignment)."""
    assert bulk_problems(LETTER, CONFIG) == []
    assert bulk_problems(LETTER.but(list_unsubscribe=["mailto:u@example.org", "https://example.org/u"]), CONFIG) == []


@pytest.mark.parametrize(
    ("changes", "settings", "problem"),
    [
        ({"list_unsubscribe": None}, {}, "list_unsubscribe is no https URL"),
        ({"list_unsubscribe": "mailto:u@example.org"}, {}, "list_unsubscribe is no https URL"),
        ({"to": "ada@example.net, bob@example.net"}, {}, "several recipients"),
        ({"bcc": "bob@example.net"}, {}, "several recipients"),
        ({"from_": "a@example.org, b@example.org", "sender": "a@example.org"}, {}, "several authors"),
        ({"from_": "me@gmail.com"}, {}, "only gmail.com can sign"),
        ({"from_": "a@example.com"}, {}, "no key of Config.dkim is example.com's"),
        ({}, {"dkim": ()}, "no key of Config.dkim is mail.example.org's"),
        ({}, {"dkim": (ED25519,)}, "Ed25519 key only"),
        (
            {},
            {"dkim": (DKIMKey(domain="example.org", selector="s", private_key="/nowhere"),)},
            "nothing is sent at all",
        ),
        ({}, {"tls": "none"}, "over TLS only"),
        ({}, {"helo_name": "[192.0.2.1]"}, "not a full host name"),
        ({}, {"helo_name": "mail"}, "not a full host name"),
    ],
)
def test_what_is_missing_is_told(changes, settings, problem):
    """One sentence for each."""
    (told,) = bulk_problems(
        LETTER.but(**changes), Config(**({"helo_name": "mail.example.org", "dkim": (RSA,)} | settings))
    )

    assert problem in told


def test_an_address_that_is_none_is_an_error_as_in_send_email():
    """Rather than a problem among others."""
    with pytest.raises(InvalidEmail, match="to: "):
        bulk_problems(LETTER.but(to="nobody"), CONFIG)
