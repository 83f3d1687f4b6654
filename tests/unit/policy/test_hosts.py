"""What DNS answers mean: which hosts, in which order, at which addresses."""

from collections import Counter
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from mailstrom_async._policy.hosts import (
    MOST_HOSTS,
    Exchanger,
    Host,
    dialable,
    exchangers,
    in_order,
    is_host_name,
    is_public,
    no_usable_host,
    permitted,
    to_look_up,
)

US = "app.example.org"
PUBLIC_4, PUBLIC_6 = ip_address("9.9.9.9"), ip_address("2620:fe::fe")
LOOPBACK = ip_address("127.0.0.1")


def names(found):
    return [exchanger.name for exchanger in found]


def host(preference, name, *addresses):
    return Host(preference, name, tuple(ip_address(address) for address in addresses))


# Exchangers.


def test_exchangers_are_sorted_by_preference():
    """RFC 5321 section 5.1: the lowest number first."""
    assert names(exchangers("example.net", [(20, "b"), (5, "c"), (10, "a")], US)) == ["c", "a", "b"]


def test_without_mx_records_the_domain_is_its_own_exchanger():
    """Row B2: RFC 5321 section 5.1, implicit MX."""
    assert exchangers("example.net", [], US) == (Exchanger(0, "example.net"),)


def test_a_host_named_twice_counts_once():
    """At its better preference."""
    assert exchangers("example.net", [(20, "a"), (10, "a"), (15, "b")], US) == (Exchanger(10, "a"), Exchanger(15, "b"))


@pytest.mark.parametrize("records", [[(0, "")], [(10, "")], [(0, ""), (5, "")]])
def test_a_null_mx_takes_no_mail(records):
    """Row B7: RFC 7505, whatever the preference."""
    outcome = exchangers("example.net", records, US)

    assert (outcome.state, outcome.enhanced) == ("failed", "5.1.10")


def test_a_null_mx_beside_others_does_not_count():
    """Row B8."""
    assert names(exchangers("example.net", [(0, ""), (10, "a")], US)) == ["a"]


@pytest.mark.parametrize(
    "text", ["192.0.2.1", "::1", "2001:db8::1", "a b", "a\\032b", ".a", "a..b", "-a", "a-", "é", "1.2"]
)
def test_what_is_no_host_name_is_no_exchanger(text):
    """Row B14: alone it fails, beside others it is passed over."""
    assert exchangers("example.net", [(10, text)], US) == no_usable_host("example.net")
    assert names(exchangers("example.net", [(10, text), (20, "mx.example.net")], US)) == ["mx.example.net"]


@pytest.mark.parametrize(
    "text", ["mx", "mx.example.net", "mx_1.example.net", "_x.example", "3com.example", "xn--bcher-kva.de"]
)
def test_host_names(text):
    """Underscores are wrong, and common."""
    assert is_host_name(text)


def test_long_names_are_no_host_names():
    """RFC 1035 section 2.3.4: labels up to 63 octets, names up to 253 as they are written."""
    assert is_host_name("a" * 63 + ".example")
    assert not is_host_name("a" * 64 + ".example")
    assert is_host_name(".".join(["a" * 49] * 5))
    assert not is_host_name(".".join(["a" * 63] * 4))


def test_we_and_what_is_worse_are_dropped():
    """Row B15: equals of ours, too, for they may give the mail to us."""
    records = [(10, "a"), (20, US), (20, "b"), (30, "c")]

    assert names(exchangers("example.net", records, US)) == ["a"]


@pytest.mark.parametrize("records", [[(10, US)], [(10, US), (10, "a")], [(10, US), (20, "a")]])
def test_if_we_are_the_best_the_mail_would_go_in_a_circle(records):
    """Row B15."""
    outcome = exchangers("example.net", records, US)

    assert (outcome.state, outcome.cause, outcome.enhanced) == ("failed", "policy", "5.4.6")


def test_the_domain_may_be_we_ourselves():
    """Row B15, without MX records."""
    assert exchangers(US, [], US).enhanced == "5.4.6"


def test_the_best_are_looked_up_and_chance_decides_between_equals():
    """Row B16: every host of a hundred equals has its turn, but none before a better one."""
    named = [Exchanger(5, "best"), *(Exchanger(10, f"mx{number}") for number in range(100))]
    chosen = [to_look_up(named, Random(seed)) for seed in range(200)]

    assert all(len(few) == MOST_HOSTS and few[0].name == "best" for few in chosen)
    assert len({name for few in chosen for name in names(few)}) == 101


def test_hosts_that_nobody_asked_for_make_no_failure_final():
    """Row B19: only if DNS answered for every host."""
    assert no_usable_host("example.net").state == "failed"
    assert no_usable_host("example.net", 90).state == "deferred"


# Addresses.


INTERNAL = (
    "0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 127.255.255.255 169.254.169.254 172.16.0.1 172.31.255.255 192.0.2.1 "
    "192.168.0.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255 "
    ":: ::1 fc00::1 fdff::1 fe80::1 febf::1 fec0::1 ff02::1 2001:db8::1 100::1 5f00::1 "
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 ::10.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe "
    "64:ff9b:1::1 2002:7f00:1::1 2002:a00:1:: 2001:0:4136:e378:8000:63bf:80ff:fffe"
)


@pytest.mark.parametrize("address", INTERNAL.split())
def test_internal_addresses(address):
    """Row B12: internal, or with an internal IPv4 address in them: mapped, compatible, NAT64, 6to4, Teredo."""
    assert not is_public(ip_address(address))


PUBLIC = (
    "9.9.9.9 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 192.167.1.1 2620:fe::fe 2a00:1450::1 "
    "::ffff:9.9.9.9 64:ff9b::909:909 2002:909:909::1"
)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses(address):
    """Also those behind a translator (RFC 6052)."""
    assert is_public(ip_address(address))


def test_only_networks_that_were_opened_are_permitted():
    """Row B12: a network opens addresses of its own family only."""
    addresses = [ip_address(text) for text in ("127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "9.9.9.9")]

    assert permitted(addresses, []) == (PUBLIC_4,)
    assert permitted(addresses, [ip_network("127.0.0.1/32")]) == (LOOPBACK, PUBLIC_4)
    assert permitted(addresses, [ip_network("127.0.0.0/8")]) == (LOOPBACK, ip_address("127.0.0.2"), PUBLIC_4)


def test_hosts_keep_the_addresses_that_may_be_dialled():
    """Row B12: a host without any is passed over."""
    hosts = [host(10, "a", "127.0.0.1", "9.9.9.9"), host(20, "b", "10.0.0.1")]

    assert dialable("example.net", hosts, US, []) == (host(10, "a", "9.9.9.9"),)
    assert dialable("example.net", hosts[1:], US, []).enhanced == "5.4.6"


@pytest.mark.parametrize("own", ["[9.9.9.9]", "[IPv6:2620:fe::fe]"])
def test_a_host_at_our_literal_is_we_ourselves(own):
    """Row B15: with all that is worse."""
    ours = host(10, "b", "9.9.9.9", "2620:fe::fe")
    better, worse = host(5, "a", "9.9.9.10"), host(20, "c", "9.9.9.11")

    assert dialable("example.net", [better, ours, worse], own, []) == (better,)
    assert dialable("example.net", [ours, worse], own, []).enhanced == "5.4.6"


# Order.


def test_better_hosts_are_tried_first_and_both_families_by_turns():
    """RFC 5321 section 5.1; row B23: an IPv6 address that leads nowhere costs one try."""
    a = host(10, "a", "9.9.9.1", "2620:fe::1", "9.9.9.2", "2620:fe::2")
    b = host(20, "b", "9.9.9.3")
    order = in_order([b, a], Random(1), 10)

    assert [name for name, _ in order] == ["a", "a", "b", "a", "a"]
    assert [address.version for _, address in order] == [6, 4, 4, 6, 4]
    assert len(set(order)) == 5


def test_every_address_is_tried_once_whatever_chance_says():
    """Also of a host with many."""
    many = host(10, "a", *(f"9.9.9.{number}" for number in range(20)))
    for seed in range(50):
        order = in_order([many], Random(seed), 100)

        assert {address for _, address in order} == set(many.addresses)
        assert len(order) == 20


def test_no_more_addresses_than_wanted():
    """`Limits.hosts_per_attempt`."""
    hosts = [host(10, f"mx{number}", "9.9.9.9") for number in range(10)]

    assert len(in_order(hosts, Random(1), 5)) == 5


def test_equals_are_tried_in_random_order():
    """Row B17."""
    hosts = [host(10, "a", "9.9.9.1"), host(10, "b", "9.9.9.2")]
    chance = Random(1)
    first = Counter(in_order(hosts, chance, 2)[0][0] for _ in range(200))

    assert all(70 <= first[name] <= 130 for name in "ab")


def test_of_equals_the_one_that_was_tried_least_goes_first():
    """Row B17: but never before a better one."""
    hosts = [host(10, "a", "9.9.9.1"), host(10, "b", "9.9.9.2"), host(20, "c", "9.9.9.3")]
    order = in_order(hosts, Random(1), 3, {"a": 3, "b": 2, "c": 0})

    assert [name for name, _ in order] == ["b", "a", "c"]
