"""All settings. Unknown ones are errors; every default has its reason beside it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self, cast

import idna
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    FilePath,
    SecretStr,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from mailstrom_async._model import Frozen

TLSPolicy = Literal["none", "may", "encrypt", "verify"]

NAMED_NAMESERVERS = {
    "google": ("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
    "cloudflare": ("1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001"),
    "quad9": ("9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9"),
}


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _check_host_name(name: str) -> str:
    labels = name.removesuffix(".").split(".")
    fine = all(
        0 < len(label) <= 63
        and label.isascii()
        and label.replace("-", "").replace("_", "").isalnum()
        and not label.startswith("-")
        and not label.endswith("-")
        for label in labels
    )
    if not fine or len(name) > 253:
        raise ValueError(f"{name!r} is not a host name; write letters, digits and hyphens, such as mail.example.org")
    return name.removesuffix(".").lower()


def _check_helo_name(name: str) -> str:
    # RFC 5321 section 4.1.3: a host without a name introduces itself by an address literal.
    if name.startswith("[") and name.endswith("]") and _is_ip(name[1:-1].removeprefix("IPv6:")):
        return name
    if _is_ip(name):
        raise ValueError(f"{name!r} is an IP address; write [{name}], or better the name of this host")
    return _check_host_name(name)


def _check_host(name: str) -> str:
    return name if _is_ip(name) else _check_host_name(name)


def _check_nameserver(text: str) -> str:
    if text in NAMED_NAMESERVERS or _is_ip(text):
        return text
    host, _, port = text.rpartition(":")
    if _is_ip(host.removeprefix("[").removesuffix("]")) and port.isdecimal() and 0 < int(port) < 65536:
        return text
    names = ", ".join(NAMED_NAMESERVERS)
    raise ValueError(f'{text!r} is not a nameserver; write "ip", "ip:port", "[ipv6]:port" or one of {names}')


def _check_network(text: str) -> str:
    try:
        ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; write a network such as 10.0.0.0/8 or fd00::/8") from None
    return text


def _check_positive(span: timedelta) -> timedelta:
    if span <= timedelta(0):
        raise ValueError("must be longer than nothing")
    return span


def _check_domain(name: str) -> str:
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError(f"{name!r} is not a domain: {error}") from None
    return _check_host_name(name)


def _one_or_more(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(cast("Iterable[object]", value)) if isinstance(value, Iterable) else value


HostName = Annotated[str, AfterValidator(_check_host)]
HeloName = Annotated[str, AfterValidator(_check_helo_name)]
Nameserver = Annotated[str, AfterValidator(_check_nameserver)]
Nameservers = Annotated[Sequence[Nameserver], BeforeValidator(_one_or_more), AfterValidator(tuple)]
Network = Annotated[str, AfterValidator(_check_network)]
Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[timedelta, AfterValidator(_check_positive)]
Count = Annotated[int, Field(ge=1)]


class DirectDelivery(Frozen):
    """Deliver to the recipients' own mail exchangers."""

    port: Port = 25
    nameservers: Nameservers = ()
    """ "ip", "ip:port", or "google", "cloudflare", "quad9"; none: the system's."""
    allowed_networks: Annotated[Sequence[Network], BeforeValidator(_one_or_more), AfterValidator(tuple)] = ()
    """Private or loopback networks in which a mail exchanger may lie. None by default: whoever controls the DNS of a
    recipient's domain would otherwise choose which of our internal hosts we talk to."""


class RelayDelivery(Frozen):
    """Deliver everything through a relay (a smarthost, a provider's submission server)."""

    host: HostName
    """Its name in DNS (/etc/hosts is not read), an IP address, or "localhost"."""
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    """ "starttls" and "tls" (from the first byte on, port 465) demand TLS with a verified certificate whatever
    `Config.tls` says."""
    username: str | None = None
    password: SecretStr | None = None
    oauth_token: SkipJsonSchema[Callable[[], Awaitable[str]]] | None = Field(default=None, repr=False)
    """An async callable that returns a fresh XOAUTH2 token."""
    fallbacks: Annotated[Sequence[HostName], BeforeValidator(_one_or_more), AfterValidator(tuple)] = ()
    """Relays to use, in this order, where the first can't be reached. Same port, security and credentials."""
    nameservers: Nameservers = ()

    @model_validator(mode="after")
    def _credentials_are_whole_and_safe(self) -> Self:
        secrets = [secret for secret in (self.password, self.oauth_token) if secret is not None]
        if self.username is not None and len(secrets) != 1:
            raise ValueError("a username needs either a password or an oauth_token")
        if self.username is None and secrets:
            raise ValueError("a password or oauth_token needs a username")
        if self.username is not None and self.security == "none":
            raise ValueError('credentials never go out in plaintext: set security to "starttls" or "tls"')
        return self


def _kind_of_delivery(value: object) -> str:
    """Of which one the errors are to tell, in place of all that is wrong with it as either."""
    relay = isinstance(value, RelayDelivery) or (isinstance(value, Mapping) and "host" in value)
    return "relay" if relay else "direct"


DirectOrRelay = Annotated[
    Annotated[DirectDelivery, Tag("direct")] | Annotated[RelayDelivery, Tag("relay")],
    Discriminator(_kind_of_delivery),
]


def _text(value: object) -> object:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _pem_or_path(value: SecretStr | Path | str) -> SecretStr | Path:
    if isinstance(value, str):
        return SecretStr(value) if "-----BEGIN" in value or "\n" in value else Path(value)
    return value


class DKIMKey(Frozen):
    """A key that signs mail (RFC 6376): all that is from its domain, and from domains below that have no key of their
    own. Several keys of one domain all sign: RSA for everybody, Ed25519 for those who know it.

    The record for the DNS is printed by `mailstrom-async dkim-key`, which also makes keys.
    """

    domain: Annotated[str, AfterValidator(_check_domain)]
    selector: Annotated[str, AfterValidator(_check_host_name)]
    """The key's name: its record is at SELECTOR._domainkey.DOMAIN."""
    private_key: Annotated[str | SecretStr | Path, BeforeValidator(_text), AfterValidator(_pem_or_path)]
    """In PEM form, without a password: RSA of 2048 to 4096 bits, or Ed25519; or the path of a file that holds it. It is
    read when the mailer is entered."""


class RetryPolicy(Frozen):
    """When a deferred delivery is attempted again (RFC 5321 section 4.5.4.1).

    The n-th retry waits base_delay * factor**n, at most max_delay, give or take `jitter`; so the first comes
    after about three minutes, the second nine minutes later, and from the fourth on hours apart.
    """

    base_delay: Positive = timedelta(seconds=60)
    factor: Annotated[float, Field(ge=1, le=100)] = 3
    max_delay: Positive = timedelta(hours=4)
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of the delay that chance adds or takes away, so that what was deferred together does not return as a
    herd."""
    lifetime: Positive = timedelta(days=5)
    """From acceptance; a recipient still deferred then fails with cause "expired"."""


class Timeouts(Frozen):
    """How long to wait for whom. The defaults are those of RFC 5321 section 4.5.3.2: shorter ones make duplicates."""

    connect: Positive = timedelta(seconds=30)
    """For each address. Also for the TLS handshake."""
    greeting: Positive = timedelta(minutes=5)
    command: Positive = timedelta(minutes=5)
    """For the whole reply to EHLO, STARTTLS, AUTH, MAIL and RCPT."""
    data: Positive = timedelta(minutes=2)
    """For the reply to DATA."""
    envelope: Positive = timedelta(minutes=30)
    """For the replies to MAIL, to every RCPT of a transaction and to DATA, all together: however promptly each comes, a
    server that draws them out is given up."""
    block: Positive = timedelta(minutes=3)
    """Without any progress while the content is sent."""
    end_of_data: Positive = timedelta(minutes=10)
    """For the reply to the final dot, counted from the last byte sent."""
    dns: Positive = timedelta(seconds=30)
    """For finding out where a destination leads, all lookups together."""
    idle: Positive = timedelta(seconds=30)
    """How long a session without work is kept open."""


def _check_pattern(pattern: str) -> str:
    name = pattern.removeprefix("*.")
    if "*" in name or "?" in name or "[" in name:
        raise ValueError(f"{pattern!r} is no pattern; write a whole name, or *.example.org for all names below one")
    return pattern[: len(pattern) - len(name)] + _check_domain(name)


Pattern = Annotated[str, AfterValidator(_check_pattern)]


class Rate(Frozen):
    """So many messages in so much time, evenly: 100 a minute are one each 0.6 seconds."""

    messages: Count
    per: Annotated[Positive, Field(le=timedelta(days=1))] = timedelta(seconds=1)
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many may go at once after a pause; None: as many as a second brings, and at least one. In any span of time
    no more go than this and what the rate gives for the span."""


class LimitsFor(Frozen):
    """Limits for some receivers, in place of those that `Limits` has for all.

        Limits(overrides=[
            LimitsFor(domain="example.net", connections_per_host=1),
            LimitsFor(mx="*.google.com", connections_per_host=20, rate=Rate(messages=600, per=timedelta(minutes=1))),
        ])

    Either `domain` or `mx` says for whom: a whole name, or *.example.org for all names below example.org. What is not
    set here is taken from the next entry that applies, and at last from `Limits`.
    """

    domain: Pattern | None = None
    """The recipients' domain. Its mail then goes over connections of its own, even if another domain has the same mail
    exchangers."""
    mx: Pattern | None = None
    """The name of a mail exchanger, or of a relay. It applies where one of a destination's exchangers has such a name,
    whatever the domain: that is how to speak of a provider."""
    connections_per_host: Count | None = None
    messages_per_connection: Count | None = None
    recipients_per_transaction: Count | None = None
    rate: Rate | None = None
    """For all together whom this entry applies to."""

    @model_validator(mode="after")
    def _says_for_whom_and_what(self) -> Self:
        if (self.domain is None) == (self.mx is None):
            raise ValueError("say for whom these limits are: set either domain or mx, for both write two entries")
        limits = (
            self.connections_per_host,
            self.messages_per_connection,
            self.recipients_per_transaction,
            self.rate,
        )
        if all(limit is None for limit in limits):
            raise ValueError(f"these limits for {self.domain or self.mx} limit nothing: set at least one of them")
        return self


class Limits(Frozen):
    """How much at once."""

    connections: Count = 64
    """In all. More gain nothing on one event loop and cost the application latency. Connections whose host lets us wait
    for seconds are not counted, so that they keep nobody out; there are at most as many of them again."""
    connections_per_host: Count = 8
    """To one site; big receivers answer more with 421. Fewer are used while a site has not shown that it takes mail, or
    shows that it has enough of us."""
    recipients_per_transaction: Count = 100
    """Every server must take a hundred (RFC 5321 section 4.5.3.1.8)."""
    messages_per_connection: Count = 100
    bdat_window: Annotated[int, Field(ge=0, le=1000)] = 0
    """Messages that may be on their way on one connection before the first is answered, at servers that offer CHUNKING
    (RFC 3030); 16 make one connection to a far server some fifty times faster. Off (0) by default: if the connection is
    lost, up to so many messages may arrive twice rather than one."""
    rate: Rate | None = None
    """To one site. What is over it waits: that is no attempt and defers nothing. None: as fast as the site takes it."""
    overrides: Annotated[Sequence[LimitsFor], AfterValidator(tuple)] = ()
    """Other limits for some receivers: those for a domain go before those for an exchanger, and of these the first that
    applies and has the limit in question counts."""
    hosts_per_attempt: Count = 5
    """Addresses tried one after another before a delivery is deferred."""
    message_size: Count = 50 * 1024 * 1024
    """Bytes of a composed message."""
    recipients: Count = 10_000
    """Of one message."""
    bytes_in_flight: Count = 64 * 1024 * 1024
    """Content held in memory for running attempts. One larger message is still attempted, alone."""
    queue_size: Count | None = None
    """Unfinished messages; `send_email` raises QueueFull beyond. None: as many as the disk holds."""

    @field_validator("overrides")
    @classmethod
    def _nobody_is_named_twice(cls, overrides: Sequence[LimitsFor]) -> Sequence[LimitsFor]:
        named = [(entry.domain, entry.mx) for entry in overrides]
        for domain, mx in named:
            if named.count((domain, mx)) > 1:
                raise ValueError(f"{domain or mx} is named twice, and only the first would count: make it one entry")
        return overrides


class Config(Frozen):
    """The settings of a `Mailstrom`."""

    helo_name: HeloName
    """The name of this host as the world knows it, for EHLO and for new Message-IDs. Receivers look it up."""
    delivery: DirectOrRelay = DirectDelivery()
    tls: TLSPolicy = "may"
    """ "none": never. "may": where offered, any certificate (RFC 7435), else plaintext. "encrypt": TLS or deferred.
    "verify": TLS with a valid certificate for the host's name, or deferred."""
    ca_file: FilePath | None = None
    """Trusted certificate authorities in PEM; None: the system's."""
    allow_address_literals: bool = False
    """Whether addresses may have an IP address in place of a domain, such as ada@[192.0.2.1] or
    ada@[IPv6:2001:db8::1]. Such mail goes there without a question to DNS, or to the relay if there is one. Off by
    default: few hosts take it, and whoever may choose a recipient would choose whom this host connects to; private
    networks are closed all the same, unless `DirectDelivery.allowed_networks` has them."""
    allow_dotless_domains: bool = False
    """Whether addresses may have a domain of one label, such as root@localhost or ada@mailhost: hosts of the own
    network, which the relay or the nameservers know. Off by default: on the internet it is a mistake in writing."""
    retry: RetryPolicy = RetryPolicy()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    lease: Positive = timedelta(seconds=60)
    """How long a claimed delivery belongs to this mailer without being renewed."""
    shutdown_grace: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(seconds=30)
    """How long `aclose` lets running attempts finish."""
    dkim: Annotated[Sequence[DKIMKey], AfterValidator(tuple)] = ()
    """Keys to sign with (extra `dkim`), chosen by the From domain."""
    retention: Positive | None = None
    """How long the status of a completed message is kept; None: until `purge`."""

    @model_validator(mode="after")
    def _the_relay_has_the_tls_that_is_demanded(self) -> Self:
        plaintext = isinstance(self.delivery, RelayDelivery) and self.delivery.security == "none"
        if plaintext and self.tls in ("encrypt", "verify"):
            raise ValueError(
                f'tls="{self.tls}" and a relay with security="none" contradict each other: '
                'set security to "starttls" or "tls", or tls to "may"'
            )
        return self

    @field_validator("dkim")
    @classmethod
    def _each_key_has_its_own_name(cls, keys: Sequence[DKIMKey]) -> Sequence[DKIMKey]:
        names = [(key.domain, key.selector) for key in keys]
        if len(set(names)) < len(names):
            raise ValueError("two keys have the same domain and selector, and the DNS has room for one of them")
        return keys
