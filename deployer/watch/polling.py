"""Changes found by looking: for what the kernel does not tell of (network and container mounts), or no longer can."""

from __future__ import annotations

from typing import NamedTuple

from deployer.watch.change import Change, Kind
from deployer.watch.selection import Found, Selection


class _Seen(NamedTuple):
    directory: bool
    inode: int
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0


class PollingWatch:
    """Compares each look at the selection with the one before."""

    fd: int | None = None  # nothing to wait for
    blind = False  # it looks at what has the source's name

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._seen = self._look()

    @property
    def directories(self) -> int:
        return 1 + sum(seen.directory for seen in self._seen.values())

    def read(self) -> list[Change]:
        """All that happened since the last look."""
        before, self._seen = self._seen, self._look()
        return compare(before, self._seen)

    def close(self) -> None:
        """There is nothing to give back."""

    def _look(self) -> dict[str, _Seen]:
        self._selection.reload()
        looks = ((found.path, _look_at(found)) for found in self._selection.walk())
        return {path: seen for path, seen in looks if seen is not None}


def compare(before: dict[str, _Seen], after: dict[str, _Seen]) -> list[Change]:
    gone = [Change(path, Kind.GONE, seen.directory) for path, seen in before.items() if path not in after]
    changed = []
    for path, seen in after.items():
        former = before.get(path)
        if former != seen:
            changed.append(Change(path, Kind.MADE if former is None else Kind.CHANGED, seen.directory))
    return gone + changed


def _look_at(found: Found) -> _Seen | None:
    try:
        if found.directory:
            return _Seen(True, found.entry.inode())
        stat = found.entry.stat(follow_symlinks=False)
    except OSError:
        return None  # it has just gone
    return _Seen(False, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
