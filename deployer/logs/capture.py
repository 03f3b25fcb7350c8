"""A worker's output: from its pipe to lines."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable

PIPE_SIZE = 1024 * 1024  # room for what a worker prints while no manager reads; pipe(7), F_SETPIPE_SZ
LINE_MAX = 64 * 1024


def open_pipe() -> tuple[int, int]:
    """(reading end, writing end); only the reading end does not block."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reading, False)
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except PermissionError:
        pass  # the user's quota of pipe memory is used up: the usual 64 KiB must do
    return reading, writing


class LineReader:
    """Calls `on_line` for every line that comes out of `fd`, which it owns."""

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        self._fd = fd
        self._on_line = on_line
        self.ended = asyncio.Event()  # the pipe is at its end, and closed
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._on_readable)

    def finish(self) -> None:
        """Take what is still in the pipe, then close it."""
        if self._fd < 0:
            return
        while self._on_readable():
            pass
        self._close()

    def _on_readable(self) -> bool:
        """True when there was something to read."""
        if self._fd < 0:
            return False
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._on_line(line.decode(errors="replace").rstrip("\r"))
        return True

    def _close(self) -> None:
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
            self._rest = b""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self.ended.set()
