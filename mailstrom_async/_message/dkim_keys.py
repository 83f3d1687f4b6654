"""Keys for DKIM: read, checked, made, and told to the DNS. `cryptography` (extra `dkim`) is imported when needed."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import SecretStr

from mailstrom_async._config import DKIMKey
from mailstrom_async._errors import DKIMKeyError, MailstromError
from mailstrom_async._message.dkim import Signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

SMALLEST_RSA = 2048
"""Bits. Receivers distrust fewer (RFC 8301 section 3.2 wants 2048)."""
LARGEST_RSA = 4096
"""Bits. Verifiers need not take more (RFC 8301 section 3.2)."""

CRYPTOGRAPHY = "cryptography: pip install 'mailstrom-async[dkim]'"

KeyType = Literal["rsa", "ed25519"]


class NewKey(NamedTuple):
    """A fresh key.

    Attributes:
        pem: The private key, PKCS #8.
        record: The value of the TXT record at SELECTOR._domainkey.DOMAIN.
    """

    pem: SecretStr
    record: str


def load_signer(key: DKIMKey) -> Signer:
    """Read and check a key. It reads a file and tests primes: not for the event loop.

    Raises:
        DKIMKeyError: It can't sign; why, and what to do.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    except ImportError:
        raise _error(key, f"needs {CRYPTOGRAPHY}") from None
    private = _read(key)
    if isinstance(private, rsa.RSAPrivateKey):
        if not SMALLEST_RSA <= private.key_size <= LARGEST_RSA:
            raise _error(
                key,
                f"is an RSA key of {private.key_size} bits, and {SMALLEST_RSA} to {LARGEST_RSA} are of use; make one "
                "with mailstrom-async dkim-key",
            )
        return Signer(key.domain, key.selector, "rsa-sha256", _rsa(private))
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return Signer(key.domain, key.selector, "ed25519-sha256", _ed25519(private))
    raise _error(key, "is neither an RSA nor an Ed25519 key, and DKIM knows no others")


def load_signers(keys: Sequence[DKIMKey]) -> list[Signer]:
    """All of them. Raises DKIMKeyError."""
    return [load_signer(key) for key in keys]


def _rsa(private: "RSAPrivateKey") -> Callable[[bytes], bytes]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    scheme, algorithm = padding.PKCS1v15(), hashes.SHA256()

    def sign(octets: bytes) -> bytes:
        return private.sign(octets, scheme, algorithm)

    return sign


def _ed25519(private: "Ed25519PrivateKey") -> Callable[[bytes], bytes]:
    def sign(octets: bytes) -> bytes:
        # The hash rather than the octets (RFC 8463 section 3).
        return private.sign(hashlib.sha256(octets).digest())

    return sign


def _read(key: DKIMKey) -> "PrivateKeyTypes":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        if isinstance(key.private_key, SecretStr):
            pem = key.private_key.get_secret_value().encode()
        else:
            pem = Path(key.private_key).read_bytes()
    except OSError as error:
        raise _error(key, f"can't be read from {key.private_key}: {error.strerror}") from None
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise _error(key, "is encrypted with a password; give it without one, and guard the file instead") from None
    except (ValueError, UnsupportedAlgorithm):
        # Its own message may quote what it read.
        raise _error(key, "is not a private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----") from None


def _error(key: DKIMKey, problem: str) -> DKIMKeyError:
    return DKIMKeyError(key.selector, key.domain, problem)


def new_key(kind: KeyType, bits: int = SMALLEST_RSA) -> NewKey:
    """Make a key.

    Args:
        bits: Of an RSA key.

    Raises:
        MailstromError: `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    except ImportError:
        raise MailstromError(f"a DKIM key needs {CRYPTOGRAPHY}") from None

    private: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    if kind == "ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes_raw()
    else:
        private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        public = private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return NewKey(SecretStr(pem.decode()), f"v=DKIM1; k={kind}; p={base64.b64encode(public).decode()}")
