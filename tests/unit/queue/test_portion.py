"""What of a limit is ours."""

from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async._queue.portion import UNKNOWN, WHOLE, Portion


@given(st.integers(1, 50), st.integers(1, 1000))
def test_all_portions_together_are_the_limit(count: int, limit: int) -> None:
    """Not one less, and not one more unless there are more mailers than connections: none has none."""
    portions = [Portion(number, count).of(limit) for number in range(count)]

    assert sum(portions) == max(limit, count)
    assert max(portions) - min(portions) <= 1
    assert min(portions) >= 1


def test_a_rate_is_divided_evenly() -> None:
    """It need not be a whole number."""
    assert sum(Portion(number, 3).of_rate(10.0) for number in range(3)) == 10.0


def test_who_is_alone_has_it_whole_and_who_does_not_know_has_one() -> None:
    """The two ends."""
    assert (WHOLE.of(64), WHOLE.of(1)) == (64, 1)
    assert (UNKNOWN.of(64), UNKNOWN.of(1)) == (1, 1)
