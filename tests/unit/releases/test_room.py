"""The look at the disk before a release is fetched."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from deployer.config.model import Config, Worker
from deployer.errors import DiskError, Exit
from deployer.paths import Layout
from deployer.releases import envs, room
from deployer.releases.request import Directory, Git, Room, StageRequest

MEGABYTE = 1 << 20


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A file system of 1 GB with 100 MB free."""
    blocks = SimpleNamespace(f_bavail=100, f_frsize=MEGABYTE, f_blocks=1024)
    monkeypatch.setattr(os, "statvfs", lambda path: blocks)
    found = Layout(tmp_path / "root")
    found.releases.mkdir(parents=True)
    (tmp_path / "app").mkdir()
    return found


def request(layout: Layout, source: Directory | Git, known: Room | None) -> StageRequest:
    config = Config(name="shop", worker=Worker(command="true"))
    directory = str(layout.root.parent / "app")
    return StageRequest(
        root=str(layout.root), name="v9", source=source, directory=directory, host_config=config, room=known
    )


def sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def test_what_the_last_release_of_the_source_took_decides(layout: Layout) -> None:
    git = Git(url="https://host/x.git")
    room.check(request(layout, git, Room(expected_bytes=70 * MEGABYTE)), layout)
    with pytest.raises(DiskError) as refused:
        room.check(request(layout, git, Room(expected_bytes=80 * MEGABYTE, could_go=["v2", "v3"])), layout)
    error = refused.value
    assert (error.exit_code, error.reason) == (Exit.NOT_STARTED, "disk")
    assert "needs about 96 MB, and 90 MB are free" in (error.cause or "")
    assert "v2, v3" in (error.hint or "")


def test_a_source_that_nobody_knows_is_tried(layout: Layout) -> None:
    room.check(request(layout, Git(url="x"), Room()), layout)
    room.check(request(layout, Git(url="x"), None), layout)


def test_a_directory_is_measured_as_it_would_be_copied(layout: Layout) -> None:
    """Without what is ignored or excluded, and without what the release before has already."""
    app = layout.root.parent / "app"
    sparse(app / "ignored" / "big", 500 * MEGABYTE)
    sparse(app / "excluded", 500 * MEGABYTE)
    (app / ".gitignore").write_text("ignored/\n")
    directory = Directory(path=".", exclude=["excluded"])
    room.check(request(layout, directory, Room()), layout)
    big = sparse(app / "asset", 500 * MEGABYTE)
    with pytest.raises(DiskError):
        room.check(request(layout, directory, Room()), layout)
    copy = sparse(layout.release("v8") / "asset", 500 * MEGABYTE)
    os.utime(copy, ns=(0, big.stat().st_mtime_ns))
    room.check(request(layout, directory, Room(expected_bytes=500 * MEGABYTE, previous="v8")), layout)


def test_an_environment_that_must_be_built_is_taken_to_be_as_large_as_the_largest(layout: Layout) -> None:
    """90 of the 100 MB may be used."""
    git = request(layout, Git(url="x"), Room(could_go=["v2"]))
    room.check_environment(git, layout)
    for name, size in (("small", 10), ("large", 89)):
        home = layout.envs / f"{name}-1a2b3c"
        home.mkdir(parents=True)
        (layout.envs / name).symlink_to(home.name)
        (home / envs.SIZE).write_text(str(size * MEGABYTE))
    room.check_environment(git, layout)
    (layout.envs / "large" / envs.SIZE).write_text(str(90 * MEGABYTE))
    with pytest.raises(DiskError) as refused:
        room.check_environment(git, layout)
    error = refused.value
    assert (error.exit_code, error.reason) == (Exit.NOT_STARTED, "disk")
    assert error.what == "there is no room for release v9: nothing was built"
    assert "the largest there is takes 90 MB, and 90 MB are free" in (error.cause or "")
    assert "v2" in (error.hint or "")
    room.check_environment(request(layout, Git(url="x"), None), layout)
