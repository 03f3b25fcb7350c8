"""What a worker and its children use: pages that fork shares count once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployer.osutil.process import memory

MB = 1024**2
FAMILY = """
import os, sys
data = bytearray(b"1") * (60 << 20)
children = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        os.read(0, 1)
        os._exit(0)
    children.append(pid)
print(os.getpid(), flush=True)
sys.stdin.read(1)
for pid in children:
    os.waitpid(pid, 0)
"""


@contextmanager
def family() -> Iterator[int]:
    """A process with 60 MB and three children that share them; all end when their stdin does."""
    argv = [sys.executable, "-S", "-E", "-c", FAMILY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        yield int(parent.stdout.readline())


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="a kernel without smaps_rollup")
def test_shared_pages_count_once() -> None:
    with family() as pid:
        assert 60 * MB < memory(pid, 0) < 120 * MB


def test_what_is_resident_is_asked_first_and_settles_it_where_it_is_little() -> None:
    """Four times 60 MB: more than what is in use, and less than the limit all the same."""
    with family() as pid:
        assert memory(pid, 1000 * MB) > 4 * 60 * MB


def test_a_process_that_has_ended_uses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert memory(ended.pid, 0) == 0
