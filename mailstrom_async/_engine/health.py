"""How delivery itself is doing: one state made of what each part reports."""

import logging
from collections.abc import Callable
from typing import Literal

from mailstrom_async._status import WorkerStatus

logger = logging.getLogger("mailstrom_async")

Mode = Literal["starting", "running", "paused", "stopped"]


class Health:
    """Holds what ails which part (the store, the resolver, the relay), and what follows for the whole."""

    def __init__(self, on_change: Callable[[WorkerStatus], None]) -> None:
        self._on_change = on_change
        self._mode: Mode = "stopped"
        self._troubles: dict[str, str] = {}
        self._status = WorkerStatus(state="stopped")

    @property
    def status(self) -> WorkerStatus:
        return self._status

    def enter(self, mode: Mode) -> None:
        """What the caller wants of us now."""
        self._mode = mode
        if mode != "running":
            # Whoever reported them is gone, and so nobody would say that it is well again.
            self._troubles.clear()
        self._update()

    def report(self, part: str, trouble: str | None) -> None:
        """What ails a part; None: it is well."""
        if trouble is None:
            if part not in self._troubles:
                return
            del self._troubles[part]
            logger.info("%s is well again", part)
        else:
            if self._troubles.get(part) == trouble:
                return
            self._troubles[part] = trouble
            logger.warning("%s: %s", part, trouble)
        self._update()

    def ails(self, part: str) -> bool:
        return part in self._troubles

    def _update(self) -> None:
        if self._troubles and self._mode == "running":
            reason = "; ".join(f"{part}: {trouble}" for part, trouble in self._troubles.items())
            status = WorkerStatus(state="degraded", reason=reason)
        else:
            status = WorkerStatus(state=self._mode)
        if status != self._status:
            self._status = status
            self._on_change(status)
