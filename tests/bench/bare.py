"""Servers as they are without deployer: processes on an inherited socket, and what a single one needs to boot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from typing import Self

from tests.apps import App
from tests.load import parse_address

BACKLOG = 2048
START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0


class Bare:
    """`count` processes of an app that share one listening socket, as deployer's workers do."""

    def __init__(self, app: App, count: int = 1) -> None:
        self.app, self.count = app, count
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.address = f"tcp://127.0.0.1:{self.socket.getsockname()[1]}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__

    def __enter__(self) -> Self:
        try:
            self._processes += [self._start(number) for number in range(1, self.count + 1)]
            answer(self.address, START_LIMIT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            _signal_group(process, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                pass  # it is killed next
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self.socket.close()
        self._log.close()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        """As the worker protocol has it: the socket is descriptor 3, LISTEN_PID is the program's own pid."""
        fd = self.socket.fileno()
        move = "" if fd == 3 else f"exec 3<&{fd} {fd}<&-; "
        command = self.app.command.replace("{fd}", "3")
        return subprocess.Popen(
            ["bash", "-c", f"{move}export LISTEN_PID=$$; exec {command}"],
            cwd=self.app.directory,
            env=os.environ | {"LISTEN_FDS": "1", "DEPLOYER_RELEASE": "v1", "DEPLOYER_WORKER": str(number)},
            pass_fds=[fd],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )


def boot_seconds(app: App) -> float:
    """Spawn to first answer of one worker alone: the request waits in the queue for it, so nothing is polled."""
    began = time.monotonic()
    with Bare(app):
        return time.monotonic() - began


def answer(address: str, limit_s: float, path: str = "/") -> tuple[int, str]:
    """(status, the whole answer as text) of one request on a connection of its own."""
    family, target = parse_address(address)
    with socket.socket(family) as sock:
        sock.settimeout(limit_s)
        sock.connect(target)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: sock.recv(65536), b"")).decode("latin-1")
    if not data.startswith("HTTP/"):
        raise ConnectionError("closed without an answer")
    return int(data.split(" ", 2)[1]), data


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of it is gone


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dep-bench-", dir="/tmp")
