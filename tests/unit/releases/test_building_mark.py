"""releases/.vN.building: a release that has its name and is not whole."""

from __future__ import annotations

import os
from pathlib import Path

from deployer.paths import Layout
from deployer.releases import tree


def named(root: Path, name: str) -> Layout:
    layout = Layout(root)
    layout.partial(name).mkdir(parents=True)
    (layout.partial(name) / "file").touch()
    tree.give_name(layout, name)
    return layout


def test_what_a_killed_build_left_is_swept_with_its_mark(tmp_path: Path) -> None:
    """Also when nobody knows of the release any more."""
    layout = named(tmp_path, "v3")
    layout.release("v2").mkdir()
    assert layout.building("v3").exists()
    assert tree.clean(layout, ["v3"]) == []
    assert tree.clean(layout, []) == [".v3.building"]
    assert os.listdir(layout.releases) == ["v2"]


def test_a_finished_build_is_never_swept(tmp_path: Path) -> None:
    """Nor abandoned: without its mark it is somebody's release."""
    layout = named(tmp_path, "v3")
    tree.finish(layout, "v3")
    tree.abandon(layout, "v3")
    assert tree.clean(layout, []) == []
    assert os.listdir(layout.releases) == ["v3"]
