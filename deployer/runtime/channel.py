"""The line between a worker and the manager: JSON messages over a SOCK_SEQPACKET pair, with descriptors (unix(7)).

The manager's end is kept by the keeper as well, so that what is sent while no manager runs waits for the next one.

    manager to worker     serve {slot} + sockets: accept on these from now on, and say READY=1 again
                          message {data}: what a worker broadcast
    worker to manager     broadcast {data}
                          imported {names}: what the worker of a save has imported beside its own modules
    manager to template   fork {id, sockets} + order, stdout, stderr, channel, sockets ..., descriptors to hold ...
    template to manager   forked {id, pid} | unsafe {what}
    manager to warm one   import {names}, any number of times; then go {}; from then on as a template
                          become {} + the order of a template: it is one from then on
    warm one to manager   refused {names}: they could not be imported; else as a template

`id` tells an answer from one that was meant for a manager that died before it came; `pid` is null when there is none.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

ENVIRONMENT_KEY = "DEPLOYER_CHANNEL"
MESSAGE_MAX = 64 * 1024  # bytes of one message
NAMES_MAX = MESSAGE_MAX - 1024  # of these, for names
FDS_MAX = 64


class Channel:
    """One end. Sending and receiving never block unless told how long they may."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    @classmethod
    def from_environment(cls) -> Channel | None:
        """The worker's end; None where there is no manager. Its children do not get it."""
        text = os.environ.pop(ENVIRONMENT_KEY, "")
        if not text.isdecimal():
            return None
        os.set_inheritable(int(text), False)
        return cls(socket.socket(fileno=int(text)))

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> bool:
        """False when the other end is gone, or has not read for so long that there is no room. ValueError: too long."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MESSAGE_MAX:
            raise ValueError(f"a message of {len(data)} bytes; {MESSAGE_MAX} are allowed")
        try:
            socket.send_fds(self.sock, [data], fds or [])
        except OSError:
            return False
        return True

    def send_names(self, op: str, names: Iterable[str]) -> bool:
        """In as many messages as it takes; False as above."""
        return all(self.send({"op": op, "names": part}) for part in _parts(names))

    def receive(self, timeout: float | None = 0.0) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors; None when none is there in `timeout` seconds (None: wait for one).
        EOFError: nobody is at the other end any more."""
        self.sock.settimeout(timeout)
        try:
            data, fds = _receive_fds(self.sock)
        except (BlockingIOError, TimeoutError):
            return None
        except OSError:
            data, fds = b"", []
        finally:
            self.sock.setblocking(False)
        if not data:
            raise EOFError
        message: dict[str, Any] = json.loads(data)
        return message, fds

    def close(self) -> None:
        self.sock.close()


def _parts(names: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name in names:
        length = len(json.dumps(name)) + 1
        if part and size + length > NAMES_MAX:
            yield part
            part, size = [], 0
        part.append(name)
        size += length
    if part:
        yield part


def _receive_fds(sock: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors, close-on-exec. socket.recv_fds loses its flags (cpython, to 3.11 at least)."""
    data, ancillary, _, _ = sock.recvmsg(MESSAGE_MAX, socket.CMSG_LEN(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
