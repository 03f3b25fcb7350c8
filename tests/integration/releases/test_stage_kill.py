"""Staging that is stopped, killed or orphaned in the middle: nothing half-made is ever taken for a release."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stagekit import Repository, Stager, alive, wait_until

from deployer.releases.request import Directory, Git, encode_request
from deployer.releases.tree import clean

FILES = 3000
BIG = Directory(path=".")

PARENT = """
import os, re, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
request = re.sub(rb'"parent":1\\b', b'"parent":%d' % os.getpid(), sys.stdin.buffer.read())
child.stdin.write(request)
child.stdin.close()
child.wait()
"""


@pytest.fixture
def big(stager: Stager) -> Stager:
    """A tree that takes a while to copy and more of a while to bring to disk."""
    for directory in range(30):
        (stager.directory / str(directory)).mkdir()
        for number in range(FILES // 30):
            (stager.directory / str(directory) / str(number)).write_bytes(b"x" * 8192)
    return stager


def copying(stager: Stager, name: str = "v1") -> bool:
    """The copy is under way: some directory of it is there."""
    partial = stager.layout.partial(name)
    return (partial / "5").exists() or (partial / "20").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_removes_the_half(big: Stager, number: signal.Signals) -> None:
    """Exit 143, one error line; the same name can then be staged."""
    child = big.start(big.request(BIG))
    wait_until(lambda: copying(big))
    child.send_signal(number)
    done = big.finish(child)
    assert done.exit == 143
    assert done.error is not None
    assert done.error["reason"] == "aborted"
    big.assert_nothing_left()
    assert big.run(BIG).exit == 0
    big.assert_nothing_left(releases=("v1",))


def test_a_kill_leaves_a_partial_that_the_next_run_removes(big: Stager) -> None:
    """No release, only the partial; a stale file in it does not reach the next release."""
    child = big.start(big.request(BIG))
    wait_until(lambda: copying(big))
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert set(os.listdir(big.layout.releases)) <= {".v1.partial", ".v1.index"}
    (big.layout.partial("v1") / "stale").write_text("x")
    done = big.run(BIG)
    assert done.result is not None
    assert done.result["files"] == FILES
    big.assert_nothing_left(releases=("v1",))
    assert not (big.release() / "stale").exists()


def test_clean_removes_what_a_kill_left(big: Stager) -> None:
    """For the manager's start, when nothing is being staged."""
    child = big.start(big.request(BIG))
    wait_until(lambda: copying(big))
    child.kill()
    child.communicate()
    assert clean(big.layout, ()) == [".v1.partial"]
    big.assert_nothing_left()


def test_it_dies_with_its_manager(big: Stager) -> None:
    """`kill -9` of the parent: no orphan goes on to write into ROOT."""
    command = (sys.executable, "-P", "-m", "deployer.releases.stage")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=big.layout.root
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(encode_request(big.request(BIG, parent=1)))
        parent.stdin.close()
        pid = int(parent.stdout.readline())
        wait_until(lambda: copying(big))
        parent.kill()
    wait_until(lambda: not alive(pid))
    assert set(os.listdir(big.layout.releases)) <= {".v1.partial", ".v1.index"}
    assert big.run(BIG).exit == 0


def slow_git(stager: Stager, tmp_path: Path) -> None:
    """A git whose fetch starts a helper and never ends; their ids are in `pids`."""
    real = subprocess.run(
        ["/bin/sh", "-c", "command -v git"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/git"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *" fetch "*) sleep 600 & echo "$! $$" > {tmp_path}/made;'
        f' mv {tmp_path}/made {tmp_path}/pids; wait;; esac\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    stager.env["PATH"] = f"{tmp_path}/bin:{stager.env['PATH']}"


def pids(tmp_path: Path) -> list[int]:
    return [int(word) for word in (tmp_path / "pids").read_text().split()]


def test_stopping_takes_git_and_its_helpers_along(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """A fetch that hangs is ended by SIGTERM to the staging process alone."""
    slow_git(stager, tmp_path)
    child = stager.start(stager.request(Git(url=str(repository.path))))
    wait_until((tmp_path / "pids").exists)
    child.terminate()
    assert stager.finish(child).exit == 143
    for pid in pids(tmp_path):
        wait_until(lambda pid=pid: not alive(pid))
    stager.assert_nothing_left()


def test_a_kill_takes_git_along(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """git itself dies with the staging process; a real helper then reads the end of its pipe."""
    slow_git(stager, tmp_path)
    child = stager.start(stager.request(Git(url=str(repository.path))))
    wait_until((tmp_path / "pids").exists)
    helper, git = pids(tmp_path)
    try:
        child.kill()
        child.communicate()
        wait_until(lambda: not alive(git))
    finally:
        os.kill(helper, signal.SIGKILL)
    stager.env["PATH"] = stager.env["PATH"].partition(":")[2]
    assert stager.run(Git(url=str(repository.path))).exit == 0
    stager.assert_nothing_left(releases=("v1",), mirror=True)
