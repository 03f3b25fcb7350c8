"""Whether git is about to change the work tree: it holds its index's lock from the first file of a checkout to the
last, however long it pauses between."""

from __future__ import annotations

import os
from pathlib import Path


class Checkout:
    def __init__(self, source: str) -> None:
        self._lock = _lock(Path(source))

    def is_under_way(self) -> bool:
        """Maybe: a commit whose message is being written holds the lock too."""
        return self._lock is not None and os.path.lexists(self._lock)


def _lock(source: Path) -> Path | None:
    git = next((path / ".git" for path in (source, *source.parents) if os.path.lexists(path / ".git")), None)
    if git is None:
        return None
    if git.is_file():  # of a submodule or a second work tree
        try:
            git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        except (OSError, UnicodeDecodeError):
            return None
    return git / "index.lock"
