"""Which limits hold for a site."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from mailstrom_async import Limits, LimitsFor, Rate
from mailstrom_async._policy.limits import SiteLimits, matches, own_entries, site_limits

SLOW = Rate(messages=1, per=timedelta(minutes=1))
FAST = Rate(messages=100)


def test_without_overrides_the_general_limits_hold():
    """What `Limits` says is said for each site."""
    limits = Limits(connections_per_host=3, messages_per_connection=4, recipients_per_transaction=5, rate=FAST)

    assert site_limits(limits, "example.net", ["mx.example.net"]) == SiteLimits(3, 4, 5, FAST, None)


def test_a_limit_for_a_host_holds_for_all_domains_that_it_serves():
    """A provider is spoken of by the names of its exchangers."""
    limits = Limits(overrides=[LimitsFor(mx="*.google.com", connections_per_host=20, rate=FAST)])

    for domain in ("gmail.com", "example.org"):
        assert site_limits(limits, domain, ["mx.own.example", "alt1.l.google.com"]) == SiteLimits(20, 100, 100, FAST, 0)
    assert site_limits(limits, "example.org", ["mx.google.com.example.org"]) == SiteLimits(8, 100, 100)


def test_a_domain_goes_before_a_host_and_each_limit_is_looked_for_by_itself():
    """What the first entry leaves open, the next one that applies decides."""
    limits = Limits(
        connections_per_host=7,
        overrides=[
            LimitsFor(mx="*.google.com", messages_per_connection=20, recipients_per_transaction=2, rate=FAST),
            LimitsFor(domain="*.example.net", recipients_per_transaction=4),
            LimitsFor(domain="a.example.net", recipients_per_transaction=5, rate=SLOW),
        ],
    )

    assert site_limits(limits, "a.example.net", ["mx.google.com"]) == SiteLimits(7, 20, 4, SLOW, 2)
    assert site_limits(limits, "b.example.net", ["mx.google.com"]) == SiteLimits(7, 20, 4, FAST, 0)
    assert site_limits(limits, "example.net", ["mx.example.net"]) == SiteLimits(7, 100, 100)


def test_a_domain_that_is_spoken_of_is_a_site_of_its_own():
    """Else its limits would hold for others, too."""
    overrides = [LimitsFor(mx="*.net", rate=SLOW), LimitsFor(domain="example.net", rate=SLOW)]

    assert own_entries(overrides, "example.net") == (1,)
    assert own_entries(overrides, "www.example.net") == ()


def test_domains_of_which_other_entries_speak_are_other_sites():
    """Else what holds for both would be what holds for whoever came first."""
    overrides = [
        LimitsFor(domain="*.example.net", rate=SLOW),
        LimitsFor(domain="a.example.net", connections_per_host=1),
    ]

    assert own_entries(overrides, "a.example.net") == (0, 1)
    assert own_entries(overrides, "b.example.net") == (0,)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("example.net", "example.net", True),
        ("example.net", "a.example.net", False),
        ("*.example.net", "a.example.net", True),
        ("*.example.net", "b.a.example.net", True),
        ("*.example.net", "example.net", False),
        ("*.example.net", "badexample.net", False),
    ],
)
def test_a_pattern_is_a_name_or_all_names_below_one(pattern, name, expected):
    """Nothing in between: such a pattern is understood at a glance."""
    assert matches(pattern, name) is expected


def test_patterns_are_written_as_dns_has_them():
    """Letter case and U-labels do not matter."""
    assert LimitsFor(domain="*.Bücher.example", connections_per_host=1).domain == "*.xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"connections_per_host": 1}, "set either domain or mx"),
        ({"domain": "a.example", "mx": "b.example", "connections_per_host": 1}, "set either domain or mx"),
        ({"domain": "a.example"}, "limit nothing"),
        ({"domain": "a.example", "rate": None}, "limit nothing"),
        ({"mx": "mx*.example.net", "connections_per_host": 1}, r"write a whole name, or \*\.example\.org"),
        ({"mx": "*", "connections_per_host": 1}, "write a whole name"),
        ({"domain": "not a name", "connections_per_host": 1}, "not a host name"),
        ({"domain": "a.example", "connections_per_host": 0}, "greater than or equal to 1"),
        ({"domain": "a.example", "rate": {"messages": 1, "per": timedelta(0)}}, "longer than nothing"),
        ({"domain": "a.example", "speed": 1}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(settings, message):
    """A setting that would be ignored is an error."""
    with pytest.raises(ValidationError, match=message):
        LimitsFor(**settings)


def test_nobody_is_named_twice():
    """The second entry would be ignored."""
    with pytest.raises(ValidationError, match=r"example\.net is named twice"):
        Limits(overrides=[LimitsFor(domain="example.net", rate=SLOW), LimitsFor(domain="Example.NET", rate=FAST)])
