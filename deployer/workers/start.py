"""Starting a process that waits for its order: its pipes and notify socket, and the shim or the fork that has them."""

from __future__ import annotations

import marshal
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.logs.capture import open_pipe
from deployer.runtime.channel import Channel
from deployer.workers import shim

STREAMS = ("stdout", "stderr")
FORK_LIMIT_S = 2.0  # a template that has not forked by then is hung; our loop stands still meanwhile


class CannotForkError(OSError):
    """The template is of no use any more; nothing was started that would go on."""


@dataclass
class Waiting:
    """A process that has not been told what to become. `order` or `cancel` it."""

    pid: int
    notify: socket.socket
    held: tuple[int, ...]  # reading ends of its output, one for each of STREAMS
    channel: Channel | None
    line: int | None  # its end of the channel, by the number it has in the new process
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
        if self.channel is not None:
            self.channel.close()
        close_notify(self.notify)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # forked from a template: the keeper reaps it


@dataclass(frozen=True)
class Theirs:
    """The ends that the new process gets; ours are closed in it by exec or by the kernel (SCM_RIGHTS)."""

    order_r: int
    outputs: Sequence[int]
    line: int | None
    hold: Sequence[int]
    sockets: Sequence[int]


Starter = Callable[[Theirs], int]
"""Starts the process that waits; answers its pid. OSError: there is none."""


def begin(directory: Path, sockets: Sequence[int], starter: Starter, *, channel: bool) -> Waiting:
    """Start a process with `sockets`, and with a `channel` to us if it knows what to do with one; its notify socket
    lies in `directory`. OSError leaves nothing behind."""
    with ExitStack() as ours, ExitStack() as theirs:
        notify = open_notify(directory)
        ours.callback(close_notify, notify)
        order_r, order_w = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, order_w)
        theirs.callback(os.close, order_r)
        held: list[int] = []
        outputs: list[int] = []
        for _ in STREAMS:
            reading, writing = open_pipe()
            ours.callback(os.close, reading)
            theirs.callback(os.close, writing)
            held.append(reading)
            outputs.append(writing)
        end, line = None, None
        if channel:
            mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.callback(its.close)
            end, line = Channel(mine), its.fileno()
            ours.callback(end.close)
        pid = starter(Theirs(order_r, outputs, line, held, sockets))
        ours.pop_all()
        return Waiting(pid, notify, tuple(held), end, line, order_w)


def spawn(theirs: Theirs) -> int:
    """The shim, by posix_spawn(3): no copy of the manager's memory, and nothing inherited but what is listed here."""
    argv = [sys.executable, "-I", "-S", shim.__file__, str(theirs.order_r)]
    line = [] if theirs.line is None else [theirs.line]
    inherit = (theirs.order_r, *line, *theirs.hold, *theirs.sockets)
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherit]
    actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs.outputs, 1)]
    with open(os.devnull, "rb") as nothing:
        actions.append((os.POSIX_SPAWN_DUP2, nothing.fileno(), 0))
        defaults = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ]
        return os.posix_spawn(
            sys.executable, argv, {}, file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults
        )


def fork_from(template: Channel) -> Starter:
    """By a template, which has the application imported (deployer/runtime/template.py). CannotForkError: it does not
    answer as it should; a worker that it forks later gets no order, and ends."""

    def starter(theirs: Theirs) -> int:
        assert theirs.line is not None, "what a template forks has a channel"
        fds = [theirs.order_r, *theirs.outputs, theirs.line, *theirs.sockets, *theirs.hold]
        request = secrets.token_hex(4)
        if not template.send({"op": "fork", "id": request, "sockets": len(theirs.sockets)}, fds):
            raise CannotForkError("it does not listen")
        return _forked(template, request)

    return starter


def _forked(template: Channel, request: str) -> int:
    """The pid in the answer to `request`. One to a manager that was killed before it had read it may come first."""
    end = time.monotonic() + FORK_LIMIT_S
    try:
        while (left := end - time.monotonic()) > 0:
            message, _ = template.receive(left) or ({}, [])
            if message.get("id") != request:
                continue
            if message["pid"] is None:
                raise CannotForkError("fork(2) failed")
            return int(message["pid"])
    except EOFError:
        raise CannotForkError("it ended") from None
    raise CannotForkError(f"it did not fork within {FORK_LIMIT_S:g} s")


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
