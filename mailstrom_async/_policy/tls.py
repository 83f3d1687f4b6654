"""How a session is to be protected, and what to do where that fails: one table for each question."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from mailstrom_async._config import TLSPolicy

Decision = Literal["starttls", "plaintext", "reconnect", "give up"]

OFFERED: Mapping[TLSPolicy, Decision] = MappingProxyType(
    {"none": "plaintext", "may": "starttls", "encrypt": "starttls", "verify": "starttls"}
)
# An attacker can strip the offer. Who demands TLS waits until it is back (as RFC 8461 section 5 has it).
NOT_OFFERED: Mapping[TLSPolicy, Decision] = MappingProxyType(
    {"none": "plaintext", "may": "plaintext", "encrypt": "give up", "verify": "give up"}
)
# Refused by a reply, the session stands as it was before.
REFUSED: Mapping[TLSPolicy, Decision] = NOT_OFFERED
# After a handshake that broke off nothing can be said on this connection; another one can be had without TLS.
BROKEN: Mapping[TLSPolicy, Decision] = MappingProxyType(
    {"none": "reconnect", "may": "reconnect", "encrypt": "give up", "verify": "give up"}
)


def before(policy: TLSPolicy, *, offered: bool) -> Decision:
    """What to do after EHLO."""
    return OFFERED[policy] if offered else NOT_OFFERED[policy]


def checks_certificate(policy: TLSPolicy) -> bool:
    """Only then does a certificate that is expired, self-signed or another host's end the session. Without the demand,
    encryption to whoever answers is still better than none (RFC 7435)."""
    return policy == "verify"
