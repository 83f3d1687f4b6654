"""BDAT's argument (RFC 3030 section 2)."""

import re
from typing import NamedTuple

_ARGUMENT = re.compile(r"([0-9]{1,18})( LAST)?", re.IGNORECASE)


class Chunk(NamedTuple):
    """A piece of a content that is announced by its length."""

    size: int
    last: bool

    @classmethod
    def parse(cls, argument: str) -> "Chunk | None":
        """The chunk that is announced; None: nobody can tell."""
        match = _ARGUMENT.fullmatch(argument)
        return None if match is None else cls(int(match[1]), match[2] is not None)
