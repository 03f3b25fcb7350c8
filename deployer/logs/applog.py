"""app.log: what the workers print, one JSON object a line, rotated by size so that it can never fill the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from deployer.wire.schema import LogLine

SIZE_MAX = 16 * 1024 * 1024
FILES_KEPT = 4


class AppLog:
    """Appends lines, reads the last ones back, and tells followers of each new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.followers: set[Callable[[LogLine], None]] = set()
        self.dropped = 0  # lines that could not be written, as on a full disk
        self._encoder = msgspec.json.Encoder()
        self._fd, self._size = self._open()

    def write(self, line: LogLine) -> None:
        data = self._encoder.encode(line) + b"\n"
        try:
            if self._size + len(data) > SIZE_MAX:
                self._rotate()
            os.write(self._fd, data)
            self._size += len(data)
        except OSError:
            self.dropped += 1
        for follower in tuple(self.followers):
            follower(line)

    def last(self, count: int, *, slot: int | None = None, release: str | None = None) -> list[LogLine]:
        """The newest `count` lines that match, oldest first, from the current file and the one before."""
        found: deque[LogLine] = deque(maxlen=count)
        for path in (self._numbered(1), self.path):
            found.extend(
                line
                for line in _read(path)
                if (slot is None or line.slot == slot) and (release is None or line.release == release)
            )
        return list(found)

    def _open(self) -> tuple[int, int]:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return fd, os.fstat(fd).st_size

    def _rotate(self) -> None:
        for number in range(FILES_KEPT, 0, -1):
            older = self._numbered(number - 1) if number > 1 else self.path
            if older.exists():
                older.replace(self._numbered(number))
        os.close(self._fd)
        self._fd, self._size = self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _read(path: Path) -> Iterator[LogLine]:
    """Lines of a log file; a line cut by a crash is passed over."""
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(LogLine)
    with path.open("rb") as file:
        for data in file:
            try:
                yield decoder.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
