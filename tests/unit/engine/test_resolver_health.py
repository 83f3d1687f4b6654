"""When failures count against the resolver."""

import pytest

from mailstrom_async._engine.resolver_health import ResolverHealth
from mailstrom_async._errors import ResolutionFailed

SERVFAIL, SILENCE = ResolutionFailed("server failure"), ResolutionFailed("no answer", answered=False)


@pytest.fixture
def reports() -> list[str | None]:
    """What was reported."""
    return []


@pytest.fixture
def health(reports) -> ResolverHealth:
    """What is judged."""
    return ResolverHealth(reports.append)


def test_three_different_questions_in_a_row_count(health, reports):
    """The same one again does not, nor one answered in between."""
    for question in ("a", "b", "a", "b"):
        health.failed(question, SERVFAIL)
    health.answered()
    for question in ("c", "d"):
        health.failed(question, SERVFAIL)
    assert reports == [None]
    assert not health.ill

    health.failed("e", SERVFAIL)
    assert reports == [None, "server failure"]
    assert health.ill


def test_silence_raises_a_doubt(health, reports):
    """Which another question settles: it is asked once, and not for ever."""
    health.failed("a", SERVFAIL)
    assert not health.doubted.is_set()
    health.failed("a", SILENCE)
    assert health.doubted.is_set()
    health.asking()
    health.failed("anything", SERVFAIL)
    assert not health.doubted.is_set()
    assert reports == []


def test_what_is_vital_counts_at_once_and_until_there_is_an_answer(health, reports):
    """As long as it is ill it is asked again."""
    health.failed("anything", SILENCE, vital=True)
    health.asking()
    assert health.ill
    assert health.doubted.is_set()
    health.answered()

    assert reports == ["no answer", None]
    assert not health.ill
    assert not health.doubted.is_set()
