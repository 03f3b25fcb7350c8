"""When a save is complete: pure, told of changes and of the time (seconds of any one clock)."""

from __future__ import annotations

from deployer.watch.change import Change, Kind

MOST_S = 2.0
"""A tree that never gets quiet is told after so long: somebody waits for it."""
WRITER_S = 0.5
"""Who has a file open and wrote to it is waited for so long after each write: it may be half of it. A program that
never closes its file delays no more than that."""
CHECKOUT_S, CHECKOUT_MOST_S = 0.5, 10.0
"""The same two while git may be changing the tree: how long it may pause, and how long that is waited for at all."""


class Settle:
    """Quiet is counted from the last change of the whole tree, whatever file that was."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._first: float | None = None
        self._last = 0.0
        self._written: dict[str, float] = {}  # files that somebody has open, by their last write

    def note(self, change: Change, now: float) -> None:
        if self._first is None:
            self._first = now
        self._last = now
        if change.kind is Kind.WRITING:
            self._written[change.path] = now
        else:
            self._written.pop(change.path, None)

    def due(self, *, checkout: bool = False) -> float | None:
        """When all that changed is complete, unless more comes; None when nothing changed. `checkout`: git may be
        changing more."""
        if self._first is None:
            return None
        writers = max(self._written.values(), default=0.0)
        pause_s, most_s = (CHECKOUT_S, CHECKOUT_MOST_S) if checkout else (self._quiet_s, MOST_S)
        quiet = max(self._last + pause_s, writers + WRITER_S if self._written else 0.0)
        return min(quiet, self._first + most_s)

    def told(self) -> None:
        """What comes from now on is of the next save."""
        self._first = None
        self._written = {path: at for path, at in self._written.items() if at + WRITER_S > self._last}
