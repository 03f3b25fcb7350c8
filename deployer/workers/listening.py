"""Does a worker listen? Seen from outside, for servers that cannot tell.

A worker listens when one of its processes holds a listening socket and waits on it: the socket is in an epoll set
(/proc/PID/fdinfo, proc(5)), or a thread is blocked on it in accept, poll or select (/proc/PID/task/TID/syscall and
the waiting thread's own memory). A process that merely holds the socket, as a master does for its children, is not
enough. io_uring servers are not seen: they use `ready = "notify"` or `"http"`.
"""

from __future__ import annotations

import os
import platform
import struct
from pathlib import Path

from deployer.osutil.process import descendants

_CALLS = {
    "x86_64": {43: "accept", 288: "accept", 7: "poll", 271: "poll", 23: "select", 270: "select"},
    "aarch64": {202: "accept", 242: "accept", 73: "poll", 72: "select"},
}.get(platform.machine(), {})
_POLLFD = struct.Struct("ihh")


def listens(pid: int, inodes: set[int]) -> bool:
    """True when `pid` or a descendant waits for connections on a socket with one of these inodes."""
    return any(_process_listens(process, inodes) for process in descendants(pid))


def holder_of(inode: int, pids: list[int]) -> int | None:
    """The process among `pids` that holds the socket."""
    for pid in pids:
        if any(found == inode for found in _sockets(pid).values()):
            return pid
    return None


def _process_listens(pid: int, inodes: set[int]) -> bool:
    try:
        held = {fd for fd, inode in _sockets(pid).items() if inode in inodes}
        return bool(held) and (_in_epoll(pid, held) or _blocked_on(pid, held))
    except OSError:
        return False  # it ended, or is not ours to look into


def _sockets(pid: int) -> dict[int, int]:
    """Descriptor -> inode of every socket a process has open."""
    found = {}
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                found[int(name)] = int(target[8:-1])
    except OSError:
        return {}
    return found


def _in_epoll(pid: int, held: set[int]) -> bool:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") != "anon_inode:[eventpoll]":
                continue
            lines = Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines()
        except OSError:
            continue
        if any(line.startswith("tfd:") and int(line.split()[1]) in held for line in lines):
            return True
    return False


def _blocked_on(pid: int, held: set[int]) -> bool:
    return any(_thread_waits(pid, tid, held) for tid in os.listdir(f"/proc/{pid}/task"))


def _thread_waits(pid: int, tid: str, held: set[int]) -> bool:
    """`syscall` reads "NR 0xARG0 0xARG1 ...", or "running"."""
    fields = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
    call = _CALLS.get(int(fields[0])) if fields[0].isdigit() else None
    if call is None:
        return False
    first, second = int(fields[1], 16), int(fields[2], 16)
    if call == "accept":
        return first in held
    if call == "poll":
        return any(fd in held for fd, _, _ in _POLLFD.iter_unpack(_memory(pid, first, second * _POLLFD.size)))
    bits = int.from_bytes(_memory(pid, second, (first + 7) // 8), "little")
    return any(bits >> fd & 1 for fd in held)


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(min(size, 65536))
