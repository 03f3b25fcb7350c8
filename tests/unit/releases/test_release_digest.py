"""The tree digest: what it sees and what it must not see."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deployer.releases.digest import summarize, tree_digest


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "package/empty").mkdir(parents=True)
    (root / "package/app.py").write_text("print(1)\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("package/app.py")
    return root


def test_equal_trees_digest_alike_whatever_times_and_other_mode_bits(tree: Path, tmp_path: Path) -> None:
    """A copy with other times and group bits is the same tree."""
    other = tmp_path / "other"
    shutil.copytree(tree, other, symlinks=True)
    os.utime(other / "run", (1, 1))
    (other / "package/app.py").chmod(0o600)
    assert tree_digest(other) == tree_digest(tree)


def test_every_kind_of_change_is_seen(tree: Path) -> None:
    """Content, exec bit, name, link target, an empty directory, and a type each change the digest."""
    seen = [tree_digest(tree)]

    def changed() -> None:
        seen.append(tree_digest(tree))

    (tree / "package/app.py").write_text("print(2)\n")
    changed()
    (tree / "run").chmod(0o644)
    changed()
    (tree / "run").rename(tree / "start")
    changed()
    (tree / "link").unlink()
    (tree / "link").symlink_to("start")
    changed()
    (tree / "package/empty").rmdir()
    changed()
    (tree / "link").unlink()
    (tree / "link").write_text("start")
    changed()
    assert len(set(seen)) == len(seen)


def test_moving_bytes_between_names_is_seen(tmp_path: Path) -> None:
    """The same concatenation of names and contents in another split is another tree."""
    for name, file, text in (("a", "ab", "c"), ("b", "a", "bc")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    assert tree_digest(tmp_path / "a") != tree_digest(tmp_path / "b")


def test_counts_files_links_and_bytes(tree: Path) -> None:
    """Links count as files, directories do not; bytes are those of regular files."""
    summary = summarize(tree)
    assert (summary.files, summary.bytes) == (3, len("print(1)\n") + len("#!/bin/sh\n"))


def test_names_are_bytes(tmp_path: Path) -> None:
    """A name that is no UTF-8 and one with a line break are names like others."""
    (tmp_path / os.fsdecode(b"caf\xe9\n")).write_text("x")
    assert summarize(tmp_path).files == 1


def test_an_empty_directory_has_a_digest(tmp_path: Path) -> None:
    """Nothing is a tree too."""
    assert len(tree_digest(tmp_path)) == 64


def test_a_special_file_is_refused(tmp_path: Path) -> None:
    """A fifo would block the reader for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="special file"):
        tree_digest(tmp_path)
