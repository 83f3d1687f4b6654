"""SMTP AUTH, as a server sees it: PLAIN, LOGIN, CRAM-MD5 and XOAUTH2."""

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

SUCCEEDED = b"235 2.7.0 Authentication succeeded\r\n"
REFUSED = b"535 5.7.8 Authentication credentials invalid\r\n"

Dialogue = Generator[bytes, bytes, str | None]
"""Yields challenges, is sent the responses, and returns who that is, or None."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """Who may log in, by password or XOAUTH2 token, and whether also without TLS."""

    passwords: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    without_tls: bool = False

    def __bool__(self) -> bool:
        return bool(self.passwords or self.tokens)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        offered = ("PLAIN", "LOGIN", "CRAM-MD5") if self.passwords else ()
        return (*offered, "XOAUTH2") if self.tokens else offered


class Exchange:
    """One AUTH command with its challenges and responses. `reply` is what to answer next."""

    def __init__(self, accounts: Accounts, mechanism: str, initial: str | None) -> None:
        self.username: str | None = None
        self.reply = b"504 5.5.4 Unrecognized authentication type\r\n"
        if mechanism not in accounts.mechanisms:
            return
        self._dialogue = _DIALOGUES[mechanism](accounts)
        challenge = next(self._dialogue)
        self.reply = _challenge(challenge)
        if initial is not None:
            self.answer("" if initial == "=" else initial)

    def answer(self, line: str) -> None:
        """Take a response of the client."""
        if line == "*":
            self.reply = b"501 5.7.0 Authentication cancelled\r\n"
            return
        try:
            response = b64decode(line, validate=True)
        except binascii.Error:
            self.reply = b"501 5.5.2 Cannot decode that base64\r\n"
            return
        try:
            self.reply = _challenge(self._dialogue.send(response))
        except StopIteration as end:
            self.username = end.value
            self.reply = SUCCEEDED if self.username is not None else REFUSED


def _challenge(text: bytes) -> bytes:
    return b"334 " + b64encode(text) + b"\r\n"


def _checked(accounts: Accounts, username: bytes, password: bytes) -> str | None:
    name = username.decode("utf-8", "replace")
    known = accounts.passwords.get(name)
    return name if known is not None and known.encode() == password else None


def _plain(accounts: Accounts) -> Dialogue:
    response = yield b""
    parts = response.split(b"\0")
    return _checked(accounts, parts[1], parts[2]) if len(parts) == 3 else None


def _login(accounts: Accounts) -> Dialogue:
    username = yield b"Username:"
    password = yield b"Password:"
    return _checked(accounts, username, password)


def _cram_md5(accounts: Accounts) -> Dialogue:
    challenge = b"<1896.697170952@mx.example.test>"
    response = yield challenge
    username, _, digest = response.decode("utf-8", "replace").rpartition(" ")
    password = accounts.passwords.get(username)
    if password is None:
        return None
    return username if hmac.new(password.encode(), challenge, "md5").hexdigest() == digest else None


def _xoauth2(accounts: Accounts) -> Dialogue:
    response = yield b""
    parts = (part.partition("=") for part in response.decode("utf-8", "replace").split("\x01"))
    fields = {name: value for name, _, value in parts}
    username = fields.get("user", "")
    token = accounts.tokens.get(username)
    if token is not None and fields.get("auth") == f"Bearer {token}":
        return username
    # The reason comes as a challenge, which the client answers with nothing.
    yield b'{"status":"401","schemes":"bearer","scope":"mail"}'
    return None


_DIALOGUES = {"PLAIN": _plain, "LOGIN": _login, "CRAM-MD5": _cram_md5, "XOAUTH2": _xoauth2}
