"""Feedback: what opens the window of a site, what closes it, and when it counts as dead."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async import Outcome, Reply, RetryPolicy
from mailstrom_async._policy.congestion import (
    Signal,
    Window,
    held_back_until,
    signal_of,
    throttled_for,
)
from mailstrom_async._policy.verdict import judge, judge_breakdown
from mailstrom_async._reply import Phase

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def replied(code: int, phase: Phase) -> Outcome:
    return judge(phase, Reply(code=code, enhanced=None, text="so it is", command=phase, host="mx.example.net"))


SILENT = judge_breakdown(Phase.END_OF_DATA, "outcome_unknown", "no answer")
GONE = judge_breakdown(Phase.MAIL, "network", "closed")
NONSENSE = judge_breakdown(Phase.DATA, "protocol", "no SMTP")
TAKEN = replied(250, Phase.END_OF_DATA)
GREYLISTED = replied(451, Phase.RCPT)
UNKNOWN_USER = replied(550, Phase.RCPT)


@pytest.mark.parametrize(
    ("outcomes", "signal"),
    [
        ([TAKEN], Signal.TAKEN),
        ([GREYLISTED, TAKEN, UNKNOWN_USER], Signal.TAKEN),
        ([GREYLISTED], Signal.ANSWERED),
        ([UNKNOWN_USER], Signal.ANSWERED),
        ([replied(554, Phase.END_OF_DATA)], Signal.ANSWERED),
        ([replied(451, Phase.MAIL)], Signal.BUSY),
        ([replied(452, Phase.DATA)], Signal.BUSY),
        ([UNKNOWN_USER, replied(451, Phase.END_OF_DATA)], Signal.BUSY),
        ([replied(421, Phase.RCPT)], Signal.BROKEN),
        ([replied(421, Phase.MAIL)], Signal.BROKEN),
        ([GREYLISTED, SILENT], Signal.BROKEN),
        ([GONE], Signal.BROKEN),
        ([NONSENSE], Signal.BROKEN),
        ([judge_breakdown(Phase.DATA, "local", "our fault")], Signal.ANSWERED),
        ([], Signal.ANSWERED),
    ],
)
def test_what_outcomes_tell_of_the_site(outcomes, signal):
    """A refusal of a recipient is no fault of the site's, silence is, and a message that is taken outweighs both."""
    assert signal_of(outcomes) is signal


def test_each_message_that_is_taken_opens_the_window_up_to_the_limit():
    """Additive increase, from two."""
    window = Window(4)
    seen = [window.allowed]
    for _ in range(4):
        window.heed(Signal.TAKEN)
        seen.append(window.allowed)

    assert seen == [2, 3, 4, 4, 4]


def test_a_limit_of_one_is_kept_from_the_start():
    """Row I13."""
    window = Window(1)
    window.heed(Signal.TAKEN)

    assert window.allowed == 1


@pytest.mark.parametrize("signal", [Signal.BUSY, Signal.BROKEN])
def test_trouble_closes_the_window_by_half_once_for_each_cohort(signal):
    """What eight sessions meet at the same time is one trouble."""
    window = Window(8, 8)
    seen = []
    for _ in range(12):
        window.heed(signal)
        seen.append(window.allowed)

    assert seen == [4] * 8 + [2] * 4


def test_a_site_with_trouble_now_and_then_ends_with_one_session():
    """Three messages, then 421, on each of its sessions: it says that it has enough of us."""
    window = Window(8, 8)
    for _ in range(400):
        for _ in range(3):
            window.heed(Signal.TAKEN)
        assert not window.heed(Signal.BROKEN)

    assert window.allowed == 1


@pytest.mark.parametrize(("lasted", "rest"), [(0.01, 0.07), (0.1, 0.7), (9.9, 1)])
def test_a_host_that_ends_a_session_after_few_messages_is_busy_and_has_a_rest(lasted, rest):
    """Seven times as long as the session lasted, but a second at most."""
    window = Window(8, 8)

    assert window.shown_out(9, lasted) == pytest.approx(rest)
    assert window.allowed == 4


@pytest.mark.parametrize(("carried", "lasted"), [(10, 0.3), (1, 10)])
def test_a_host_that_ends_a_session_late_means_nothing_by_it(carried, lasted):
    """After many messages, or because it idled: the next one comes at once."""
    window = Window(8, 8)

    assert window.shown_out(carried, lasted) == 0
    assert window.allowed == 8


def test_a_host_that_ends_sessions_after_few_messages_is_not_dead():
    """It answers, and takes what comes on the next session."""
    window = Window(8)
    for _ in range(100):
        window.shown_out(1, 0.1)

    assert window.allowed == 1
    assert not window.heed(Signal.BROKEN)


def test_a_site_with_trouble_once_grows_again():
    """A restart of the host is not held against it for long."""
    window = Window(8, 8)
    for _ in range(8):
        window.heed(Signal.BROKEN)
    for _ in range(8):
        window.heed(Signal.TAKEN)

    assert window.allowed == 8


def test_a_site_that_only_answers_keeps_its_window():
    """Greylisting says nothing about how much the site can take."""
    window = Window(8, 5)
    for _ in range(100):
        assert not window.heed(Signal.ANSWERED)

    assert window.allowed == 5


def test_a_site_is_dead_when_a_whole_cohort_has_met_trouble():
    """Five sessions hang: four of them are not enough."""
    window = Window(8, 5)

    assert [window.heed(Signal.BROKEN) for _ in range(5)] == [False] * 4 + [True]


def test_one_broken_message_does_not_make_a_site_dead():
    """It may be the message that breaks it, so with a window of one it takes another."""
    window = Window(1)

    assert [window.heed(Signal.BROKEN) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("signal", [Signal.TAKEN, Signal.ANSWERED])
def test_any_sign_of_life_makes_the_count_begin_anew(signal):
    """A site that takes every third message is slow, and not dead."""
    window = Window(1)
    for _ in range(20):
        assert not window.heed(Signal.BROKEN)
        window.heed(signal)


def test_a_busy_site_is_never_dead():
    """It talks to us; each of its mails is deferred by its own reply."""
    window = Window(8)

    assert not any(window.heed(Signal.BUSY) for _ in range(100))
    assert window.allowed == 1


def test_a_refused_connection_closes_the_window_to_what_stands_and_makes_it_careful():
    """Row A63: four messages are to be taken before it is tried again, then sixteen."""
    window = Window(8, 6)
    window.refuse(3)
    assert window.allowed == 3
    grown = []
    for _ in range(8):
        window.heed(Signal.TAKEN)
        grown.append(window.allowed)
    assert grown == [3, 3, 3, 4, 4, 4, 4, 5]
    window.refuse(4)
    for _ in range(15):
        window.heed(Signal.TAKEN)

    assert window.allowed == 4


@given(st.integers(1, 20), st.lists(st.sampled_from(Signal)))
def test_the_window_stays_between_one_and_the_limit(most, signals):
    """Row I13, whatever happens."""
    window = Window(most)
    for signal in signals:
        window.heed(signal)

        assert 1 <= window.allowed <= most


def test_a_dead_site_is_left_alone_longer_and_longer():
    """Half a minute, a minute, ..., a quarter of an hour; the first time less than the first retry."""
    retry = RetryPolicy()
    spans = [throttled_for(failures, retry, 0.5).total_seconds() for failures in (1, 2, 3, 5, 6, 100, 10**9)]

    assert spans == [30, 60, 120, 480, 900, 900, 900]
    assert throttled_for(1, RetryPolicy(base_delay=timedelta(seconds=1)), 0.5) == timedelta(seconds=0.5)


def test_sites_that_died_together_are_not_probed_together():
    """Row E4: a tenth more or less."""
    spans = [throttled_for(6, RetryPolicy(), chance).total_seconds() for chance in (0, 0.25, 0.999)]

    assert spans == pytest.approx([810, 855, 989.8], abs=0.1)


def test_what_is_held_back_comes_with_the_probe_and_old_mail_a_quarter_of_its_age_later():
    """So that a backlog for a host that is down for days costs little."""
    probe_at = NOW + timedelta(seconds=30)

    longest = timedelta(hours=2)
    assert held_back_until(NOW, probe_at, NOW, longest) == probe_at
    assert held_back_until(NOW, probe_at, NOW - timedelta(minutes=1), longest) == probe_at
    assert held_back_until(NOW, probe_at, NOW - timedelta(hours=4), longest) == NOW + timedelta(hours=1)
    assert held_back_until(NOW, probe_at, NOW - timedelta(days=2), longest) == NOW + longest


def test_a_probe_that_fails_is_enough():
    """A site that was dead lately gets one session, and its first trouble shows that it still is."""
    window = Window.of_probe(8)

    assert window.allowed == 1
    assert window.heed(Signal.BROKEN)


def test_a_probe_that_is_answered_begins_anew():
    """Then one message alone is no proof again."""
    window = Window.of_probe(8)
    window.heed(Signal.TAKEN)

    assert not window.heed(Signal.BROKEN)
