"""The `current` link: one atomic step, relative, and never somebody else's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployer.errors import DiskError
from deployer.paths import Layout
from deployer.releases import current


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for name in ("v1", "v2"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    return Layout(tmp_path)


def test_is_none_before_the_first_promotion(layout: Layout) -> None:
    """No link, no release."""
    assert current.read(layout) is None


def test_promotes_by_a_relative_link_that_survives_a_move(layout: Layout, tmp_path: Path) -> None:
    """ROOT may be moved: the link goes with it."""
    current.promote(layout, "v1")
    current.promote(layout, "v2")
    assert os.readlink(layout.current) == "releases/v2"
    assert current.read(layout) == "v2"
    assert sorted(os.listdir(tmp_path)) == ["current", "releases"]


def test_a_leftover_of_a_killed_promotion_is_no_obstacle(layout: Layout) -> None:
    """The temporary name of this very process id exists already."""
    layout.current.with_name(f".current.{os.getpid()}.tmp").symlink_to("nowhere")
    current.promote(layout, "v1")
    assert current.read(layout) == "v1"


def test_refuses_a_release_that_is_not_there(layout: Layout) -> None:
    """The old link stays."""
    current.promote(layout, "v1")
    with pytest.raises(DiskError, match="cannot promote v9"):
        current.promote(layout, "v9")
    assert current.read(layout) == "v1"


def test_refuses_what_is_no_link_of_ours(layout: Layout) -> None:
    """A directory or a link elsewhere at that name is reported, never replaced or guessed at."""
    layout.current.symlink_to("/srv/elsewhere")
    with pytest.raises(DiskError, match="does not name a release"):
        current.read(layout)
    layout.current.unlink()
    layout.current.mkdir()
    with pytest.raises(DiskError, match="is not a link"):
        current.read(layout)
    with pytest.raises(DiskError, match="cannot point"):
        current.promote(layout, "v1")
    assert sorted(os.listdir(layout.root)) == ["current", "releases"]


def test_names_a_release_that_was_removed(layout: Layout) -> None:
    """A dangling link still tells what was promoted."""
    current.promote(layout, "v1")
    (layout.releases / "v1").rmdir()
    assert current.read(layout) == "v1"
