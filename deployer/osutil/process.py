"""Processes by pid *and* start time, so that a pid used again is never taken for the old one."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SYS_PIDFD_GETFD = 438  # pidfd_getfd(2); the same number on every architecture


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from `state` (field 3) on, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()  # the name before it may hold anything


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none or only its zombie."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return int(fields[19])


def boot_id() -> str:
    """Tells this boot of the machine from every other (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def open_pidfd(pid: int, ticks: int) -> int | None:
    """A pidfd of exactly that process, or None when it is gone. The caller closes it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_ticks(pid) != ticks:
        os.close(fd)
        return None
    return fd


def take_fd(pidfd: int, number: int) -> int:
    """A copy of descriptor `number` of another process. PermissionError where the kernel forbids ptrace."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.set_inheritable(fd, False)
    return int(fd)


def signal_pidfd(pidfd: int, number: int) -> None:
    """Send a signal; a process that is gone is no error."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def kill_group(pid: int) -> None:
    """SIGKILL to the group that `pid` leads. Call it before the leader is reaped: later the id may be another's."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody but the zombie is left in it


def descendants(pid: int) -> list[int]:
    """`pid` and all its living descendants (proc(5), task/TID/children)."""
    found, ahead = [], [pid]
    while ahead:
        parent = ahead.pop()
        found.append(parent)
        ahead.extend(_children(parent))
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended; its children have another parent now
    return found


def memory(pid: int, enough: int) -> int:
    """Bytes in use by `pid` and its living descendants: resident ones where these do not exceed `enough`.

    Beyond that, what several processes share (by fork, or as a library) counts for each as its part of it
    (proc(5), smaps_rollup, Pss). That takes the kernel a walk through all pages, and permission to ask; a process
    that cannot be asked counts with all that is resident.
    """
    pids = descendants(pid)
    resident = {each: _resident(each) for each in pids}
    if sum(resident.values()) <= enough:
        return sum(resident.values())
    return sum(min(resident[each], _proportional(each, resident[each])) for each in pids)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0  # it has ended


def _proportional(pid: int, otherwise: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except OSError:
        return otherwise
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:")), otherwise)


def kill_escaped(ancestor: int, spare: int, key: str, value: str) -> list[int]:
    """SIGKILL what carries `key=value` in its environment among the descendants of `ancestor`, but for those of its
    child `spare`. That is how what left its process group is found: it keeps its environment, and its subreaper."""
    killed: list[int] = []
    for child in set(_children(ancestor)) - {spare}:
        for pid in descendants(child):
            if environment(pid).get(key) == value:
                killed.append(pid)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it ended by itself
    return killed


def environment(pid: int) -> dict[str, str]:
    """The environment a process started with; empty when it cannot be read."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.split(b"=", 1) for item in data.split(b"\0") if b"=" in item)
    return {os.fsdecode(key): os.fsdecode(value) for key, value in pairs}


def describe_exit(code: int | None) -> tuple[int | None, str | None, str]:
    """(exit code, signal name, words) of a subprocess-style code: negative for a signal, None for unknown."""
    if code is None:
        return None, None, "ended while nobody could see how"
    if code >= 0:
        return code, None, f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return None, name, f"killed by {name}"
