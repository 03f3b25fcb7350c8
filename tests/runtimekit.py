"""Workers of deployer's runtime without deployer: processes on a shared listening socket, with a scoreboard."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from deployer.runtime import __main__ as program
from deployer.runtime.scoreboard import SERVING, Row, Scoreboard

RUNTIME = str(Path(program.__file__))
BACKLOG = 2048
START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0


def until(condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """The first true answer; AssertionError when there is none in time."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.01)
    return found


class Workers:
    """`count` workers of an application in `directory`. Nothing is left after `with`."""

    def __init__(
        self,
        directory: Path,
        app: str,
        count: int = 1,
        *,
        options: Sequence[str] = (),
        python: str = sys.executable,
        scoreboard: bool = True,
        unix: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        self.directory, self.app, self.options, self.python = directory, app, list(options), python
        self.count, self.env = count, env or {}
        self._scratch = tempfile.TemporaryDirectory(prefix="dep-rt-", dir="/tmp")
        self.board_path = Path(self._scratch.name) / "scoreboard"
        self.board: Scoreboard | None = None
        if scoreboard:
            Scoreboard.create(self.board_path)
            self.board = Scoreboard.open(self.board_path)
        if unix:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.bind(f"{self._scratch.name}/s")
            self.socket.listen(BACKLOG)
            self.address = f"unix:{self._scratch.name}/s"
        else:
            self.socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
            self.address = f"tcp://127.0.0.1:{self.socket.getsockname()[1]}"
        self.log_path = Path(self._scratch.name) / "log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            for _ in range(self.count):
                self.start()
            for process in self.processes:
                self.until_serving(process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.socket.close()
        if self.board is not None:
            self.board.close()
        self._scratch.cleanup()

    def start(self, release: str = "v1", app: str | None = None) -> subprocess.Popen[bytes]:
        """One more worker; the order of sd_listen_fds(3): its socket is descriptor 3."""
        fd, number = self.socket.fileno(), len(self.processes) + 1
        move = "" if fd == 3 else f"exec 3<&{fd} {fd}<&-; "
        words = shlex.join([self.python, RUNTIME, *self.options, app or self.app])
        env = {"LISTEN_FDS": "1", "DEPLOYER_RELEASE": release, "DEPLOYER_WORKER": str(number)}
        if self.board is not None:
            env["DEPLOYER_SCOREBOARD"] = str(self.board_path)
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"{move}export LISTEN_PID=$$; exec {words}"],
                cwd=self.directory,
                env=os.environ | env | self.env,
                pass_fds=[fd],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def until_serving(self, process: subprocess.Popen[bytes]) -> None:
        def look() -> bool:
            assert process.poll() is None, f"exit {process.returncode}: {self.log()}"
            if self.board is None:
                return "ready" in self.log() or _answers(self.address)
            return any(row.pid == process.pid and row.state == SERVING for row in self.board.rows())

        until(look, f"worker {process.pid} serves; {self.log()}", START_LIMIT_S)

    def stop(self, process: subprocess.Popen[bytes] | None = None, limit_s: float = STOP_LIMIT_S) -> int:
        """SIGTERM, and the exit code."""
        process = process or self.processes[0]
        process.terminate()
        return process.wait(limit_s)

    def row(self, process: subprocess.Popen[bytes] | None = None) -> Row:
        """What a worker says of itself on the scoreboard."""
        assert self.board is not None
        pid = (process or self.processes[0]).pid
        return next(row for row in self.board.rows() if row.pid == pid)

    def rows(self) -> list[Row]:
        assert self.board is not None
        return self.board.rows()

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def connect(self, timeout: float = 30.0) -> socket.socket:
        family = socket.AF_UNIX if self.address.startswith("unix:") else socket.AF_INET
        sock = socket.socket(family)
        sock.settimeout(timeout)
        sock.connect(self.socket.getsockname())
        return sock


def _answers(address: str) -> bool:
    from tests.bench.bare import answer

    with contextlib.suppress(OSError):
        return bool(answer(address, 5.0))
    return False
