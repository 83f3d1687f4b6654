"""What to do about TLS, under each policy."""

import pytest

from mailstrom_async._config import TLSPolicy
from mailstrom_async._policy import tls

POLICIES: list[TLSPolicy] = ["none", "may", "encrypt", "verify"]


@pytest.mark.parametrize(
    ("policy", "offered", "expected"),
    [
        ("none", True, "plaintext"),
        ("none", False, "plaintext"),
        ("may", True, "starttls"),
        ("may", False, "plaintext"),
        ("encrypt", True, "starttls"),
        ("encrypt", False, "give up"),
        ("verify", True, "starttls"),
        ("verify", False, "give up"),
    ],
)
def test_starttls_is_used_where_it_is_offered_and_missed_where_it_is_demanded(
    policy: TLSPolicy, offered: bool, expected: tls.Decision
):
    """Row A20: a stripped offer ends in plaintext only if TLS is a mere wish."""
    assert tls.before(policy, offered=offered) == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_who_demands_tls_never_goes_on_without_it(policy: TLSPolicy):
    """Rows A15 and A16: after a refusal or a broken handshake, too."""
    demanded = policy in ("encrypt", "verify")

    assert (tls.REFUSED[policy] == "give up") == demanded
    assert (tls.BROKEN[policy] == "give up") == demanded


def test_a_broken_handshake_costs_the_connection_and_a_refusal_does_not():
    """Rows A15 and A16: after a refusal the session goes on; after a handshake it is over."""
    assert tls.REFUSED["may"] == "plaintext"
    assert tls.BROKEN["may"] == "reconnect"


def test_only_verify_checks_the_certificate():
    """Rows A17 to A19: any certificate is better than plaintext (RFC 7435), unless a valid one is demanded."""
    assert [policy for policy in POLICIES if tls.checks_certificate(policy)] == ["verify"]
