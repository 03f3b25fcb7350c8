"""What .gitignore leaves out, as git reads it: nested files, negation, a directory that goes with all it holds.

Read are the .gitignore files of the source, those of the work tree above it, and `.git/info/exclude`; a directory
that is no repository has its .gitignore respected too. Not read is core.excludesFile: it is a person's own, and the
same directory must deploy alike for everyone. (A tracked file that a pattern names is left out too: what is to be
deployed all the same is named by `include` in [source].)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deployer.errors import SourceError
from deployer.releases.sources.base import shown

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SIZE_MAX = 1 << 20  # bytes; a .gitignore beyond that is no .gitignore


Level = tuple[int, "GitIgnoreSpec"]
"""How much of a path lies above the .gitignore's own directory, and its patterns."""


class Ignore:
    """What lies above the source; `level` reads the files in it, as one walks down."""

    def __init__(self, source: Path) -> None:
        self.above: list[tuple[str, GitIgnoreSpec]] = []  # what to put before a path of the source, patterns
        real = Path(os.path.realpath(source))
        top = next((path for path in (real, *real.parents) if os.path.lexists(path / ".git")), None)
        if top is not None:
            self._read_above(top, real.relative_to(top).parts)

    def level(self, path: str, relative: str) -> Level | None:
        """The .gitignore at `path`, in the directory `relative` of the source."""
        spec = _spec(path)
        return None if spec is None else (len(relative) + 1 if relative else 0, spec)

    def matches(self, levels: list[Level], child: str, *, directory: bool) -> bool:
        """Whether git would ignore it: the nearest file that says something decides."""
        if directory:
            child += "/"
        for cut, spec in reversed(levels):
            verdict = spec.check_file(child[cut:]).include
            if verdict is not None:
                return verdict
        for prefix, spec in reversed(self.above):
            verdict = spec.check_file(prefix + child).include
            if verdict is not None:
                return verdict
        return False

    def _read_above(self, top: Path, parts: tuple[str, ...]) -> None:
        found = [(_git_directory(top) / "info" / "exclude", parts)]
        found += [(top.joinpath(*parts[:depth], ".gitignore"), parts[depth:]) for depth in range(len(parts))]
        for path, below in found:
            spec = _spec(str(path))
            if spec is not None:
                self.above.append(("".join(f"{part}/" for part in below), spec))
        if any(prefix and spec.check_file(prefix).include for prefix, spec in self.above):
            self.above.clear()  # who deploys an ignored directory by name (`path = "build"`) means what is in it


def _git_directory(top: Path) -> Path:
    """`.git` may be a file that names the place (a submodule, a second work tree)."""
    path = top / ".git"
    if not path.is_file():
        return path
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape").strip()
        git = top / text.removeprefix("gitdir:").strip()
        common = git / "commondir"
        return git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
    except OSError:
        return path


def _spec(path: str) -> GitIgnoreSpec | None:
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_MAX)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"cannot read {shown(path)}", cause=error.strerror) from error
    # Imported here: 10 ms that a directory without any .gitignore does without.
    from pathspec import GitIgnoreSpec

    specs = [spec for line in data.split(b"\n") if (spec := _spec_of_line(line, GitIgnoreSpec)) is not None]
    patterns = [pattern for spec in specs for pattern in spec.patterns if pattern.include is not None]
    return GitIgnoreSpec(patterns, backend="simple") if patterns else None


def _spec_of_line(line: bytes, kind: type[GitIgnoreSpec]) -> GitIgnoreSpec | None:
    """None for what is no pattern: git passes over that too."""
    try:
        return kind.from_lines([line.removesuffix(b"\r").decode("utf-8-sig", "surrogateescape")], backend="simple")
    except ValueError:
        return None
