"""The manners of the staging child: it dies with its manager, is stopped cleanly, and hears no git hook's variables."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KEPT_PREFIXES = ("GIT_SSH", "GIT_SSL_")
"""How the user's own ssh and certificates are found; all else of GIT_* would redirect git to another repository."""

_libc = ctypes.CDLL(None, use_errno=True)


class Cancelled(BaseException):
    """A stop signal came. Not an Exception, so that no `except Exception` on the way takes it for a failure."""


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when the thread that started it ends.

    Also for use between fork and exec, hence no lookups here: the setting survives exec, not fork.
    """
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def parent_is(parent: int | None) -> bool:
    """Whether the starter still lives; it may have died before `die_with_parent` was called, which no signal tells."""
    return os.getppid() == parent if parent is not None else os.getppid() != 1


def raise_on_stop() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, _cancel)


def ignore_stop() -> None:
    """From here on the work is undone or finished whole, whoever asks to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_held() -> Iterator[None]:
    """A stop signal that comes now is taken right after. Around os.fork(), which would raise it in a callback of some
    module (logging has one), where exceptions are dropped: nobody would stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_environment() -> None:
    """Drop what a calling git hook exports (GIT_DIR, GIT_INDEX_FILE, ...) and forbid git to ask a terminal."""
    for key in list(os.environ):
        if key.startswith("GIT_") and not key.startswith(KEPT_PREFIXES):
            del os.environ[key]
    os.environ["GIT_TERMINAL_PROMPT"] = "0"
    os.environ["GIT_OPTIONAL_LOCKS"] = "0"  # `git status` must not write into a repository we only read
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # a missing git is told in our words, when it is needed


def _cancel(number: int, frame: FrameType | None) -> NoReturn:
    raise Cancelled(signal.Signals(number).name)
