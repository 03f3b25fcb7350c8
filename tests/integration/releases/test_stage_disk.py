"""A disk without room: a real, tiny file system."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from stagekit import CONFIG, Done, Repository, Stager

from deployer.config.model import Build
from deployer.releases import envs, python
from deployer.releases.request import Directory, Git, Room

MEGABYTE = 1 << 20


@pytest.fixture
def small(stager: Stager, tmp_path: Path) -> Iterator[Stager]:
    """The same directory, but ROOT on a file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            pytest.skip(f"NOT TESTED: disk full while staging; mount is refused here: {mounted.stderr.strip()}")
    try:
        yield Stager(stager.directory, place / "root")
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def assert_disk_full(done: Done, name: str, serves: str) -> None:
    assert done.exit == 6
    assert done.error is not None
    assert done.error["reason"] == "disk"
    assert done.error["what"] == f"the disk is full: release {name} was removed, {serves}"
    assert "No space left on device; before staging " in done.told
    assert " were free" in done.told


def test_a_directory_that_does_not_fit(small: Stager) -> None:
    """The half release goes, what served is whole, and the next that fits is staged."""
    (small.directory / "app.py").write_text("1")
    first = small.run(Directory(path="."))
    assert first.result is not None
    (small.directory / "asset").write_bytes(os.urandom(5 * MEGABYTE))
    done = small.run(Directory(path="."), "v2", live_digest=first.result["tree_digest"])
    assert_disk_full(done, "v2", "the old release serves")
    assert "before staging 4.0 MB" in done.told
    small.assert_nothing_left(releases=("v1",))
    assert (small.release() / "app.py").read_text() == "1"
    assert small.run(Directory(path=".", exclude=["asset"]), "v3").exit == 0


def test_the_first_release_that_does_not_fit(small: Stager) -> None:
    """There is no old release to speak of."""
    (small.directory / "asset").write_bytes(os.urandom(5 * MEGABYTE))
    assert_disk_full(small.run(Directory(path=".")), "v1", "nothing was replaced")
    small.assert_nothing_left()


def test_a_mirror_that_does_not_fit(small: Stager, repository: Repository) -> None:
    """git hits the end of the disk, not we: the same answer, no half of a mirror."""
    (repository.path / "asset").write_bytes(os.urandom(5 * MEGABYTE))
    repository.commit("Large")
    assert_disk_full(small.run(Git(url=str(repository.path))), "v1", "nothing was replaced")
    small.assert_nothing_left()


def test_an_export_that_does_not_fit(small: Stager, repository: Repository) -> None:
    """Packed it fits, unpacked it does not."""
    (repository.path / "zeros").write_bytes(bytes(5 * MEGABYTE))
    repository.commit("Large but regular")
    assert_disk_full(small.run(Git(url=str(repository.path))), "v1", "nothing was replaced")
    small.assert_nothing_left(mirror=True)


def test_a_fetch_that_does_not_fit_into_the_mirror(small: Stager, repository: Repository) -> None:
    """The mirror stays usable, without half a pack in it."""
    assert small.run(Git(url=str(repository.path))).exit == 0
    large = repository.path / "asset"
    large.write_bytes(os.urandom(5 * MEGABYTE))
    repository.commit("Large")
    assert_disk_full(small.run(Git(url=str(repository.path)), "v2"), "v2", "nothing was replaced")
    assert not list(small.layout.mirror.glob("objects/pack/tmp_*"))
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    assert small.run(Git(url=str(repository.path)), "v3").exit == 0


def test_a_root_that_may_not_be_written(stager: Stager) -> None:
    """ROOT/releases is a file: not full, but no less clear."""
    stager.layout.releases.write_text("x")
    done = stager.run(Directory(path="."))
    assert done.exit == 6
    assert "cannot write release v1" in done.told
    assert str(stager.layout.releases) in done.told


def test_an_environment_that_would_not_fit_is_not_begun(stager: Stager) -> None:
    """Known from those there are; an unchanged lock file needs no room."""
    (stager.directory / "requirements.txt").write_text("six==1.16.0\n")
    settings = msgspec.structs.replace(CONFIG, build=Build(python="uv"))
    home = stager.layout.envs / "other-1a2b3c"
    home.mkdir(parents=True)
    (home / envs.SIZE).write_text(str(1 << 60))
    (stager.layout.envs / "other").symlink_to(home.name)
    done = stager.run(Directory(path="."), host_config=settings, room=Room())
    assert done.exit == 6
    assert done.error is not None
    assert (done.error["reason"], done.error["what"]) == ("disk", "there is no room for release v1: nothing was built")
    assert not any("building" in line for line in done.progress)
    assert os.listdir(stager.layout.releases) == []
    wanted = python.plan(stager.directory, "uv", stager.layout.envs)
    assert wanted is not None
    (home / "bin").mkdir()
    (home / "bin" / "python").touch(mode=0o755)
    (stager.layout.envs / wanted.name).symlink_to(home.name)
    assert stager.run(Directory(path="."), host_config=settings, room=Room()).exit == 0
