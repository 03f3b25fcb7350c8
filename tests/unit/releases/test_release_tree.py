"""Removing releases and sweeping what a kill left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.paths import Layout
from deployer.releases import tree

NOBODY = 65534


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("v1", ".v2.partial", ".v3.removing", ".v4.partial", ".v4.partial.removing", ".vim.partial"):
        (tmp_path / "releases" / name / "sub").mkdir(parents=True)
        (tmp_path / "releases" / name / "sub/file").write_text("x")
    return Layout(tmp_path)


def test_removes_a_release_and_again(layout: Layout) -> None:
    """The second removal finds nothing and is content."""
    tree.remove(layout.release("v1"))
    tree.remove(layout.release("v1"))
    assert not layout.release("v1").exists()
    assert not (layout.releases / ".v1.removing").exists()


def test_finishes_a_removal_that_was_cut_short(layout: Layout) -> None:
    """A `.removing` left by a kill does not stand in the way of the release's own removal."""
    layout.release("v3").mkdir()
    tree.remove(layout.release("v3"))
    assert not layout.release("v3").exists()
    assert not (layout.releases / ".v3.removing").exists()


def test_removes_a_partial_in_place(layout: Layout) -> None:
    """Dot names are nobody's release."""
    tree.remove(layout.partial("v2"))
    assert not layout.partial("v2").exists()


def test_does_not_follow_links(layout: Layout, tmp_path: Path) -> None:
    """What a release links to outlives it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/data").write_text("precious")
    (layout.release("v1") / "shared").symlink_to(tmp_path / "shared")
    tree.remove(layout.release("v1"))
    assert (tmp_path / "shared/data").read_text() == "precious"


def test_clean_sweeps_leftovers_but_not_releases_nor_what_is_kept(layout: Layout) -> None:
    """v4 is being staged; `.vim.partial` is not ours."""
    assert tree.clean(layout, {"v4"}) == [".v2.partial", ".v3.removing"]
    assert sorted(os.listdir(layout.releases)) == [".v4.partial", ".v4.partial.removing", ".vim.partial", "v1"]
    assert tree.clean(layout, ()) == [".v4.partial", ".v4.partial.removing"]


def test_clean_without_releases(tmp_path: Path) -> None:
    """A fresh ROOT has nothing to sweep."""
    assert tree.clean(Layout(tmp_path), ()) == []


@pytest.mark.parametrize("files", [2, tree.FSYNC_FILES + 1])
def test_sync_takes_links_and_directories(layout: Layout, files: int) -> None:
    """Both ways, file by file and whole file system, take a dangling link and an unreadable mode."""
    (layout.release("v1") / "link").symlink_to("nowhere")
    tree.sync(layout.release("v1"), files)


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory of nobody's, and nobody's rights (pytest's own directories are closed to other users)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_removes_directories_without_write_permission_as_an_ordinary_user(ordinary_user: Path) -> None:
    """Modes are kept when a directory is copied, also 0555; even closed ones must go all the same."""
    top = ordinary_user / "v1"
    for name, file in (("a/b", "f"), ("c", "g")):
        (top / name).mkdir(parents=True)
        (top / name / file).write_text("x")
    for name, mode in (("a/b", 0o555), ("a", 0o555), ("c", 0o000), (".", 0o555)):
        (top / name).chmod(mode)
    tree.remove(top)
    assert os.listdir(ordinary_user) == []
