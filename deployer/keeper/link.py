"""The manager's end of the keeper's channel. The protocol is described in keeper.py."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from deployer.keeper.keeper import receive_fds

MESSAGE_MAX = 65536
ENVIRONMENT_KEY = "DEPLOYER_KEEPER_FD"
EXIT_WAIT_S = 1.0  # from the end of a process to the keeper's word of it


class KeeperLink:
    """What the keeper held for us, and how to ask it to hold more.

    A keeper that is gone is no error here: the manager goes on alone, and `alive` says so.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.alive = True
        self.pid: int | None = None
        self.starts = 1
        self.held: dict[str, int] = {}
        """Descriptors handed over at the start; whoever uses one pops it."""
        self.exits: dict[int, int] = {}
        """pid -> wait status of processes that the keeper reaped."""
        self.on_exit: Callable[[int], None] | None = None
        self.on_gone: Callable[[], None] | None = None

    @classmethod
    def from_environment(cls) -> KeeperLink:
        fd = int(os.environ.pop(ENVIRONMENT_KEY))
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def receive_inheritance(self) -> None:
        """Blocks until the keeper has said everything it has to say at the start."""
        self._sock.settimeout(10.0)
        while self._take_one(0) != "go":
            if not self.alive:
                raise ConnectionError("the keeper ended while it handed over")
        self._sock.setblocking(False)

    def exit_of(self, pid: int) -> int | None:
        """The wait status of a process that is gone. The keeper's word of it may be on its way still, unless the keeper
        is newer than the process; None when nobody knows."""
        end = time.monotonic() + EXIT_WAIT_S
        while pid not in self.exits and self.alive and self.starts > 1 and (left := end - time.monotonic()) > 0:
            select.select([self._sock], [], [], left)
            self._take_one(socket.MSG_DONTWAIT)
        return self.exits.get(pid)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on exits are heard on the loop."""
        if self.alive:
            loop.add_reader(self._sock, self._on_readable, loop)

    def keep(self, name: str, fd: int) -> None:
        self._send({"op": "keep", "name": name}, fd)

    def drop(self, name: str) -> None:
        self._send({"op": "drop", "name": name})

    def seen(self, pid: int) -> None:
        """The exit of `pid` is in state.db: the keeper may forget it."""
        self.exits.pop(pid, None)
        self._send({"op": "seen", "pid": pid})

    def ready(self) -> None:
        self._send({"op": "ready"})

    def stopping(self) -> None:
        self._send({"op": "stopping"})

    def _on_readable(self, loop: asyncio.AbstractEventLoop) -> None:
        self._take_one(socket.MSG_DONTWAIT)
        if not self.alive:
            loop.remove_reader(self._sock)
            if self.on_gone is not None:
                self.on_gone()

    def _take_one(self, flags: int) -> str | None:
        try:
            data, fds = receive_fds(self._sock, MESSAGE_MAX, 4, flags)
        except BlockingIOError:
            return None
        except (ConnectionError, TimeoutError):
            data, fds = b"", []
        if not data:
            self.alive = False
            return None
        message: dict[str, Any] = json.loads(data)
        op: str = message["op"]
        if op == "hello":
            self.pid, self.starts = message["pid"], message["starts"]
        elif op == "fd":
            self.held[message["name"]] = fds.pop()
        elif op == "exited":
            self.exits[message["pid"]] = message["status"]
            if self.on_exit is not None:
                self.on_exit(message["pid"])
        for fd in fds:
            os.close(fd)
        return op

    def _send(self, message: dict[str, Any], fd: int | None = None) -> None:
        if not self.alive:
            return
        self._sock.setblocking(True)
        try:
            self._sock.settimeout(5.0)
            socket.send_fds(self._sock, [json.dumps(message).encode()], [] if fd is None else [fd])
        except OSError:
            self.alive = False  # the loop hears the end of the channel and tells `on_gone`
        finally:
            self._sock.setblocking(False)
