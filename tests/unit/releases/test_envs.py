"""ROOT/envs: what is whole, what may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.releases import envs


def build(where: Path, name: str) -> Path:
    """What a build leaves when it is done."""
    with envs.locked(where):
        home = envs.home(where, name)
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "python").touch(mode=0o755)
        envs.publish(where, name, home)
    return home


def test_an_environment_is_whole_once_it_is_published(tmp_path: Path) -> None:
    """Not while it is built, however complete it looks."""
    home = envs.home(tmp_path, "a")
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").touch(mode=0o755)
    assert not envs.is_whole(tmp_path, "a")
    envs.publish(tmp_path, "a", home)
    assert envs.is_whole(tmp_path, "a")
    (home / "bin" / "python").unlink()
    assert not envs.is_whole(tmp_path, "a")


def test_what_no_release_refers_to_may_go_and_goes_whole(tmp_path: Path) -> None:
    """Referenced ones stay; remnants of killed builds go; files of ours that are no environment stay."""
    kept, gone = build(tmp_path, "kept"), build(tmp_path, "gone")
    (tmp_path / "killed-1a2b3c").mkdir()
    (tmp_path / ".interpreters.json").touch()
    found = envs.unused(tmp_path, ["kept"])
    assert sorted(path.name for path in found) == ["gone", "killed-1a2b3c"]
    for path in found:
        envs.remove(path)
    assert not gone.exists()
    assert kept.exists()
    assert envs.unused(tmp_path, {"kept"}) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".interpreters.json", ".lock", "kept", kept.name]


def test_a_killed_removal_is_found_again(tmp_path: Path) -> None:
    """After its link went, and after its directory was renamed out of the way."""
    home = build(tmp_path, "a")
    (tmp_path / "a").unlink()
    assert envs.unused(tmp_path, ["a"]) == [home]
    home.rename(tmp_path / f".{home.name}.removing")
    (left,) = envs.unused(tmp_path, ["a"])
    envs.remove(left)
    assert envs.unused(tmp_path, []) == []


def test_a_rebuild_replaces_the_link_and_leaves_the_old_one_to_be_removed(tmp_path: Path) -> None:
    """Workers that run on the old directory keep it until somebody removes it."""
    first, second = build(tmp_path, "a"), build(tmp_path, "a")
    assert (tmp_path / "a").resolve() == second
    assert first != second


def test_nothing_is_removed_while_an_environment_is_built(tmp_path: Path) -> None:
    """The manager must not wait: it is told at once."""
    build(tmp_path, "a")
    with envs.locked(tmp_path), pytest.raises(BlockingIOError):
        envs.remove(tmp_path / "a")
    assert envs.is_whole(tmp_path, "a")


def test_a_root_without_environments_has_none_to_remove(tmp_path: Path) -> None:
    """Most have none."""
    assert envs.unused(tmp_path / "envs", []) == []


def test_the_largest_is_measured_once(tmp_path: Path) -> None:
    """What is on the disk counts, not what killed builds left; and an environment does not change."""
    assert envs.largest(tmp_path / "none") == 0
    small, large = build(tmp_path, "small"), build(tmp_path, "large")
    (small / "module.py").write_bytes(b"x" * 10_000)
    (large / "module.py").write_bytes(b"x" * 1_000_000)
    killed = tmp_path / "other-1a2b3c"
    killed.mkdir()
    (killed / "module.py").write_bytes(b"x" * 9_000_000)
    found = envs.largest(tmp_path)
    assert 1_000_000 <= found < 1_100_000
    (large / "module.py").unlink()
    assert envs.largest(tmp_path) == found
