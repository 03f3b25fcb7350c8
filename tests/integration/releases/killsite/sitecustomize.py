"""Kills a staging child just before its Nth change, without a hook in the product: found by Python on PYTHONPATH.

`KILL_TRACE` names a file for what the child is about to change, a line each (`role number event detail`). `KILL_AT`
("role number") is where the whole process group is killed, as the manager's death would. The role tells the child (0)
from the processes that it forks (1, 2, ...): each of them counts for itself, so that the numbers are the same each
time. Programs that the child starts get neither variable nor PYTHONPATH, as if nothing were here.

An event is a change of the disk, or the start of a process or a database. What changes nothing is left out: the
shutil events, each of which is told again by the os events that it consists of, files opened to be read, a descriptor
wrapped into a file, what is removed without being there or made when it is. So are the times of files, which are set
where there is a mode to be set. Opening a directory to bring it to the disk is one: between a rename and its fsync.
The last one is the end of the program, when the result has been told.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import NoReturn

CHANGES = {
    "os.chmod",
    "os.chown",
    "os.fork",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.symlink",
    "os.truncate",
    "sqlite3.connect",
    "subprocess.Popen",
    "end",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SYNCED = ("releases", "envs", "shared")  # directories in which a name tells that something is whole


class Killer:
    def __init__(self, trace: str, at: str) -> None:
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._at = at
        self._role = self._forked = self._number = 0
        self._own = False  # what this hook does itself is no event

    def before_fork(self) -> None:
        self._forked += 1

    def after_fork(self) -> None:
        self._role, self._number = self._forked, 0

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        if self._own or (event == "end" and self._role) or not _changes(event, args):
            return
        self._own = True
        self._number += 1
        here = f"{self._role} {self._number}"
        try:
            os.write(self._trace, f"{here} {event} {args!r}".replace("\n", " ").encode() + b"\n")
        except OSError:
            pass  # the guard closes all that it inherits
        if here == self._at:
            os.killpg(0, signal.SIGKILL)
        self._own = False


def _changes(event: str, args: tuple[object, ...]) -> bool:
    subject = args[0] if args else None
    if event == "open":
        flags = args[2]
        assert isinstance(flags, int)
        if isinstance(subject, int) or subject == os.devnull:
            return False
        if flags & os.O_DIRECTORY:
            return os.path.basename(os.fsdecode(subject)) in SYNCED  # type: ignore[arg-type]
        return bool(flags & WRITING)
    if event in ("os.mkdir", "os.remove") and os.path.isabs(subject):  # type: ignore[arg-type]
        return os.path.lexists(subject) == (event == "os.remove")  # type: ignore[arg-type]
    return event in CHANGES


def _install() -> None:
    trace = os.environ.pop("KILL_TRACE", None)
    at = os.environ.pop("KILL_AT", "")
    if trace is None or "deployer.releases.stage" not in sys.orig_argv:
        return
    del os.environ["PYTHONPATH"]
    sys.dont_write_bytecode = True
    from deployer.releases.sources import directory

    directory.LINKED_HERE = 0  # the process that links is killed too, though there are few files here
    killer = Killer(trace, at)
    sys.addaudithook(killer.hear)
    os.register_at_fork(before=killer.before_fork, after_in_child=killer.after_fork)
    atexit.register(sys.audit, "end")
    leave = os._exit

    def tell(status: int) -> NoReturn:
        sys.audit("end")
        leave(status)

    os._exit = tell


_install()
