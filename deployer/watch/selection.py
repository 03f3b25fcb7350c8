"""The source as it lies on the disk: which entries of it matter to the watch, by the rules of filters.py, .gitignore
and what directories are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deployer.errors import SourceError
from deployer.releases.sources.base import MAX_DEPTH, Exclude
from deployer.releases.sources.ignore import Ignore, Level
from deployer.watch.filters import Filters
from deployer.watch.protocol import Settings

VENV_MARK = "pyvenv.cfg"


class Found(NamedTuple):
    path: str
    entry: os.DirEntry[str]
    directory: bool


class Selection:
    def __init__(self, settings: Settings) -> None:
        self.top = os.path.realpath(settings.path)  # it may be named through a link
        self.filters = Filters(settings)
        self._include = Exclude(settings.include)
        self._root = identity(settings.root)
        self._ignore = Ignore(Path(self.top))
        self._levels: dict[str, list[Level]] = {}

    def reload(self) -> None:
        """Some .gitignore changed."""
        self._ignore = Ignore(Path(self.top))
        self._levels.clear()

    def forget(self, directory: str) -> None:
        """It came or went: it is another one now."""
        for path in [path for path in self._levels if path == directory or path.startswith(f"{directory}/")]:
            del self._levels[path]

    def absolute(self, path: str) -> str:
        return os.path.join(self.top, path) if path else self.top

    def matters(self, path: str, *, directory: bool) -> bool:
        """Of an entry whose directory matters."""
        if self.filters.ignores(path, directory=directory):
            return False
        levels = self._of(path.rpartition("/")[0])
        if not levels and not self._ignore.above:
            return True
        return not self._ignore.matches(levels, path, directory=directory) or self._include.reaches(
            path, directory=directory
        )

    def enters(self, path: str) -> bool:
        """Whether the directory, which matters by its name, is neither ROOT nor a virtual environment, nor too deep."""
        place = self.absolute(path)
        if path and os.path.lexists(os.path.join(place, VENV_MARK)):
            return False
        return path.count("/") < MAX_DEPTH and (self._root is None or identity(place) != self._root)

    def entries(self, directory: str) -> list[Found]:
        """What matters of a directory; nothing where it cannot be read: the copy tells why."""
        prefix = f"{directory}/" if directory else ""
        try:
            with os.scandir(self.absolute(directory)) as scan:
                found = [Found(prefix + entry.name, entry, entry.is_dir(follow_symlinks=False)) for entry in scan]
        except OSError:
            return []
        return [each for each in found if self.matters(each.path, directory=each.directory)]

    def walk(self) -> Iterator[Found]:
        """All that matters, a directory before what is in it."""
        pending = [""]
        while pending:
            for found in self.entries(pending.pop()):
                if found.directory:
                    if not self.enters(found.path):
                        continue
                    pending.append(found.path)
                yield found

    def _of(self, directory: str) -> list[Level]:
        """The .gitignore files from the top down to this directory."""
        known = self._levels.get(directory)
        if known is None:
            above = self._of(directory.rpartition("/")[0]) if directory else []
            try:
                own = self._ignore.level(os.path.join(self.absolute(directory), ".gitignore"), directory)
            except SourceError:
                own = None  # it cannot be read: the copy tells so
            known = self._levels[directory] = above if own is None else [*above, own]
        return known


def identity(path: str) -> tuple[int, int] | None:
    """Of the directory that the path leads to."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
