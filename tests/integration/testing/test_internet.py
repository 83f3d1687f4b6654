"""The small internet, and certificates, as a mailer meets them."""

import gc
import ssl
from datetime import timedelta

import pytest

from mailstrom_async import Config, Email, Mailstrom, MemoryStorage, RecipientStatus
from mailstrom_async.testing import CertificateAuthority, FakeInternet

PATIENCE = timedelta(seconds=20)


@pytest.fixture
async def internet():
    """An empty internet."""
    async with FakeInternet() as internet:
        yield internet


async def send(internet, to="ada@example.net", **settings) -> RecipientStatus:
    config = Config(helo_name="app.example.org", delivery=internet.delivery, **settings)
    async with Mailstrom(config, MemoryStorage()) as mailer:
        message_id = await mailer.send_email(Email(from_="app@example.org", to=to, subject="Hello", text="Hello"))
        return (await mailer.wait(message_id, until="attempted", timeout=PATIENCE)).recipients[0]


async def test_exchangers_differ_by_address_and_share_a_port(internet):
    """So that one `DirectDelivery.port` does for all."""
    exchangers = [await internet.exchanger(f"mx{number}.example.net") for number in range(5)]

    assert len({exchanger.host for exchanger in exchangers}) == 5
    assert {exchanger.port for exchanger in exchangers} == {internet.delivery.port}
    assert internet.exchangers["mx3.example.net"] is exchangers[3]
    assert repr(internet) == "<FakeInternet [5 names, 5 exchangers]>"


async def test_the_setting_is_known_before_the_exchangers_are(internet):
    """A mailer may be built first."""
    before = internet.delivery
    await internet.exchanger("mx.example.net")

    assert internet.delivery == before


async def test_a_domain_lists_its_exchangers_by_preference(internet):
    """Those that are down first, here: the mail goes to the next."""
    internet.down("mx1.example.net")
    backup = await internet.exchanger("mx2.example.net")
    internet.domain("example.net", mx=["mx1.example.net", "mx2.example.net"])

    assert (await send(internet)).result.host == "mx2.example.net"
    assert backup.received == 1
    assert internet.dns.records["example.net"] == {"MX": ["10 mx1.example.net", "20 mx2.example.net"]}


async def test_what_was_down_comes_up_at_the_same_address(internet):
    """And then it is up."""
    internet.down("mx.example.net")
    (address,) = internet.dns.records["mx.example.net"]["A"]
    exchanger = await internet.exchanger("mx.example.net")
    assert exchanger.host == address
    with pytest.raises(ValueError, match="is up"):
        internet.down("mx.example.net")


async def test_a_domain_may_be_its_own_exchanger_and_have_others(internet):
    """Records of one name add up."""
    await internet.exchanger("example.net")
    internet.domain("example.net", mx=["5 example.net", "5 mx.example.net"])

    assert set(internet.dns.records["example.net"]) == {"A", "MX"}
    assert internet.dns.records["example.net"]["MX"] == ["5 example.net", "5 mx.example.net"]


async def test_a_domain_may_take_no_mail(internet):
    """RFC 7505."""
    internet.domain("example.net", mx=["."])

    assert (await send(internet)).result.enhanced == "5.1.10"


async def test_an_exchanger_may_have_ipv6_only(internet):
    """At ::1, of which there is one."""
    six = await internet.exchanger("example.net", ipv6=True)
    assert (await send(internet)).result.state == "delivered"
    assert (six.host, six.received) == ("::1", 1)
    with pytest.raises(OSError, match="in use"):
        await internet.exchanger("mx.example.net", ipv6=True)


async def test_two_internets_are_two(internet):
    """Neither's mail gets to the other."""
    async with FakeInternet() as other:
        await other.exchanger("example.net")
        mine = await internet.exchanger("example.net")
        await send(internet)

        assert mine.received == 1
        assert other.exchangers["example.net"].connections == 0


# Certificates.


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    """What the mailers below trust."""
    return CertificateAuthority()


@pytest.mark.parametrize(
    ("names", "validity", "state"),
    [
        (["mx.example.net"], {}, "delivered"),
        (["*.example.net", "other.example"], {}, "delivered"),
        (["other.example.net"], {}, "deferred"),
        (["mx.example.net"], {"expired": True}, "deferred"),
        (["mx.example.net"], {"not_yet_valid": True}, "deferred"),
    ],
)
async def test_certificates_are_what_they_are_said_to_be(internet, authority, names, validity, state):
    """Good for a client that verifies, or not."""
    await internet.exchanger("mx.example.net", tls=authority.server_context(*names, **validity))
    internet.domain("example.net", mx=["mx.example.net"])

    assert (await send(internet, tls="verify", ca_file=authority.ca_file)).result.state == state


async def test_another_authority_is_not_trusted(internet, authority):
    """Its certificates are good for nobody but those who trust it."""
    await internet.exchanger("example.net", tls=CertificateAuthority().server_context("example.net"))
    result = (await send(internet, tls="verify", ca_file=authority.ca_file)).result

    assert (result.state, result.cause) == ("deferred", "tls")


def test_the_file_of_an_authority_goes_with_it():
    """Nothing is left in the folder for temporary files."""
    authority = CertificateAuthority()
    path = authority.ca_file
    assert path.read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    assert authority.client_context().verify_mode is ssl.CERT_REQUIRED
    del authority
    gc.collect()

    assert not path.exists()


def test_a_certificate_needs_a_name(authority):
    """With an example."""
    with pytest.raises(ValueError, match="needs a name"):
        authority.server_context()


def test_without_trustme_the_error_names_the_extra(monkeypatch):
    """It is an optional dependency."""
    monkeypatch.setitem(__import__("sys").modules, "trustme", None)

    with pytest.raises(ImportError, match=r"mailstrom-async\[testing\]"):
        CertificateAuthority()
