"""Whatever happens to a tree: the snapshot of the last save is what is on the disk."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from deployer.releases.request import StageResult
from deployer.watch.protocol import Saved, Stage
from tests.integration.watch.watchkit import Child, tree

OPERATIONS = 300
NAMES = ("a", "b.bin", "c.txt", "d", "e.css")  # nothing that would have to parse


class Editor:
    """Changes a tree at random, in every way that there is."""

    def __init__(self, top: Path, seed: int) -> None:
        self._top = top
        self._random = random.Random(seed)

    def act(self) -> None:
        acts = [self._write, self._write, self._append, self._replace, self._make, self._remove]
        acts += [self._move, self._link, self._chmod, self._plant]
        act = self._random.choice(acts)
        try:
            act()
        except OSError:
            pass  # not with these two: a directory in the place of a file, into itself, ...

    def _path(self) -> Path:
        """A place that may be taken or free, in a directory that is there."""
        directories = [self._top]
        for parent, names, _ in os.walk(self._top):
            directories += [Path(parent, name) for name in names if not Path(parent, name).is_symlink()]
        return self._random.choice(directories) / self._random.choice(NAMES)

    def _text(self) -> str:
        return "x" * self._random.randrange(5000)

    def _write(self) -> None:
        path = self._path()
        if not path.is_symlink():
            path.write_text(self._text())

    def _append(self) -> None:
        path = self._path()
        if path.is_file() and not path.is_symlink() and path.suffix == ".txt":
            with open(path, "a") as file:
                file.write("more\n")

    def _replace(self) -> None:
        path = self._path()
        aside = path.with_name(".aside")
        aside.write_text("replaced\n")
        aside.replace(path)

    def _make(self) -> None:
        (self._path() / self._random.choice(NAMES)).mkdir(parents=True)

    def _plant(self) -> None:
        """A whole tree at once, from elsewhere."""
        aside = self._top.parent / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "x/y").mkdir(parents=True)
        (aside / "x/y/z.txt").write_text("planted\n")
        aside.rename(self._path())

    def _remove(self) -> None:
        path = self._path()
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _move(self) -> None:
        self._path().rename(self._path())

    def _link(self) -> None:
        self._path().symlink_to(self._random.choice(("a", "../b.bin", "nowhere")))

    def _chmod(self) -> None:
        path = self._path()
        if path.is_file() and not path.is_symlink():
            path.chmod(self._random.choice((0o644, 0o755, 0o600)))


@pytest.mark.parametrize(("seed", "poll_s"), [(1, None), (2, None), (3, None), (4, 0.05)])
def test_the_last_snapshot_equals_the_disk(source: Path, tmp_path: Path, seed: int, poll_s: float | None) -> None:
    """As the manager does it: a save while a staging is under way makes another one, and nothing else does."""
    editor, pauses = Editor(source, seed), random.Random(seed)
    with Child(source, tmp_path / "root", poll_s=poll_s) as child:
        last = child.stage()
        due = staging = False
        left = OPERATIONS
        quiet_at = time.monotonic() + 60
        while left or due or staging or time.monotonic() < quiet_at:
            if left:
                left -= 1
                editor.act()
                quiet_at = time.monotonic() + 1.5
            word = child.next(pauses.choice((0, 0, 0.005, 0.03)) if left else 0.2)
            if isinstance(word, Saved):
                due = True
            elif word is not None and hasattr(word, "result"):
                last, staging = word.result, False
            elif word is not None and hasattr(word, "error"):
                assert word.error.reason == "source", word  # it never stood still: the next save comes
                staging = False
            if due and not staging:
                due, staging = False, True
                child.send(Stage(request=child.request()))
        assert isinstance(last, StageResult)
        assert tree(child.release(last.name)) == tree(source)
