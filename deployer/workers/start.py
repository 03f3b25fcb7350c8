"""Starting a process that waits for its order: the shim, its pipes and its notify socket."""

from __future__ import annotations

import marshal
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.logs.capture import open_pipe
from deployer.workers import shim

STREAMS = ("stdout", "stderr")


@dataclass
class Waiting:
    """A shim that has not been told what to become. `order` or `cancel` it."""

    pid: int
    notify: socket.socket
    held: tuple[int, ...]  # reading ends of its output, one for each of STREAMS
    order_w: int

    def order(self, what: Mapping[str, Any]) -> None:
        with os.fdopen(self.order_w, "wb") as pipe:
            try:
                pipe.write(marshal.dumps(dict(what)))
            except BrokenPipeError:
                pass  # it died already; its exit will be heard

    def cancel(self) -> None:
        """Without an order it exits by itself."""
        for fd in (self.order_w, *self.held):
            os.close(fd)
        close_notify(self.notify)
        os.waitpid(self.pid, 0)


def begin(directory: Path, sockets: Sequence[int]) -> Waiting:
    """Start a shim that inherits `sockets`; its notify socket lies in `directory`. OSError leaves nothing behind."""
    notify = open_notify(directory)
    pipes: list[tuple[int, int]] = []
    order_r, order_w = os.pipe2(os.O_CLOEXEC)
    try:
        pipes += [open_pipe() for _ in STREAMS]
        held = tuple(reading for reading, _ in pipes)
        pid = _spawn(order_r, [writing for _, writing in pipes], [*held, *sockets])
    except OSError:
        for fd in (order_w, *(reading for reading, _ in pipes)):
            os.close(fd)
        close_notify(notify)
        raise
    finally:
        for fd in (order_r, *(writing for _, writing in pipes)):
            os.close(fd)
    return Waiting(pid, notify, held, order_w)


def open_notify(directory: Path) -> socket.socket:
    """A NOTIFY_SOCKET of its own for each worker: who sends needs no further proof."""
    path = directory / secrets.token_hex(4)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(str(path))
        path.chmod(0o666)  # a worker may run as another user
    except OSError:
        sock.close()
        raise
    return sock


def close_notify(sock: socket.socket) -> None:
    Path(sock.getsockname()).unlink(missing_ok=True)
    sock.close()


def _spawn(order_r: int, outputs: Sequence[int], inherit: Sequence[int]) -> int:
    """posix_spawn(3): no copy of the manager's memory, and nothing inherited but what is listed here."""
    argv = [sys.executable, "-I", "-S", shim.__file__, str(order_r)]
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (order_r, *inherit)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(outputs, 1)]
    with open(os.devnull, "rb") as nothing:
        actions.append((os.POSIX_SPAWN_DUP2, nothing.fileno(), 0))
        defaults = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ]
        return os.posix_spawn(
            sys.executable, argv, {}, file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults
        )
