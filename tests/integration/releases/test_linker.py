"""The process that links unchanged files: what it cannot link is copied, and it never outlives the staging."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stagekit import Stager, alive, inode, settle, stage, wait_until, write

from deployer.releases.linker import Linker

LINKS_MAX = 65_000  # of one file on ext4
OWNER = """
import sys, time
from deployer.releases.linker import Linker
linker = Linker(b".", b".")
print(linker._pid, flush=True)
time.sleep(60)
"""


def test_what_changed_in_the_release_before_is_copied_in_the_middle_of_much_that_is_linked(stager: Stager) -> None:
    """Modes and times of its directory are those of the source all the same, and the digest is."""
    names = [f"app/{number}.py" for number in range(40)]
    write(stager.directory, **dict.fromkeys(names, "shipped"))
    os.utime(stager.directory / "app", (1_600_000_000, 1_600_000_000))
    (stager.directory / "app").chmod(0o555)
    settle(stager.directory)
    first = stage(stager, "v1")
    (stager.release("v1") / "app/20.py").write_text("written by the app")
    (stager.release("v1") / "app/30.py").unlink()
    second = stage(stager, "v2")
    two = stager.release("v2")
    assert {(two / name).read_text() for name in names} == {"shipped"}
    assert inode(two / "app/19.py") == inode(stager.release("v1") / "app/19.py")
    assert (two / "app/20.py").stat().st_nlink == (two / "app/30.py").stat().st_nlink == 1
    assert ((two / "app").stat().st_mode & 0o777, (two / "app").stat().st_mtime) == (0o555, 1_600_000_000)
    assert first["tree_digest"] == second["tree_digest"]
    assert (stager.release("v1") / "app/20.py").read_text() == "written by the app"
    assert second["warnings"] == []  # that file was v1's alone


def test_an_app_that_writes_into_what_two_releases_share_is_warned_of(stager: Stager) -> None:
    """v1 has changed with v2: nobody could prevent it, but it is said, once, and v3 has its own copy."""
    write(stager.directory, **{"app.py": "1", "data/state.json": "shipped", "data/other.json": "x"})
    settle(stager.directory)
    stage(stager, "v1")
    stage(stager, "v2")
    (stager.release("v2") / "data/state.json").write_text("written by the app")
    third = stage(stager, "v3")
    [warning] = third["warnings"]
    assert "the app of v2 wrote into files it shipped" in warning
    assert "data/state.json." in warning
    assert (stager.release("v3") / "data/state.json").read_text() == "shipped"
    assert stage(stager, "v4")["warnings"] == []


def test_a_file_with_as_many_links_as_there_may_be_is_copied(stager: Stager, tmp_path: Path) -> None:
    write(stager.directory, **{"a.py": "1", "b.py": "2", "c.py": "3"})
    settle(stager.directory)
    stage(stager, "v1")
    (tmp_path / "links").mkdir()
    try:
        for number in range(LINKS_MAX - 1):
            os.link(stager.release("v1") / "b.py", tmp_path / "links" / str(number))
    except OSError as error:
        pytest.skip(f"NOT TESTED: {error} at {number} links")
    stage(stager, "v2")
    assert (stager.release("v2") / "b.py").read_text() == "2"
    links = [(stager.release("v2") / name).stat().st_nlink for name in ("a.py", "b.py", "c.py")]
    assert links == [2, 1, 2]


def test_a_fault_of_the_disk_is_told_as_it_was(tmp_path: Path) -> None:
    """A directory that is not there: the order after it, or the end, says so."""
    (tmp_path / "old").mkdir()
    linker = Linker(os.fsencode(tmp_path / "old"), os.fsencode(tmp_path / "new"))
    try:
        linker.seal(b"", 0o755, (0, 0))
        with pytest.raises(FileNotFoundError, match="new"):
            linker.finish()
    finally:
        linker.close()


def test_one_that_was_killed_is_noticed(tmp_path: Path) -> None:
    linker = Linker(os.fsencode(tmp_path), os.fsencode(tmp_path))
    try:
        os.kill(linker._pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="was killed"):
            linker.finish()
    finally:
        linker.close()


def test_it_dies_with_the_staging(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", OWNER], stdout=subprocess.PIPE, cwd=tmp_path) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert alive(pid)
        owner.kill()
    wait_until(lambda: not alive(pid))
