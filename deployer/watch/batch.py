"""What the next save consists of. Pure."""

from __future__ import annotations

from deployer.watch.change import EVERYTHING, Change, Kind

SHOWN = 20  # files by name in a message


class Batch:
    def __init__(self) -> None:
        self.at = 0.0  # the last change, seconds since the epoch
        self._paths: dict[str, None] = {}  # in their order
        self._new: set[str] = set()  # those that were not there before

    def add(self, change: Change, at: float) -> None:
        """Of a change that counts. A file that came and went again (the temporary name of an editor) is none."""
        path = change.path
        if change.kind is Kind.MADE and path not in self._paths:
            self._new.add(path)
        self.at = at
        self._paths[path] = None
        if change.kind in (Kind.GONE, Kind.LOST) and path in self._new:
            self._new.discard(path)
            del self._paths[path]

    def copied(self) -> None:
        """A snapshot that is being made may have what is here now: should that go, it is a change."""
        self._new.clear()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def take(self) -> tuple[list[str], int]:
        """The first files, and how many there are; it begins anew."""
        files = [path for path in self._paths if path != EVERYTHING] or list(self._paths)
        self._paths, self._new = {}, set()
        return files[:SHOWN], len(files)
