"""What every source tells and takes: where the tree came from, whom to tell about it, what to leave out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import translate

from deployer.errors import SourceError

MAX_DEPTH = 250

Match = Callable[[str], re.Match[str] | None]

Progress = Callable[[str], None]
"""Takes one line for people."""


@dataclass(frozen=True)
class Origin:
    """Where a tree came from; the git fields are None for a plain directory."""

    description: str
    commit: str | None = None
    subject: str | None = None
    author: str | None = None
    ref: str | None = None


class Exclude:
    """Globs, each against the relative path and the name; "/x" only at the top, "x/" only directories."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [_parse(pattern) for pattern in patterns]
        # One expression for each kind: ten thousand files are asked about one by one.
        self._paths = {directory: self._expression(directory, by_name=False) for directory in (False, True)}
        self._names = {directory: self._expression(directory, by_name=True) for directory in (False, True)}

    def _expression(self, directory: bool, *, by_name: bool) -> Match | None:
        globs = [
            translate(glob)
            for glob, anchored, only_directories in self._patterns
            if (directory or not only_directories) and not (by_name and anchored) and ("/" not in glob or not by_name)
        ]
        return re.compile("|".join(globs)).match if globs else None

    def matches(self, relative: str, *, directory: bool) -> bool:
        """Whether this entry itself is left out (a directory then goes with all it holds)."""
        names, paths = self._names[directory], self._paths[directory]
        if names is not None and names(relative.rpartition("/")[2]):
            return True
        return paths is not None and paths(relative) is not None

    def reaches(self, relative: str, *, directory: bool) -> bool:
        """Whether this entry is named, lies below a directory that is, or is a directory on the way to one."""
        if self.covers(relative, directory=directory):
            return True
        return directory and any(anchored_glob.startswith(relative + "/") for anchored_glob, _, _ in self._patterns)

    def covers(self, relative: str, *, directory: bool) -> bool:
        """Whether this entry or a directory that holds it is left out: for streams, where none is skipped whole."""
        if not self._patterns:
            return False
        parts = relative.split("/")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return self.matches(relative, directory=directory) or any(
            self.matches(parent, directory=True) for parent in above
        )


def check_depth(relative: str) -> None:
    """Refuse what the recursive tools that later handle the release (rmtree, os.walk) could not. Raises SourceError."""
    if relative.count("/") >= MAX_DEPTH:
        raise SourceError(
            f"the source is nested deeper than {MAX_DEPTH} directories",
            cause=f"at {shown(relative[:80])}...",
            hint="is a link loop or a runaway copy in it? add it to `exclude` in [source]",
        )


def check_path(path: str, where: str) -> None:
    """Refuse a path that leaves the release. Raises SourceError that names it."""
    if path.startswith("/") or ".." in path.split("/"):
        raise SourceError(f"{where} holds a path that leaves the release", cause=shown(path))


def shown(name: str) -> str:
    """A file name for a message: line breaks and bytes that are no UTF-8 escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _parse(pattern: str) -> tuple[str, bool, bool]:
    glob = pattern.removeprefix("./")
    return glob.strip("/"), glob.startswith("/"), glob.endswith("/")
