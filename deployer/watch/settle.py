"""When a save is complete: pure, told of changes and of the time (seconds of any one clock)."""

from __future__ import annotations

from deployer.watch.change import Change, Kind

MOST_S = 2.0
"""A tree that never gets quiet is told after so long: somebody waits for it."""
WRITER_S = 0.5
"""Who has a file open and wrote to it is waited for so long after each write: it may be half of it. A program that
never closes its file delays no more than that."""


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

    def due(self) -> float | None:
        """When all that changed is complete, unless more comes; None when nothing changed."""
        if self._first is None:
            return None
        writers = max(self._written.values(), default=0.0)
        quiet = max(self._last + self._quiet_s, writers + WRITER_S if self._written else 0.0)
        return min(quiet, self._first + MOST_S)

    def told(self) -> None:
        """What comes from now on is of the next save."""
        self._first = None
        self._written = {path: at for path, at in self._written.items() if at + WRITER_S > self._last}
