"""What the answers that come, or do not come, say about the resolver itself."""

import asyncio
from collections.abc import Callable

from mailstrom_async._errors import ResolutionFailed

TROUBLE_AFTER = 3
"""Questions in a row without an answer, all different, before the resolver counts as ill rather than the domains."""


class ResolverHealth:
    """A domain that can't be looked up has its own trouble; when nothing can be looked up, the resolver has it.

    Args:
        report: Told what ails the resolver, or None: it is well.
    """

    def __init__(self, report: Callable[[str | None], None]) -> None:
        self._report = report
        self._failing: set[str] = set()
        self.ill = asyncio.Event()

    def answered(self) -> None:
        """A question was answered; "there is none" is an answer, too."""
        self._failing.clear()
        self.ill.clear()
        self._report(None)

    def failed(self, question: str, error: ResolutionFailed, *, vital: bool = False) -> None:
        """A question could not be answered.

        Args:
            question: What was asked.
            error: Why it was not answered.
            vital: Without an answer nothing can be delivered.
        """
        if len(self._failing) < TROUBLE_AFTER:
            self._failing.add(question)
        if vital or error.unreachable or len(self._failing) == TROUBLE_AFTER:
            self.ill.set()
            self._report(str(error))
