"""Ctrl-C and SIGTERM as one exception that knows the exit code; and the reader who closed the pipe.

The viewer may end at any moment: what it watches runs in the manager and goes on.
"""

from __future__ import annotations

import signal
from types import FrameType

from deployer.errors import Exit


class Interrupted(BaseException):
    """The viewer was told to end; `told` says what the reader has to know, where a command set it."""

    def __init__(self, exit_code: Exit) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.told = False


class ReaderGone(BaseException):
    """Nobody reads our output any more (`deployer logs | head`): end without a word."""


def raise_on_signals() -> None:
    """From now on SIGINT and SIGTERM raise `Interrupted` in the main thread."""
    signal.signal(signal.SIGINT, _raise)
    signal.signal(signal.SIGTERM, _raise)


def ignore_signals() -> None:
    """The last words are being said: a second Ctrl-C must not cut them off."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _raise(signum: int, frame: FrameType | None) -> None:
    ignore_signals()
    raise Interrupted(Exit.INTERRUPTED if signum == signal.SIGINT else Exit.TERMINATED)
