"""A real deployer cluster for a test: its own directory, port, keeper, manager and workers, and nothing left after.

`Cluster` runs the installed command as a user does. `close` ends everything, and fails the test when a process, or
its port, is still there.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.osutil.process import descendants
from tests import apps

DEPLOYER = str(Path(sys.executable).with_name("deployer"))
COMMAND_TIMEOUT_S = 90
XDIST_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = range(20000 + XDIST_WORKER % 12, 32000, 12)  # of this process alone, and below the kernel's ephemeral range
_ports = itertools.cycle(random.sample(PORTS, len(PORTS)))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a command with --json: every line it printed."""
        return [json.loads(line) for line in self.out.splitlines() if line.strip()]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


def free_port() -> int:
    """One that nobody listens on. No other test is given it before this one listens on it, nor while it does not."""
    while True:
        port = next(_ports)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                return port


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 60.0, pause: float = 0.05) -> Any:
    """The first true answer of `condition`; the test fails with `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(pause)


def alive(pid: int) -> bool:
    """Runs, zombies apart."""
    return _bytes(pid, "stat").rpartition(b")")[2].split()[:1] not in ([], [b"Z"], [b"X"])


class Cluster:
    """One app directory with a deployer.toml. `server` is a function of tests.apps."""

    def __init__(self, *, server: str = "mini", unix: bool = False, **toml: Any) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="dep-", dir="/tmp"))
        self.directory = self.base / "app"
        self.root = self.directory / ".deployer"
        self.address = f"unix:{self.base}/app.sock" if unix else f"tcp://127.0.0.1:{free_port()}"
        self.server, self.toml = server, toml
        self._started: list[subprocess.Popen[str]] = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DEPLOYER_", "GITHUB_", "GITLAB_", "CI"))}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close(check=failure[0] is None)

    # What is deployed

    def write(self, behaviour: str = "good", label: str = "hello", **options: Any) -> apps.App:
        """Put a release's files into the app directory, as an editor would, and deployer.toml beside them."""
        if self.directory.exists():
            for path in self.directory.iterdir():
                if path != self.root:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        app = apps.SERVERS[self.server](self.directory, behaviour, label=label, **options)
        (self.directory / "deployer.toml").write_text(app.toml(self.address, **self.toml))
        return app

    # Commands

    def run(self, *words: str, timeout: float = COMMAND_TIMEOUT_S, code: int | None = None, **env: str) -> Done:
        """Run `deployer WORDS` in the app directory; with `code`, that is what it must end with."""
        done = subprocess.run(
            [DEPLOYER, *words],
            cwd=self.directory,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        result = Done(done.returncode, done.stdout, done.stderr)
        if code is not None:
            assert result.code == code, f"deployer {' '.join(words)}: exit {result.code}, not {code}\n{result.text}"
        return result

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start `deployer WORDS` and go on. The caller waits for it; where a failure kept him from it, `close` does."""
        process = subprocess.Popen(
            [DEPLOYER, *words],
            cwd=self.directory,
            env=self.env | env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def up(self, behaviour: str = "good", label: str = "hello", **options: Any) -> Done:
        self.write(behaviour, label, **options)
        return self.run("up", code=0)

    def deploy(self, behaviour: str = "good", label: str = "hello", *words: str, code: int | None = None) -> Done:
        """Write a release and deploy it; events come back as JSON."""
        self.write(behaviour, label)
        return self.run("deploy", "--json", *words, code=code)

    # Looking

    def api(self, path: str) -> list[Any]:
        """What the control API answers, line by line, as `deployer ... --json` prints it; tests look so often that a
        process each time would be most of their work. One that is cut by a manager's death is asked again."""

        def answer() -> list[Any] | None:
            with contextlib.closing(_Control(str(self.root / "run" / "control.sock"))) as control:
                with contextlib.suppress(http.client.HTTPException, ConnectionResetError, BrokenPipeError):
                    control.request("GET", path)
                    response = control.getresponse()
                    body = response.read()
                    assert response.status == 200, f"GET {path}: {response.status} {body!r}"
                    return [json.loads(line) for line in body.splitlines() if line.strip()]
            return None

        found: list[Any] = wait_until(answer, f"GET {path} is answered whole")
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api("/v1/status")[0]
        return found

    def workers(self) -> list[dict[str, Any]]:
        """Those that serve: no preflight, none on its way out."""
        return [w for w in self.status()["workers"] if w["slot"] and w["state"] != "draining"]

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.workers()]

    def settled(self) -> dict[str, Any]:
        """Status once no rollout runs, every slot has a ready worker on the promoted release, and none drains."""

        def look() -> dict[str, Any] | None:
            try:
                status = self.status()
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            states = [(w["state"], w["release"]) for w in status["workers"]]
            whole = states == [("ready", status["release"])] * status["count"]
            return status if whole and status["rollout"] is None else None

        found: dict[str, Any] = wait_until(look, f"{self.directory}: all slots on the promoted release")
        return found

    def get(self, path: str = "/", timeout: float = 5.0) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one request on a connection of its own."""
        with self.connect(timeout) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, body = data.partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in rest)}
        return int(first.split()[1]), headers, body

    def connect(self, timeout: float = 5.0) -> socket.socket:
        if self.address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(self.address.removeprefix("unix:"))
            return sock
        host, port = self.address.removeprefix("tcp://").split(":")
        return socket.create_connection((host, int(port)), timeout)

    def release_served(self) -> str:
        return self.get()[1]["x-release"]

    def current(self) -> str | None:
        link = self.root / "current"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    # Breaking

    def manager_pid(self) -> int:
        return int(json.loads((self.root / "run" / "manager.json").read_text())["pid"])

    def keeper_pid(self) -> int:
        return int((self.root / "run" / "keeper.pid").read_text().split()[0])

    def kill_manager(self) -> int:
        """SIGKILL, then wait until another manager has taken over; its pid."""
        pid = self.manager_pid()
        os.kill(pid, signal.SIGKILL)
        return int(wait_until(lambda: self._other_manager(pid), "a new manager answers"))

    def _other_manager(self, old: int) -> int | None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            word = json.loads((self.root / "run" / "manager.json").read_text())
            return word["pid"] if word["pid"] != old and word["state"] == "ready" else None
        return None

    def kill_everything(self) -> None:
        """SIGKILL to every process. All are stopped before, those that are just being started too: none of them may
        do anything about the death of another."""
        stopped: list[int] = []
        while new := [pid for pid in self.processes() if pid not in stopped]:
            _signal(new, signal.SIGSTOP)
            stopped += new
        left = stopped  # of those that have no mark the parent may be gone already
        while left:
            _signal(left, signal.SIGKILL)
            left = self.processes()

    # The end

    def processes(self) -> list[int]:
        """Every process of this cluster: keeper, manager, staging, workers and what they started.

        Those that work in its directories or have them in their environment, and the descendants of all these: not each
        has a mark, and one that is just becoming another program shows no variables. A command, in the app's directory,
        is none; nor is a stranger who has a path of ours among his arguments.
        """
        mark = str(self.base).encode()
        marked = [pid for pid in _pids() if self._works_inside(pid) or mark in _bytes(pid, "environ")]
        ours = {found for pid in marked if pid != os.getpid() for found in descendants(pid)}
        return sorted(pid for pid in ours if alive(pid))

    def _works_inside(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            there = Path(os.readlink(f"/proc/{pid}/cwd"))
            return there.is_relative_to(self.base) and there != self.directory
        return False

    def close(self, *, check: bool = True) -> None:
        left: list[int] = []
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run("down", "--now", timeout=30)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not self.processes(), "all processes gone")
            left = self.processes()
            names = [_bytes(pid, "cmdline").replace(b"\0", b" ").decode() for pid in left]
            if check:
                assert not left, f"left running: {names}\n{self.log_tail()}"
        finally:
            _signal(left, signal.SIGKILL)
            for process in self._started:
                with process:  # waits, and closes its pipes
                    process.kill()
            shutil.rmtree(self.base, ignore_errors=True)

    def log_tail(self, lines: int = 40) -> str:
        path = self.root / "logs" / "deployer.log"
        return "\n".join(path.read_text().splitlines()[-lines:]) if path.exists() else ""


class _Control(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=COMMAND_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _bytes(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
