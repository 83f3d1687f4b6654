"""Values that are made for every mail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def immutable() -> Callable[[type[T]], type[T]]:
    """A dataclass of which type checkers know that nobody changes it.

    With `frozen=True` Python would see to that itself, and making one would take four times as long: each field would
    go through `object.__setattr__`. That is for what is made now and then.
    """
    return dataclass(slots=True, unsafe_hash=True)
