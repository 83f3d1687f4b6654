"""What the answers that come, or do not come, say about the resolver itself."""

import asyncio
from collections.abc import Callable

from mailstrom_async._errors import ResolutionFailed

TROUBLE_AFTER = 3
"""Failures in a row, all of different questions, before they count against the resolver rather than the domains."""


class ResolverHealth:
    """A domain that can't be looked up has its own trouble; when nothing can be looked up, the resolver has it.

    Args:
        report: Told what ails the resolver, or None: it is well.

    Attributes:
        ill: It was reported so.
        doubted: Set while it is ill, or once it left a question without any answer: ask it something else.
    """

    def __init__(self, report: Callable[[str | None], None]) -> None:
        self._report = report
        self._failing: set[str] = set()
        self.ill = False
        self.doubted = asyncio.Event()

    def asking(self) -> None:
        """Something else is asked now."""
        if not self.ill:
            self.doubted.clear()

    def answered(self) -> None:
        """A question was answered; "there is none" is an answer, too."""
        self._failing.clear()
        self.ill = False
        self.doubted.clear()
        self._report(None)

    def failed(self, question: str, error: ResolutionFailed, *, vital: bool = False) -> None:
        """A question could not be answered.

        Args:
            question: What was asked.
            error: Why it was not answered.
            vital: It can't be the question's fault, or without an answer nothing can be delivered.
        """
        if len(self._failing) < TROUBLE_AFTER:
            self._failing.add(question)
        if vital or len(self._failing) == TROUBLE_AFTER:
            self.ill = True
            self._report(str(error))
        if self.ill or not error.answered:
            self.doubted.set()
