"""The kernel has no more watches, or tells that it has lost some events."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from deployer.watch.protocol import Fault, Saved, Watching
from tests.integration.watch.watchkit import Child, tree

LIMIT = 20
HOST = Path("/proc/self/ns/user").readlink()


def limited(key: str, value: int) -> tuple[str, ...]:
    """A command before the child's: it runs in a user namespace that has a limit of its own.

    Only ever /proc/sys/user, which is the namespace's; those of /proc/sys/fs are the whole machine's, and the root of
    a namespace may write to them. Checked before anything is written, too.
    """
    check = f'[ "$(readlink /proc/self/ns/user)" != "{HOST}" ]'
    inside = f'{check} && echo {value} > /proc/sys/user/{key} && exec "$@" || exit 99'
    return ("unshare", "--user", "--map-root-user", "/bin/sh", "-c", inside, "sh")


@pytest.fixture
def _namespaces() -> None:
    command = (*limited("max_inotify_watches", LIMIT), "true")
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"user namespaces do not work here: {shlex.join(command)}")


@pytest.mark.usefixtures("_namespaces")
def test_more_directories_than_may_be_watched(source: Path, tmp_path: Path) -> None:
    for number in range(LIMIT * 2):
        (source / f"lib/p{number}").mkdir(parents=True)
    with Child(source, tmp_path / "root", prefix=limited("max_inotify_watches", LIMIT)) as child:
        assert child.watching == Watching(mode="poll", directories=LIMIT * 2 + 3)
        fault = child.expect(Fault)
        assert fault.what == "not all directories can be watched: they are looked at once a second from now on"
        assert fault.cause is not None
        assert f"user.max_inotify_watches = {LIMIT}" in fault.cause
        assert f"{LIMIT} of {LIMIT * 2 + 3} directories" in fault.cause
        assert fault.hint is not None
        assert fault.hint.startswith("sudo sysctl user.max_inotify_watches=524288")
        (source / "lib/p39/a.py").write_text("")
        assert child.expect(Saved).files == ["lib/p39/a.py"]
        child.stage()
        assert tree(child.release()) == tree(source)


@pytest.mark.usefixtures("_namespaces")
def test_the_limit_is_reached_later(source: Path, tmp_path: Path) -> None:
    with Child(source, tmp_path / "root", prefix=limited("max_inotify_watches", LIMIT)) as child:
        assert child.watching.mode == "kernel"
        for number in range(LIMIT * 2):
            (source / f"lib/p{number}").mkdir(parents=True)
        (source / "lib/p7/a.py").write_text("")
        assert child.expect(Watching).mode == "poll"
        child.expect(Fault)
        child.expect(Saved)
        child.stage()
        assert tree(child.release()) == tree(source)
        (source / "lib/p39/a.py").write_text("")
        while "lib/p39/a.py" not in child.expect(Saved).files:
            pass
        assert not [word for word in child.passed_over if isinstance(word, Fault)]


@pytest.mark.usefixtures("_namespaces")
def test_no_instance_is_left(source: Path, tmp_path: Path) -> None:
    with Child(source, tmp_path / "root", prefix=limited("max_inotify_instances", 0)) as child:
        assert child.watching.mode == "poll"
        fault = child.expect(Fault)
        assert fault.hint is not None
        assert "max_inotify_instances" in fault.hint
        (source / "app.py").write_text("app = 2\n")
        assert child.expect(Saved).files == ["app.py"]


def test_more_happens_than_the_kernel_keeps(source: Path, tmp_path: Path) -> None:
    """A child that cannot read for a while."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    (source / "old").mkdir()
    (source / "old/a.py").write_text("")
    with Child(source, tmp_path / "root") as child:
        os.kill(child.process.pid, signal.SIGSTOP)
        try:
            for number in range(kept // 2 + 100):  # two events each: alike ones in a row are one
                (source / ("app.py" if number % 2 else "data.json")).chmod(0o600)
                (source / "views/start.py").chmod(0o600)
            shutil.rmtree(source / "old")
            (source / "new").mkdir()
            (source / "new/b.py").write_text("lost = 1\n")
        finally:
            os.kill(child.process.pid, signal.SIGCONT)
        saved = child.expect(Saved)
        assert "new/b.py" in saved.files
        assert "app.py" in saved.files
        (source / "new/b.py").write_text("found = 1\n")
        assert child.expect(Saved).files == ["new/b.py"]
        child.stage()
        assert tree(child.release()) == tree(source)
