"""Starts the keeper, which starts everything else. Light: `deployer up` and service files come through here."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from deployer.config.load import Loaded
from deployer.errors import DeniedError, DeployerError
from deployer.keeper import keeper
from deployer.paths import Layout

KEEPER = Path(keeper.__file__).with_name("__main__.py")
LOCK_S = 10.0  # how long a new keeper may take to hold its lock

DIRECTORIES = (
    ("root", 0o755),
    ("run", 0o711),
    ("notify", 0o711),
    ("logs", 0o750),
    ("releases", 0o755),
    ("shared", 0o755),
)


def launch(loaded: Loaded) -> str:
    """Make sure that a keeper runs, and answer the token that its manager's word in run/manager.json will carry.

    A keeper that waits before it tries a failing manager again is told to try now.
    """
    layout = Layout(loaded.root)
    make_directories(layout)
    running = _running(layout)
    if running is None:
        return _start(loaded, layout)
    pid, token = running
    if read_manager_state(layout).get("state") == "failed":
        layout.manager_state.unlink(missing_ok=True)
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            pass  # it was ending: whoever waits for its word sees that it is gone
    return token


def foreground(loaded: Loaded, *, deploy: bool) -> NoReturn:
    """Become the keeper: for systemd and containers. SIGTERM stops the workers, then ends it."""
    layout = Layout(loaded.root)
    make_directories(layout)
    command = _command(loaded, layout, secrets.token_hex(8), ["--deploy"] if deploy else [])
    os.chdir(layout.root)
    os.execv(command[0], command)


def make_directories(layout: Layout) -> None:
    """ROOT and what belongs in it. DeniedError where that is not allowed."""
    try:
        for name, mode in DIRECTORIES:
            path: Path = getattr(layout, name)
            if not path.is_dir():
                path.mkdir(parents=True, mode=mode)
                path.chmod(mode)
    except PermissionError as error:
        cause = f"{error.strerror}: {error.filename}"
        raise DeniedError(f"cannot write to {layout.root}", cause=cause, hint=f"ls -ld {layout.root}") from error
    except OSError as error:
        cause = f"{error.strerror}: {error.filename}"
        raise DeployerError(f"cannot make {layout.root}", cause=cause, hint="df -h .") from error


def read_manager_state(layout: Layout) -> dict[str, Any]:
    """What the manager last said of itself; empty when it said nothing."""
    try:
        found: dict[str, Any] = json.loads(layout.manager_state.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def keeper_pid(layout: Layout) -> int:
    return int(layout.keeper_pid.read_text().split()[0])


def keeper_runs(layout: Layout) -> bool:
    """The keeper holds a lock on its pid file for life; a file without the lock is stale and means nothing."""
    try:
        fd = os.open(layout.keeper_pid, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise DeniedError(
            f"not allowed to look after {layout.root}",
            cause=f"{error.filename}: {error.strerror}",
            hint=f"become the user who started it: ls -l {layout.keeper_pid}",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)  # of a keeper that was killed: the next one holds the lock an instant before it writes
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _running(layout: Layout) -> tuple[int, str] | None:
    """Pid and token of the keeper that runs."""
    deadline = time.monotonic() + LOCK_S
    while keeper_runs(layout):
        words = layout.keeper_pid.read_text().split()
        if len(words) == 2:
            return int(words[0]), words[1]
        if time.monotonic() > deadline:
            raise DeployerError("the keeper holds its lock but does not say who it is", hint=f"cat {layout.keeper_pid}")
        time.sleep(0.01)  # it has the lock and is about to write
    return None


def _start(loaded: Loaded, layout: Layout) -> str:
    """Start a keeper; when two were started at once the other's token is as good."""
    token = secrets.token_hex(8)
    layout.manager_state.unlink(missing_ok=True)
    with open(layout.own_log, "ab") as log:
        process = subprocess.Popen(
            _command(loaded, layout, token, []),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=layout.root,
            start_new_session=True,
        )
    deadline = time.monotonic() + LOCK_S
    while time.monotonic() < deadline:
        running = _running(layout)
        if running is not None:
            return running[1]
        code = process.poll()
        if code is not None:
            # Its manager refused to start, and has said why; or a keeper that is gone by now was in the way.
            return token
        time.sleep(0.01)
    raise DeployerError("the keeper did not start", cause=f"see {layout.own_log}", hint=f"tail {layout.own_log}")


def _command(loaded: Loaded, layout: Layout, token: str, more: list[str]) -> list[str]:
    manager = [sys.executable, "-m", "deployer.daemon", str(layout.root), str(loaded.path), token, *more]
    return [sys.executable, "-I", "-S", str(KEEPER), str(layout.root), token, *manager]
