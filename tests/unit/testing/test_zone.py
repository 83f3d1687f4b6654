"""The records of the scripted nameserver, and what it finds in them."""

from datetime import timedelta

import pytest

from mailstrom_async.testing import Fault, Forged, InTurn, Late, Records, Truncated, Zone
from mailstrom_async.testing._zone import Found


def test_records_are_found_by_name_and_type():
    """Letter case does not count, nor a final dot."""
    zone = Zone({"Example.NET.": {"mx": ["10 mx.example.net"]}})

    assert zone.find("eXample.net", "MX") == Found((), "example.net", ["10 mx.example.net"])
    assert zone["EXAMPLE.net"] == {"MX": ["10 mx.example.net"]}


def test_no_records_are_told_from_no_name():
    """A name that only has names below it exists (RFC 8020)."""
    zone = Zone({"a.b.example.net": {"A": ["127.0.0.1"]}})

    assert zone.find("a.b.example.net", "MX") == Found((), "a.b.example.net", ())
    assert zone.find("b.example.net", "MX").exists
    assert not zone.find("xb.example.net", "MX").exists
    assert not zone.find("c.example.net", "MX").exists


def test_aliases_are_followed():
    """To their end, whatever is there; asked for themselves they are the answer."""
    zone = Zone(
        {"a.example": {"CNAME": ["b.example"]}, "b.example": {"CNAME": ["c.example."]}, "c.example": Fault.MUTE}
    )

    assert zone.find("a.example", "A") == Found(
        (("a.example", "b.example"), ("b.example", "c.example")), "c.example", Fault.MUTE
    )
    assert zone.find("a.example", "A", follow=False) == Found((("a.example", "b.example"),), "b.example", ())
    assert zone.find("a.example", "CNAME") == Found((), "a.example", ["b.example"])


def test_aliases_in_a_circle_have_an_end():
    """Each is in the answer once, as real servers do it."""
    zone = Zone({"a.example": {"CNAME": ["b.example"]}, "b.example": {"CNAME": ["a.example"]}})

    assert zone.find("a.example", "A") == Found(
        (("a.example", "b.example"), ("b.example", "a.example")), "a.example", ()
    )


def test_an_alias_may_go_wrong_itself():
    """A fault in place of the CNAME."""
    zone = Zone({"a.example": {"CNAME": Fault.SERVFAIL}})

    assert zone.find("a.example", "A").answer is Fault.SERVFAIL


def test_international_names_are_written_either_way():
    """U-label or A-label."""
    zone = Zone({"bücher.example": {"A": ["127.0.0.1"]}})

    assert list(zone) == ["xn--bcher-kva.example"]
    assert zone["bücher.example"] == zone["xn--bcher-kva.example"]


@pytest.mark.parametrize(
    "entry",
    [
        {"MX": ["mx.example.net"]},
        {"MX": ["ten mx.example.net"]},
        {"A": ["127.0.0"]},
        {"A": "127.0.0.1"},
        {"NONSENSE": ["x"]},
        {"MX": Records("mx", ttl=1)},
        {"MX": Late(timedelta(0), ["mx"])},
        {"MX": Truncated(["mx"])},
        {"MX": Forged(["mx"], ["10 mx"])},
        {"MX": Forged(["10 mx"], ["mx"])},
        {"MX": InTurn(["10 mx"], ["mx"])},
    ],
)
def test_records_that_can_not_be_read_are_refused_at_once(entry):
    """With the name and the type in the message."""
    with pytest.raises(ValueError, match=f"example.net {next(iter(entry))}"):
        Zone({"example.net": entry})


@pytest.mark.parametrize("name", ["a..b", "a" * 64])
def test_names_that_are_none_are_refused(name):
    """RFC 1035 section 2.3.4."""
    with pytest.raises(ValueError, match="is no domain name"):
        Zone({name: {}})


def test_answers_in_turn_go_round():
    """The first follows the last."""
    turns = InTurn(Fault.SERVFAIL, ["127.0.0.1"])

    assert [turns.next_answer() for _ in range(3)] == [Fault.SERVFAIL, ["127.0.0.1"], Fault.SERVFAIL]
    with pytest.raises(ValueError, match="at least one"):
        InTurn()
