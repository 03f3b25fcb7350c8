"""Saves on the disk: swept and removed as releases are, and never what a release shares its files with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployer.paths import Layout
from deployer.releases import links, tree
from deployer.releases.index import IndexWriter, place


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path)
    found.releases.mkdir()
    return found


def make(layout: Layout, *names: str) -> None:
    for name in names:
        layout.release(name).mkdir()
        IndexWriter(place(layout.release(name))).close()


def promote(layout: Layout, name: str) -> None:
    layout.current.unlink(missing_ok=True)
    layout.current.symlink_to(f"releases/{name}")


def newest(layout: Layout, name: str) -> str | None:
    found = links.newest(layout.releases, layout.current, name)
    return found.name if found is not None else None


def test_what_killed_stagings_of_saves_left_is_swept(layout: Layout) -> None:
    make(layout, "dev-1", "v1")
    layout.partial("dev-2").mkdir()
    (layout.releases / ".dev-3.removing").mkdir()
    (layout.releases / ".dev-4.index").write_text("")
    layout.release("dev-5").mkdir()
    layout.building("dev-5").write_text("")
    (layout.releases / ".dev-x.partial").mkdir()  # nobody's we know
    assert tree.clean(layout, {"dev-9"}) == [".dev-2.partial", ".dev-3.removing", ".dev-5.building"]
    assert sorted(os.listdir(layout.releases)) == [".dev-1.index", ".dev-x.partial", ".v1.index", "dev-1", "v1"]


def test_one_that_is_being_staged_is_not(layout: Layout) -> None:
    layout.partial("dev-2").mkdir()
    assert tree.clean(layout, {"dev-2"}) == []
    assert layout.partial("dev-2").is_dir()


def test_a_save_goes_with_its_index(layout: Layout) -> None:
    make(layout, "dev-1")
    tree.remove(layout.release("dev-1"))
    assert os.listdir(layout.releases) == []


def test_a_save_shares_with_the_save_before(layout: Layout) -> None:
    assert newest(layout, "dev-1") is None
    make(layout, "v1", "v2")
    promote(layout, "v1")
    assert newest(layout, "dev-1") == "v1"
    make(layout, "dev-9", "dev-10")
    assert newest(layout, "dev-11") == "dev-10"
    assert newest(layout, "dev-10") == "dev-9"


def test_a_release_shares_with_none(layout: Layout) -> None:
    make(layout, "dev-1", "dev-2")
    promote(layout, "dev-2")
    assert newest(layout, "v1") is None
    make(layout, "v1", "v3")
    assert newest(layout, "v4") == "v3"
    promote(layout, "v1")
    assert newest(layout, "v4") == "v1"
