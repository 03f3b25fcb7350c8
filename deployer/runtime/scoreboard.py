"""The scoreboard: one file a cluster, mapped by every worker; a record for each worker process.

A record has one writer, the worker that claimed it, and any number of readers. Its fields are aligned words of
8 bytes, written whole: no reader waits, none sees half a number. Texts (last error, status) are guarded by a word
that is odd while they are written. The old and the new worker of a slot live at the same time, so a record belongs to a
process and not to a slot; it is claimed under flock, never read under it. What a worker wrote stays after its death,
until another needs the place.

    header   magic, version, record size, records, records ever used, epoch
    record   FIELDS (8 bytes each), the texts, the latency histogram
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from .histogram import BUCKETS

MAGIC = 0x6472_6F62_6472_6373
VERSION = 1
STATUSES = 6
RECORDS = 1100  # 512 slots, old and new, and preflight; pages nobody wrote take no room
HEADER = 4096
RECORD = 4096
WORDS = RECORD // 8
KEEP_S = 60.0  # a dead worker's record is not taken before, while others are free

STARTING, SERVING, DRAINING, GONE = range(1, 5)
STATES = {STARTING: "starting", SERVING: "serving", DRAINING: "draining", GONE: "gone"}

INTEGERS = (
    "pid",
    "ticks",  # start time of the process, as /proc/PID/stat has it: a pid alone may be another's by now
    "slot",
    "generation",
    "release",  # 7 of "v7"
    "group",  # inode of the first listening socket: workers that compete for the same visitors
    "state",
    "connections",
    "settled",  # of these, the ones that have been there for a heartbeat at least
    "websockets",
    "in_flight",
    "accepted",
    "status_other",  # of no class
    "status_1xx",
    "status_2xx",
    "status_3xx",
    "status_4xx",
    "status_5xx",
    "broken",  # answers that ended before they were whole, by an error of the application
    "cut_requests",  # under way when the drain's time was over
    "cut_connections",  # websockets and streams among those, and answers that nobody fetched
    "threads",  # of a WSGI worker
)
REALS = (
    "started",  # time.monotonic, as all times here: the same clock in every process
    "heartbeat",  # the event loop turned
    "progress",  # the loop turned, and not every thread is stuck
    "load",  # connections taken lately (fairness.py)
    "error_at",  # time.time
)
FIELD = {name: number for number, name in enumerate(INTEGERS + REALS)}
_TEXTS = 32  # the first word of the texts: their guard
_TEXT_BYTES = {"error": (_TEXTS * 8 + 8, 504), "status": (_TEXTS * 8 + 512, 248)}
_HISTOGRAM = 128  # words
assert len(FIELD) <= _TEXTS
assert _HISTOGRAM + BUCKETS <= WORDS
_HEAD = struct.Struct("QQQQQQ")
_USED, _EPOCH = 4, 5  # words of the header; changed under the lock
_TRIES = 100


@dataclass(frozen=True)
class Row:
    """What a worker said of itself, at one moment."""

    index: int
    pid: int
    ticks: int
    slot: int
    generation: int
    release: int
    group: int
    state: int
    connections: int
    settled: int
    websockets: int
    in_flight: int
    accepted: int
    status_other: int
    status_1xx: int
    status_2xx: int
    status_3xx: int
    status_4xx: int
    status_5xx: int
    broken: int
    cut_requests: int
    cut_connections: int
    threads: int
    started: float
    heartbeat: float
    progress: float
    load: float
    error_at: float
    error: str
    status: str
    histogram: tuple[int, ...]

    @property
    def requests(self) -> int:
        return self.status_1xx + self.status_2xx + self.status_3xx + self.status_4xx + self.status_5xx

    @property
    def alive(self) -> bool:
        return is_alive(self.pid, self.ticks)


class Scoreboard:
    """The mapped file. `with Scoreboard.open(path) as board`, or `close` it."""

    def __init__(self, memory: mmap.mmap, path: Path) -> None:
        self.path = path
        self._memory = memory
        self._view = memoryview(memory)
        self.words = self._view.cast("Q")
        self.reals = self._view.cast("d")

    @classmethod
    def create(cls, path: Path, *, uid: int = -1, gid: int = -1, mode: int = 0o600) -> None:
        """Make the file where it is missing or of another version.

        One of another version is replaced, never cut: workers of an older deployer still have it mapped, and would
        die of SIGBUS.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            fits = False
        else:
            fits = _fits(fd)
            os.close(fd)
        if not fits:
            _make(path, mode)
        if uid != -1 or gid != -1:
            os.chown(path, uid, gid)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Scoreboard:
        """OSError when there is none, ValueError when it is another version's."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not _fits(fd):
                raise ValueError(f"{os.fspath(path)} is not a scoreboard of version {VERSION}")
            return cls(mmap.mmap(fd, 0), Path(path))
        finally:
            os.close(fd)

    def close(self) -> None:
        for view in (self.words, self.reals, self._view):
            view.release()
        with contextlib.suppress(BufferError):  # a record of ours is still held: the mapping goes with it
            self._memory.close()

    def __enter__(self) -> Scoreboard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Writing

    def claim(self, *, slot: int, generation: int, release: int, group: int) -> Record:
        """A record for this process. Never one whose owner lives."""
        pid = os.getpid()
        with self.locked():
            index = self._free()
            record = Record(self, index)
            base = record.base
            self.words[base] = 0  # nobody's while it is half written
            self._memory[record.offset + 8 : record.offset + RECORD] = bytes(RECORD - 8)
            values = {"ticks": start_ticks(pid), "slot": slot, "generation": generation, "release": release}
            for name, value in {**values, "group": group, "state": STARTING}.items():
                record.set(name, value)
            now = time.monotonic()
            for name in ("started", "heartbeat", "progress"):
                record.set_real(name, now)
            record.set("pid", pid)
            self.words[_USED] = max(self.words[_USED], index + 1)
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _free(self) -> int:
        """One that was never used, or of a worker dead for a while; else of the one that is dead longest."""
        used, now = self.words[_USED], time.monotonic()
        dead = []
        for index in range(used):
            base = self.base(index)
            if not is_alive(self.words[base + FIELD["pid"]], self.words[base + FIELD["ticks"]]):
                beat = self.reals[base + FIELD["heartbeat"]]
                dead.append((beat if beat <= now else 0.0, index))  # later than now: before the machine started anew
        oldest = min(dead, default=None)
        if oldest is not None and (oldest[0] < now - KEEP_S or used >= RECORDS):
            return oldest[1]
        if used >= RECORDS:
            raise RuntimeError(f"{self.path}: all {RECORDS} records belong to running workers")
        return used

    # Reading

    def rows(self) -> list[Row]:
        """All workers that ever wrote, the dead ones too, in the order of their records."""
        found = (self.row(index) for index in range(self.words[_USED]))
        return [row for row in found if row is not None]

    def row(self, index: int) -> Row | None:
        """One worker; None for a record nobody owns."""
        base = self.base(index)
        for _ in range(_TRIES):
            guard, pid = self.words[base + _TEXTS], self.words[base]
            if not pid:
                return None
            integers = {name: self.words[base + FIELD[name]] for name in INTEGERS}
            reals = {name: self.reals[base + FIELD[name]] for name in REALS}
            texts = {name: self._text(index, name) for name in _TEXT_BYTES}
            counts = tuple(self.words[base + _HISTOGRAM : base + _HISTOGRAM + BUCKETS])
            if guard % 2 == 0 and guard == self.words[base + _TEXTS] and pid == self.words[base]:
                return Row(index=index, histogram=counts, **integers, **reals, **texts)  # type: ignore[arg-type]
        return None  # its writer died amid a text

    @property
    def used(self) -> int:
        """Records that were ever claimed; what comes after is empty."""
        return self.words[_USED]

    def base(self, index: int) -> int:
        """The first word of a record."""
        return (HEADER + index * RECORD) // 8

    @property
    def epoch(self) -> int:
        """Another number each time a worker begins or ends serving."""
        return self.words[_EPOCH]

    def competitors(self, group: int, own: int) -> list[int]:
        """First words of the records of other workers that accept on the same socket, or did until they were killed."""
        found = []
        for index in range(self.words[_USED]):
            base = self.base(index)
            of_group = self.words[base] and self.words[base + FIELD["group"]] == group
            if of_group and index != own and self.words[base + FIELD["state"]] == SERVING:
                found.append(base)
        return found

    def _text(self, index: int, name: str) -> str:
        start, size = _TEXT_BYTES[name]
        offset = HEADER + index * RECORD + start
        return bytes(self._memory[offset : offset + size]).split(b"\0", 1)[0].decode("utf-8", "replace")

    def write_text(self, index: int, name: str, text: str) -> None:
        """Only the owner of the record may."""
        start, size = _TEXT_BYTES[name]
        data = text.encode("utf-8", "replace").replace(b"\0", b" ")[: size - 1]
        guard, offset = self.base(index) + _TEXTS, HEADER + index * RECORD + start
        self.words[guard] += 1
        self._memory[offset : offset + size] = data.ljust(size, b"\0")
        self.words[guard] += 1


class Record:
    """The record of this process."""

    def __init__(self, board: Scoreboard, index: int) -> None:
        self.board, self.index = board, index
        self.base = board.base(index)
        self.offset = self.base * 8
        self.words, self.reals = board.words, board.reals
        first = self.base + FIELD["status_1xx"] - 1  # index 1 is 1xx
        self.statuses = self.words[first : first + STATUSES]
        self.histogram = self.words[self.base + _HISTOGRAM : self.base + _HISTOGRAM + BUCKETS]

    def get(self, name: str) -> int:
        return self.words[self.base + FIELD[name]]

    def set(self, name: str, value: int) -> None:
        self.words[self.base + FIELD[name]] = value

    def set_real(self, name: str, value: float) -> None:
        self.reals[self.base + FIELD[name]] = value

    def move(self, state: int) -> None:
        """Begin or end serving: the others look at it at their next visitor.

        Where the file is another user's by now (the next release runs as another one), or gone, it goes without the
        lock: an increment that is lost is no harm, a worker that dies of it while it drains is.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(self.board.locked())
            self.set("state", state)
            self.words[_EPOCH] += 1

    def set_text(self, name: str, text: str) -> None:
        self.board.write_text(self.index, name, text)


def _fits(fd: int) -> bool:
    head = os.pread(fd, _HEAD.size, 0)
    size = HEADER + RECORDS * RECORD
    return (
        len(head) == _HEAD.size
        and _HEAD.unpack(head)[:4] == (MAGIC, VERSION, RECORD, RECORDS)
        and os.fstat(fd).st_size == size
    )


def _make(path: Path, mode: int) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.ftruncate(fd, HEADER + RECORDS * RECORD)
        os.pwrite(fd, _HEAD.pack(MAGIC, VERSION, RECORD, RECORDS, 0, 0), 0)
    finally:
        os.close(fd)
    os.rename(beside, path)


def is_alive(pid: int, ticks: int) -> bool:
    """Does the very process run that started at `ticks`?"""
    return pid > 0 and ticks > 0 and start_ticks(pid) == ticks


def start_ticks(pid: int) -> int:
    """The start time of a process (proc(5), stat, field 22); 0 when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
