"""A staging that is told to stop in the instant in which it forks."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal
from deployer.releases import process
from deployer.releases.linker import Linker
process.raise_on_stop()
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    Linker(b"old", b"new")
except process.Cancelled as stop:
    print("stopped by", stop)
"""


def test_the_signal_is_not_lost() -> None:
    """Python drops what is raised in a callback of os.fork(), and its modules have some."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("stopped by SIGTERM\n", "")
