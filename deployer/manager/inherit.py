"""Taking over: the sockets and workers that an earlier manager, or an earlier keeper, left running.

In order: what the keeper held; else a copy out of a process that still has the socket (pidfd_getfd(2)), which is how
`deployer up` goes on after the keeper itself was killed; else a new socket.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from deployer.config.model import Config
from deployer.errors import DeniedError
from deployer.keeper.link import KeeperLink
from deployer.osutil.process import boot_id, descendants, environment, open_pidfd, signal_pidfd, start_ticks, take_fd
from deployer.paths import Layout
from deployer.sockets.address import Address, parse
from deployer.sockets.bind import bind, bind_control
from deployer.state.store import Store, WorkerRow
from deployer.workers.worker import Listener

CONTROL = "control"

log = structlog.get_logger()


def live_rows(store: Store) -> list[WorkerRow]:
    """Worker rows that may still be true: none after a reboot, when every pid means something else."""
    if store.get("boot") != boot_id():
        with store.transaction():
            for row in store.workers():
                store.delete("workers", "id", row.id)
            store.put("boot", boot_id())
    return store.workers()


def listeners(config: Config, directory: Path, keeper: KeeperLink, donors: Sequence[int]) -> tuple[Listener, ...]:
    """The cluster's listening sockets, each from the first place that has it. `donors`: pids that may hold them."""
    found = []
    for number, listen in enumerate(config.listen):
        address = parse(listen.address, directory)
        key = f"listen:{address}"
        fd = keeper.held.pop(key, None)
        sock = socket.socket(fileno=fd) if fd is not None else _from_donor(address, donors)
        sock = sock or bind(address, listen.backlog)
        sock.listen(listen.backlog)
        keeper.keep(key, sock.fileno())
        found.append(Listener(listen.name or f"socket{number + 1}", address, sock, listen.backlog))
    return tuple(found)


def control(layout: Layout, keeper: KeeperLink) -> socket.socket:
    """The control API's socket: the same one across managers, so that a command waits instead of failing."""
    fd = keeper.held.pop(CONTROL, None)
    if fd is not None:
        return socket.socket(fileno=fd)
    sock = bind_control(layout.control_socket)
    keeper.keep(CONTROL, sock.fileno())
    return sock


def other_manager(store: Store) -> int | None:
    """The pid of a manager that runs on although its keeper is gone."""
    record = store.get("manager")
    if record is None or record["pid"] == os.getpid():
        return None
    return record["pid"] if start_ticks(record["pid"]) == record["ticks"] else None


def end_other_manager(store: Store) -> None:
    """Killing a manager is always safe: state.db is whole and its workers run on."""
    pid = other_manager(store)
    if pid is None:
        return
    pidfd = open_pidfd(pid, store.get("manager")["ticks"])
    if pidfd is None:
        return
    log.warning("manager.takes_over", from_pid=pid)
    signal_pidfd(pidfd, signal.SIGKILL)
    _wait_gone(pidfd)


def strays(layout: Layout, known: set[int]) -> Iterator[tuple[int, int]]:
    """(pid, start time) of our workers that no row knows of, as after state.db was put back from its copy."""
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) in known:
            continue
        pid = int(name)
        env = environment(pid)
        if env.get("DEPLOYER_ROOT") != str(layout.root) or "DEPLOYER_WORKER" not in env:
            continue
        ticks = start_ticks(pid)
        try:
            if ticks is not None and os.getsid(pid) == pid:
                yield pid, ticks
        except ProcessLookupError:
            continue


def _from_donor(address: Address, donors: Sequence[int]) -> socket.socket | None:
    refused = []
    for donor in donors:
        for pid in descendants(donor):
            try:
                sock = _take(pid, address)
            except PermissionError:
                refused.append(pid)
                continue
            if sock is not None:
                log.info("socket.taken", address=str(address), from_pid=pid)
                return sock
    if refused:
        pids = ", ".join(map(str, refused))
        raise DeniedError(
            f"cannot take {address} over from the workers that serve it (pid {pids})",
            cause="the kernel forbids it (kernel.yama.ptrace_scope); they keep serving",
            hint=f"run as root: deployer up; or, with an interruption: kill {pids.replace(',', '')} && deployer up",
        )
    return None


def _take(pid: int, address: Address) -> socket.socket | None:
    """A copy of the socket of `pid` that listens on `address`."""
    ticks = start_ticks(pid)
    pidfd = None if ticks is None else open_pidfd(pid, ticks)
    if pidfd is None:
        return None
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if not _is_socket(pid, name):
                continue
            sock = socket.socket(fileno=take_fd(pidfd, int(name)))
            if _listens_on(sock, address):
                return sock
            sock.close()
    except FileNotFoundError:
        pass  # it ended meanwhile
    finally:
        os.close(pidfd)
    return None


def _is_socket(pid: int, name: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:[")
    except FileNotFoundError:
        return False


def _listens_on(sock: socket.socket, address: Address) -> bool:
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    name = sock.getsockname()
    if address.kind == "unix":
        return sock.family == socket.AF_UNIX and name == address.path
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    known = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return name[:2] in [found[4][:2] for found in known]


def _wait_gone(pidfd: int) -> None:
    select.select([pidfd], [], [], 10.0)
    os.close(pidfd)
