"""What is remembered of hosts that can't take all that they offer."""

import pytest

from mailstrom_async.smtp import manners
from mailstrom_async.smtp.manners import LASTS, Manner, Manners


def test_a_host_of_which_nothing_is_known_is_believed():
    """What it offers it gets."""
    assert Manners().of("mx", 5.0) is Manner.STREAMED


@pytest.mark.parametrize(
    ("wrong", "then"),
    [
        (Manner.STREAMED, Manner.AHEAD),
        (Manner.AHEAD, Manner.GROUPED),
        (Manner.GROUPED, Manner.ONE_BY_ONE),
        (Manner.ONE_BY_ONE, Manner.STREAMED),  # less is not possible, and it was no fault of that
    ],
)
def test_what_went_wrong_is_done_with_less_for_some_time(wrong, then):
    """From the window to four round trips, step by step, and back at once when the time is over."""
    known = Manners()
    known.too_much("mx", wrong, 100.0)

    assert known.of("mx", 100.0) is then
    assert known.of("mx", 99.0 + LASTS) is then
    assert known.of("mx", 100.0 + LASTS) is Manner.STREAMED
    assert known.of("other", 100.0) is Manner.STREAMED


def test_news_of_a_session_that_began_before_makes_nothing_faster():
    """One with an old view of the host tells of more than what it is sent now."""
    known = Manners()
    known.too_much("mx", Manner.GROUPED, 100.0)
    known.too_much("mx", Manner.STREAMED, 101.0)

    assert known.of("mx", 102.0) is Manner.ONE_BY_ONE


def test_a_bounded_number_of_hosts_is_remembered(monkeypatch):
    """Those of whom nothing was heard for longest are forgotten."""
    monkeypatch.setattr(manners, "REMEMBERED", 2)
    known = Manners()
    for host in ("a", "b", "a", "c"):
        known.too_much(host, Manner.AHEAD, 100.0)

    assert [known.of(host, 101.0) for host in "abc"] == [Manner.GROUPED, Manner.STREAMED, Manner.GROUPED]
