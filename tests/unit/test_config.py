"""Settings are checked when they are made, and a wrong one is told with what to write instead."""

import json
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from pydantic import SecretStr, ValidationError

from mailstrom_async import Config, DirectDelivery, DKIMKey, Limits, RelayDelivery, RetryPolicy, Timeouts


def problem(make) -> str:
    with pytest.raises(ValidationError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Config, "helo_name"),
        (lambda: Config(helo_name="a.example.org", tsl="may"), "tsl"),
        (lambda: Config(helo_name="two words"), "is not a host name; write letters, digits and hyphens"),
        (lambda: Config(helo_name="a.example.org\r\nMAIL FROM:<>"), "is not a host name"),
        (lambda: Config(helo_name=""), "is not a host name"),
        (lambda: Config(helo_name="192.0.2.1"), "write [192.0.2.1], or better the name of this host"),
        (lambda: Config(helo_name="a.example.org", tls="maybe"), "'none', 'may', 'encrypt' or 'verify'"),
        (lambda: Config(helo_name="a.example.org", ca_file="/nowhere/ca.pem"), "ca_file"),
        (lambda: Config(helo_name="a.example.org", lease=timedelta(0)), "must be longer than nothing"),
        (lambda: Config(helo_name="a.example.org", retention=timedelta(seconds=-1)), "must be longer than nothing"),
        (lambda: Config(helo_name="a.example.org", shutdown_grace=timedelta(seconds=-1)), "shutdown_grace"),
        (lambda: Config(helo_name="a.example.org", delivery={"host": "b.example.org", "pot": 1}), "delivery.relay.pot"),
        (lambda: Config(helo_name="a.example.org", delivery={"pot": 1}), "delivery.direct.pot"),
        (lambda: DirectDelivery(port=0), "port"),
        (lambda: DirectDelivery(nameservers=("ns.example.org",)), 'write "ip", "ip:port"'),
        (lambda: DirectDelivery(nameservers=("192.0.2.1:0",)), "is not a nameserver"),
        (lambda: DirectDelivery(allowed_networks=("10.0.0.1/8",)), "write a network such as 10.0.0.0/8"),
        (lambda: RelayDelivery(host="not a name"), "is not a host name"),
        (lambda: RelayDelivery(host="a.example.org", username="app"), "needs either a password or an oauth_token"),
        (lambda: RelayDelivery(host="a.example.org", password="x"), "needs a username"),
        (
            lambda: RelayDelivery(host="a.example.org", username="app", password="x", security="none"),
            "credentials never go out in plaintext",
        ),
        (lambda: RelayDelivery(host="a.example.org", fallbacks=("b c",)), "is not a host name"),
        (lambda: RetryPolicy(base_delay=timedelta(0)), "must be longer than nothing"),
        (lambda: RetryPolicy(factor=0.5), "factor"),
        (lambda: RetryPolicy(jitter=1), "jitter"),
        (lambda: Timeouts(connect=timedelta(0)), "must be longer than nothing"),
        (lambda: Limits(connections=0), "connections"),
        (lambda: Limits(queue_size=0), "queue_size"),
    ],
)
def test_a_wrong_setting_is_told(make, words):
    """The message names the setting or says what to write."""
    assert words in problem(make)


def test_settings_can_not_be_changed():
    """A mailer's settings are those that it was made with."""
    config = Config(helo_name="a.example.org")
    with pytest.raises(ValidationError, match="frozen"):
        config.helo_name = "b.example.org"


def test_an_error_about_a_part_of_the_settings_is_about_that_alone():
    """A relay with a mistake is not measured as direct delivery, too."""
    told = problem(lambda: Config(helo_name="a.example.org", delivery={"host": "b.example.org", "port": 0}))

    assert "1 validation error" in told
    relay = Config(helo_name="a.example.org", delivery=MappingProxyType({"host": "b.example.org"})).delivery
    assert relay == RelayDelivery(host="b.example.org")


def test_a_list_of_one_may_be_that_one():
    """As an author would write it."""
    assert DirectDelivery(nameservers="quad9").nameservers == ("quad9",)
    assert DirectDelivery(allowed_networks={"10.0.0.0/8"}).allowed_networks == ("10.0.0.0/8",)
    assert DirectDelivery(allowed_networks=iter(["10.0.0.0/8"])).allowed_networks == ("10.0.0.0/8",)
    assert RelayDelivery(host="a.example.org", fallbacks="b.example.org").fallbacks == ("b.example.org",)


@pytest.mark.parametrize("name", ["a.example.org", "[192.0.2.1]", "[IPv6:2001:db8::1]", "localhost", "A.Example.ORG."])
def test_names_of_hosts(name):
    """A host name, or an address literal of RFC 5321 section 4.1.3; one spelling."""
    expected = name if name.startswith("[") else name.removesuffix(".").lower()

    assert Config(helo_name=name).helo_name == expected


def test_a_password_is_in_no_repr_and_no_json():
    """Not in the settings' own, nor in those of what holds them, nor in the error about another field."""
    relay = RelayDelivery(host="a.example.org", username="app", password=SecretStr("sesame"))
    config = Config(helo_name="b.example.org", delivery=relay)

    for text in (repr(relay), repr(config), str(config), config.model_dump_json()):
        assert "sesame" not in text
    assert "sesame" not in problem(lambda: RelayDelivery(host="a b", username="app", password="sesame"))
    assert "sesame" not in problem(lambda: RelayDelivery(host="a.example.org", password="sesame"))
    assert "sesame" not in problem(lambda: setattr(relay, "password", "sesame"))


def test_settings_come_from_json():
    """As an application reads them from its environment: seconds or ISO 8601 for spans, a relay or direct delivery."""
    relayed = Config.model_validate_json(
        '{"helo_name": "a.example.org", "retry": {"base_delay": 30, "lifetime": "P1D"},'
        ' "delivery": {"host": "smtp.example.com", "username": "app", "password": "sesame"}}'
    )
    direct = Config.model_validate_json(
        '{"helo_name": "a.example.org", "delivery": {"port": 2525, "nameservers": ["quad9"]}}'
    )

    assert relayed.retry == RetryPolicy(base_delay=timedelta(seconds=30), lifetime=timedelta(days=1))
    assert relayed.delivery == RelayDelivery(host="smtp.example.com", username="app", password="sesame")
    assert direct.delivery == DirectDelivery(port=2525, nameservers=("quad9",))


@pytest.mark.parametrize(
    ("told", "expected"),
    [("key.pem", Path("key.pem")), ("-----BEGIN PRIVATE KEY-----", SecretStr("-----BEGIN PRIVATE KEY-----"))],
)
def test_a_key_comes_from_json(told, expected):
    """Its path, or itself, as elsewhere."""
    key = {"domain": "example.org", "selector": "s", "private_key": told}

    config = Config.model_validate_json(json.dumps({"helo_name": "a.example.org", "dkim": [key]}))

    assert config.dkim[0].private_key == DKIMKey(**key).private_key == expected


def test_the_settings_have_a_schema():
    """For those who let an editor check their JSON; a callable is none of it."""
    definitions = Config.model_json_schema()["$defs"]

    assert "password" in definitions["RelayDelivery"]["properties"]
    assert "oauth_token" not in definitions["RelayDelivery"]["properties"]
