"""What callers hand in, looked at before anything is done with it: not every caller checks types."""

from datetime import datetime, timedelta


def check_type(name: str, value: object, kind: type, what: str) -> None:
    """Raise a TypeError that tells what an argument must be.

    Args:
        name: The argument's.
        value: What came.
        kind: What it must be an instance of.
        what: The same in words.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, and is a {type(value).__name__}")


def check_class(name: str, kind: object, base: type, what: str) -> None:
    """As `check_type`, of a class."""
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise TypeError(f"{name} must be {what}, and is {kind!r}")


def check_span(name: str, span: object) -> None:
    """Raises TypeError."""
    check_type(name, span, timedelta, "a timedelta such as timedelta(minutes=10)")


def check_moment(name: str, moment: object) -> None:
    """Raises TypeError or, if it has no time zone, ValueError."""
    check_type(name, moment, datetime, "an aware datetime such as datetime.now(UTC)")
    if isinstance(moment, datetime) and moment.tzinfo is None:
        raise ValueError(f"{name} has no time zone; use an aware datetime such as datetime.now(UTC)")
