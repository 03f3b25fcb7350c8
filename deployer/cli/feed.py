"""Events, what the workers print and what is typed, brought into one order for the thread that shows them.

Three threads read, each from something that blocks; whoever iterates acts. They are daemons: a read that nothing
comes to is no reason to stay.
"""

from __future__ import annotations

import os
import queue
import signal
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import sleep

import msgspec

from deployer.client.follow import RETRY_PAUSE_S
from deployer.errors import UnavailableError
from deployer.wire.schema import Event, LogLine

WAITING_ITEMS = 10_000
"""A flood of log lines waits in the socket, and then the manager drops some."""
READ_BYTES = 4096


@dataclass(frozen=True)
class Typed:
    """A line of stdin."""

    text: str


@dataclass(frozen=True)
class Connection:
    """That to the manager is lost, or back."""

    lost: bool


Item = Event | LogLine | Typed | Connection


class Feed:
    """Iterate over it; what ends a reader of events (the manager is gone for good) is raised there."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Item | BaseException] = queue.Queue(WAITING_ITEMS)

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def connection(self, lost: bool) -> None:
        self._queue.put(Connection(lost))

    def events(self, events: Iterable[Event]) -> None:
        self._start("events", lambda: self._pass_on(events))

    def logs(self, lines: Callable[[float], Iterable[bytes]], since: float) -> None:
        """`lines(since)`: what is written after that point of time."""
        self._start("logs", lambda: self._read_logs(lines, since))

    def keys(self, fd: int) -> bool:
        """What is typed on a terminal or comes through a pipe; False where stdin is neither."""
        has_keys = _has_keys(fd)
        if has_keys:
            self._start("keys", lambda: self._read_keys(fd))
        return has_keys

    # Private.

    def _start(self, name: str, read: Callable[[], None]) -> None:
        def run() -> None:
            try:
                read()
            except Exception as error:
                self._queue.put(error)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _pass_on(self, events: Iterable[Event]) -> None:
        for event in events:
            self._queue.put(event)

    def _read_logs(self, lines: Callable[[float], Iterable[bytes]], since: float) -> None:
        decoder = msgspec.json.Decoder(LogLine)
        while True:
            try:
                for raw in lines(since):
                    line = decoder.decode(raw)
                    since = line.ts
                    self._queue.put(line)
            except UnavailableError:
                pass  # whether the manager is gone for good is for the reader of events to say
            sleep(RETRY_PAUSE_S)

    def _read_keys(self, fd: int) -> None:
        """By read(2): a thread in the buffer of sys.stdin would keep the interpreter from ending."""
        rest = b""
        while True:
            try:
                data = os.read(fd, READ_BYTES)
            except OSError:
                return  # the terminal is gone, or another job's
            if not data:
                return  # the end of a pipe means that nobody types, not that it is to end
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._queue.put(Typed(line.decode(errors="replace").strip()))


def _has_keys(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False  # closed
    if os.isatty(fd):
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background it goes on without keys, and is not stopped
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
