"""Kills what a build command started when the staging child cannot do it any more: it was itself killed.

A command leads a process group of its own, so the manager's kill of the staging child's group does not reach it, and
PR_SET_PDEATHSIG reaches only the shell, not the compiler that it runs. A guard is a fork that waits on a pipe.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn, Self

from deployer.releases.process import STOP_SIGNALS

_DONE = b"done\n"


class Guard:
    """`with Guard() as guard:` start a group leader that calls `guard.watch_me()` before it becomes another program,
    end its group, `guard.dismiss()`. Who leaves without the last, for whatever reason, leaves the group to be killed.
    """

    def __enter__(self) -> Self:
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        # Blocked: a handler that raised in the fork would have it go on as a second staging child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._pid = os.fork()
        if self._pid == 0:
            _stand_by(reading)
        try:
            os.setpgid(self._pid, self._pid)  # out of the group that the manager kills
            os.close(reading)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def watch_me(self) -> None:
        """Said by the leader itself: its starter may be killed before it could."""
        os.write(self._writing, b"%d\n" % os.getpid())

    def dismiss(self) -> None:
        os.write(self._writing, _DONE)

    def __exit__(self, *failure: object) -> None:
        os.close(self._writing)
        os.waitpid(self._pid, 0)


def _stand_by(reading: int) -> NoReturn:
    """Descriptors are closed: the manager waits for the end of our output, another staging for our locks."""
    try:
        os.closerange(0, reading)
        os.closerange(reading + 1, os.sysconf("SC_OPEN_MAX"))
        told = b""
        while chunk := os.read(reading, 64):
            told += chunk
        if told and not told.endswith(_DONE):
            os.killpg(int(told), signal.SIGKILL)
    finally:
        os._exit(0)
