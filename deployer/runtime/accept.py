"""Taking visitors from the listening sockets that all workers share: one at a time, and in turn with the others.

asyncio's own server calls listen() again on a socket that is not its own, so that one worker could shrink everyone's
queue, and accepts up to its whole backlog at a wake-up, so that one worker takes nearly all. Here a wake-up takes one.

EPOLLEXCLUSIVE was tried and left: the flag cannot be given through add_reader of asyncio or uvloop, the kernel's
choice with it is the opposite of fair (one of four workers took 997 of 1,000), and what it saves, wake-ups for
nothing, were 0.3 a connection on two cores.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence

from .fairness import AWAKE_S, delay, first_load, lately, load_after
from .scoreboard import FIELD, Record

NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NO_ROOM_PAUSE_S = 0.5
_CONNECTIONS, _LOAD, _ACCEPTED = FIELD["connections"], FIELD["load"], FIELD["accepted"]
_HEARTBEAT, _SETTLED = FIELD["heartbeat"], FIELD["settled"]

log = logging.getLogger("uvicorn.error")


class Acceptor:
    """Hands accepted connections to new protocols, until `stop`."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        protocol: Callable[[socket.socket], asyncio.Protocol],
        record: Record | None,
        *,
        greedy: bool = False,
    ) -> None:
        self._greedy = greedy
        self._loop = asyncio.get_running_loop()
        self._listeners, self._protocol, self._record = list(listeners), protocol, record
        self._competitors: list[int] = []
        self._waiting: dict[int, asyncio.TimerHandle] = {}  # descriptors let alone for a moment
        self._epoch = -1
        self._running = False
        self._opening: dict[socket.socket, asyncio.Task[None]] = {}
        self.connections = 0
        self.load = 0.0

    def start(self) -> None:
        self.look_around()
        if self._record is not None:
            reals = self._record.reals
            self.load = first_load(reals[base + _LOAD] for base in self._competitors)
            reals[self._record.base + _LOAD] = self.load
        self._running = True
        for listener in self._listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener.fileno(), self._ready, listener)

    def stop(self) -> None:
        """Accept no more. The sockets stay open: the other workers' and the supervisor's are the same ones."""
        self._running = False
        for listener in self._listeners:
            handle = self._waiting.pop(listener.fileno(), None)
            if handle is not None:
                handle.cancel()
            self._loop.remove_reader(listener.fileno())

    def move(self, listeners: Sequence[socket.socket]) -> None:
        """Accept on these sockets instead; the old ones are closed."""
        self.stop()
        for listener in self._listeners:
            listener.close()
        self._listeners = list(listeners)
        self.start()

    async def settled(self) -> None:
        """Every accepted connection has its protocol."""
        if self._opening:
            await asyncio.wait(list(self._opening.values()))

    def look_around(self) -> None:
        """Who competes for the same visitors; called at every heartbeat, and when somebody came or left."""
        record = self._record
        if record is not None:
            self._epoch = record.board.epoch
            self._competitors = record.board.competitors(record.get("group"), record.index)

    def closed(self) -> None:
        """A connection of ours is gone."""
        self.connections -= 1
        if self._record is not None:
            self._record.words[self._record.base + _CONNECTIONS] = self.connections

    def _ready(self, listener: socket.socket) -> None:
        seconds = self._delay()
        if seconds:
            self._pause(listener, seconds)
        else:
            self._accept(listener)

    def _delay(self) -> float:
        record = self._record
        if record is None or self._greedy:
            return 0.0
        if record.board.epoch != self._epoch:
            self.look_around()
        words, reals, now = record.words, record.reals, time.monotonic()
        others = [
            (words[base + _SETTLED], lately(reals[base + _LOAD], now))
            for base in self._competitors
            if reals[base + _HEARTBEAT] > now - AWAKE_S
        ]
        return delay((words[record.base + _SETTLED], lately(self.load, now)), others)

    def _pause(self, listener: socket.socket, seconds: float) -> None:
        fd = listener.fileno()
        self._loop.remove_reader(fd)
        self._waiting[fd] = self._loop.call_later(seconds, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        """After letting the others go first: take what they left."""
        fd = listener.fileno()
        del self._waiting[fd]
        if self._running:
            self._loop.add_reader(fd, self._ready, listener)
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("cannot accept a connection: %s", error.strerror)
            if error.errno in NO_ROOM and listener.fileno() not in self._waiting:
                self._loop.remove_reader(listener.fileno())
                self._pause(listener, NO_ROOM_PAUSE_S)
            return
        self._count()
        self._opening[sock] = self._loop.create_task(self._hand_over(sock))

    def _count(self) -> None:
        self.connections += 1
        if self._record is not None:
            base, words = self._record.base, self._record.words
            words[base + _CONNECTIONS] = self.connections
            words[base + _ACCEPTED] += 1
            self.load = load_after(self.load, time.monotonic())
            self._record.reals[base + _LOAD] = self.load

    async def _hand_over(self, sock: socket.socket) -> None:
        """The loop makes the socket non-blocking, and without Nagle's delay."""
        try:
            await self._loop.connect_accepted_socket(lambda: self._protocol(sock), sock)
        except OSError:
            sock.close()  # it was gone before it began
            self.closed()
        finally:
            del self._opening[sock]
