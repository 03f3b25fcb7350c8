"""`[worker] preload`: the application is imported once, in a template, and workers are forked from it.

A forked worker shares the template's memory until one of them writes to it, and is there in the time that fork(2)
takes. It leads its own session, and its parent ends at once, so that it is the keeper's child: the template's death
is nothing to it, nor its own to the template. Like a worker that is started on its own it waits for its order on a
pipe, and ends when that ends without one: no worker runs that nobody knows of.

What does not survive a fork makes a template unsafe: threads (only the forking one goes on in the child, the locks of
the others stay locked) and sockets (several processes would talk on one connection).
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .channel import ENVIRONMENT_KEY, Channel
from .notify import notify

NO_ORDER = 123  # as the shim's
FORK_SAFE = ("openblas", "libmkl")
"""Libraries whose own threads are made anew in the child (pthread_atfork(3)); numpy brings the first."""
_FIXED_FDS = 4  # order, stdout, stderr, channel


@dataclass(frozen=True)
class Order:
    """What a forked worker is to be. Its environment is in place; a template's has its directory, too."""

    sockets: list[socket.socket]
    argv: list[str]
    directory: str


def run(channel: Channel) -> Order:
    """In the template: fork whenever the manager asks. Returns only in a forked worker, with its order. EOFError:
    nobody is there any more."""
    if what := unsafe(channel):
        give_up(channel, what)
    return fork_when_asked(channel)


def give_up(channel: Channel, what: str) -> NoReturn:
    """Say that workers cannot be forked, and wait for the manager to end us: threads may keep the interpreter from
    that."""
    sys.stderr.write(f"deployer.runtime: no template, since this would not survive a fork: {what}\n")
    channel.send({"op": "unsafe", "what": what})
    await_end(channel)


def await_end(channel: Channel) -> NoReturn:
    while True:
        channel.receive(None)


def fork_when_asked(channel: Channel) -> Order:
    """`run` of a process that is known to survive it."""
    gc.collect()
    gc.freeze()  # the collector would write to every object, and unshare its page
    notify("READY=1")
    while True:
        found = channel.receive(None)
        if found is None:
            continue
        message, fds = found
        if message["op"] != "fork":
            _close(fds)
            continue
        order = _fork(channel, message, fds)
        if order is not None:
            return order


def unsafe(channel: Channel | None = None) -> str | None:
    """What was found after the import that does not survive a fork, in words."""
    found = [f"thread {thread.name!r}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    found += _sockets(set() if channel is None else {channel.fileno()})
    native = len(os.listdir("/proc/self/task")) - threading.active_count()
    if native > 0 and not _is_mapped(FORK_SAFE):
        found.append(f"{native} thread{'' if native == 1 else 's'} of a library")
    return ", ".join(found) or None


def _sockets(ours: set[int]) -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) not in ours and os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                yield _describe(int(name))


def _describe(fd: int) -> str:
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            peer = sock.getpeername()
        except OSError:
            return "a socket"
    return f"a socket to {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"a socket to {peer or 'itself'}"


def _is_mapped(names: tuple[str, ...]) -> bool:
    maps = Path("/proc/self/maps").read_text()
    return any(name in maps for name in names)


def _fork(channel: Channel, request: dict[str, Any], fds: list[int]) -> Order | None:
    """None in the template, which has told the worker's pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid_r, pid_w = os.pipe()
    between = os.fork()
    if between == 0:
        _fork_once_more()
        os.setsid()  # before anybody hears of it: what dies with the template's group is no worker
        os.write(pid_w, str(os.getpid()).encode())
        _close([pid_r, pid_w])
        channel.close()
        return _become(request["sockets"], fds)
    _close([pid_w, *fds])
    with os.fdopen(pid_r, "rb") as pipe:
        pid = pipe.read()
    os.waitpid(between, 0)
    channel.send({"op": "forked", "id": request["id"], "pid": int(pid) if pid else None})
    return None


def _fork_once_more() -> None:
    """Returns in the worker alone; the process in between ends."""
    try:
        pid = os.fork()
    except OSError:
        os._exit(1)
    if pid:
        os._exit(0)


def _become(sockets: int, fds: list[int]) -> Order:
    """What the shim does for a worker of its own. User, limits and directory are the template's."""
    order_r, stdout, stderr, channel = fds[:_FIXED_FDS]
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    _close([stdout, stderr])
    # What comes after the sockets is only to be held: the reading ends of its own log pipes, as the shim holds them.
    order = take_order(order_r, [socket.socket(fileno=fd) for fd in fds[_FIXED_FDS : _FIXED_FDS + sockets]])
    os.environ[ENVIRONMENT_KEY] = str(channel)
    return order


def take_order(fd: int, sockets: list[socket.socket]) -> Order:
    """Its environment is in place afterwards; who gets none ends."""
    with os.fdopen(fd, "rb") as file:
        data = file.read()
    try:
        order = marshal.loads(data)  # noqa: S302  # from the manager
    except (EOFError, ValueError, TypeError):
        os._exit(NO_ORDER)
    os.environ.clear()
    os.environ.update(order["env"])
    return Order(sockets, order["argv"], order["cwd"])


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
