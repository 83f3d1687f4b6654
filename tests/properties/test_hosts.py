"""Whatever DNS says: hosts and their order."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._policy.hosts import (
    MOST_HOSTS,
    Exchanger,
    Host,
    dialable,
    exchangers,
    in_order,
    is_host_name,
    is_public,
    to_look_up,
)
from mailstrom_async._status import Outcome

US = "us.example.org"
preferences = st.integers(0, 65535)
host_names = st.sampled_from(["", US, "192.0.2.1", "::1", *(f"mx{number}.example.net" for number in range(30))])
records = st.lists(st.tuples(preferences, host_names | st.text(max_size=20)), max_size=60)
addresses = st.integers(1, 2**32 - 1).map(IPv4Address) | st.integers(1, 2**128 - 1).map(IPv6Address)
hosts = st.lists(
    st.builds(Host, st.integers(0, 3), host_names, st.lists(addresses, min_size=1, max_size=5, unique=True).map(tuple)),
    min_size=1,
    max_size=6,
    unique_by=lambda host: host.name,
)
INTERNAL_4 = [ip_network(text) for text in ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
              "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3")]  # fmt: skip


@given(records)
def test_exchangers_are_host_names_in_order_and_not_we(found):
    """For any records: hosts that can be looked up, each once, the best first, all better than we are."""
    result = exchangers("example.net", found, US)
    if isinstance(result, Outcome):
        assert found
        assert result.state == "failed"
        return

    ours = min((preference for preference, name in found if name == US), default=65536)
    assert result
    assert all(is_host_name(exchanger.name) and exchanger.preference < ours for exchanger in result)
    assert [exchanger.preference for exchanger in result] == sorted(exchanger.preference for exchanger in result)
    assert len({exchanger.name for exchanger in result}) == len(result)


@given(st.lists(st.builds(Exchanger, preferences, host_names), max_size=40, unique_by=lambda e: e.name), st.integers())
def test_none_is_looked_up_in_place_of_a_better_one(named, seed):
    """As many as allowed, and the best."""
    chosen = to_look_up(named, Random(seed))
    left_out = set(named) - set(chosen)

    assert len(chosen) == min(len(named), MOST_HOSTS)
    assert all(worse.preference >= better.preference for worse in left_out for better in chosen)


@given(hosts, st.integers(), st.integers(1, 200))
def test_each_address_is_tried_at_most_once_and_no_host_is_forgotten(found, seed, most):
    """The order of an attempt: every host's first address comes before any third."""
    order = in_order(found, Random(seed), most)
    everything = {(host.name, address) for host in found for address in host.addresses}

    assert len(order) == len(set(order)) == min(most, len(everything))
    assert set(order) <= everything
    if most >= 2 * len(found):
        assert {name for name, _ in order} == {host.name for host in found}
    firsts = list(dict.fromkeys(name for name, _ in order))
    by_name = {host.name: host.preference for host in found}
    assert [by_name[name] for name in firsts] == sorted(by_name[name] for name in firsts)


@given(hosts)
def test_nothing_internal_is_ever_dialled(found):
    """Row B12: with no network opened, what is left is public by every reading."""
    usable = dialable("example.net", found, US, [])
    if isinstance(usable, Outcome):
        assert not any(is_public(address) for host in found for address in host.addresses)
        return

    assert all(is_public(address) for host in usable for address in host.addresses)


@given(st.one_of(*(st.ip_addresses(network=network) for network in INTERNAL_4)), st.integers(0, 2**32 - 1))
def test_an_internal_address_is_internal_in_every_disguise(address, low):
    """Row B12: mapped, compatible, NAT64, 6to4."""
    assert isinstance(address, IPv4Address)
    value = int(address)
    disguises = [
        IPv6Address((0xFFFF << 32) | value),
        IPv6Address(value),
        IPv6Address((0x64FF9B << 96) | value),
        IPv6Address((0x2002 << 112) | (value << 80) | low),
    ]

    assert not is_public(address)
    assert not any(is_public(ip_address(disguise)) for disguise in disguises)
