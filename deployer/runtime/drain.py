"""The end of a worker that was told to stop, without a visitor noticing.

at once          accept no more; every answer from now on says `Connection: close`
after LINGER_S   connections on which no request came are closed, one after another: a client that was about
                 to send has done so by then, and was answered. Where an answer that promised more was still under
                 way, the time begins when the client has it, or takes no more of it
meanwhile        websockets are closed with 1012 and event streams ended, spread out, so that not all come at once;
                 who does not read that is given up
in the end       what is still under way when the time is over is cut, counted and reported
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .api import call
from .connections import (
    be_gentle,
    has_begun,
    is_busy,
    is_flushed,
    is_idle,
    is_last_answer,
    is_websocket,
    shakes_hands,
    untaken,
)
from .counting import Counting

LOOK_S = 0.05
LINGER_S = 5.0
LINGER_SHARE = 0.3  # of the drain's time, where that is short
SPREAD_SHARE = 0.5  # of the drain's time: all goodbyes are said by then
EACH_S = 0.05  # between two goodbyes, where there is time for that
MARGIN_S = 0.25  # and a tenth of the time, kept free at its end for the application's own shutdown
MARGIN_SHARE = 0.1
MARGIN_MAX_S = 2.0
MID_EVENT_S = 1.0  # how long a stream may take to finish the event it is at, and then to notice that it was ended
UNREAD_S = 2.0  # how long a client may take nothing of what comes before its goodbye

log = logging.getLogger("deployer.runtime")


@dataclass(frozen=True)
class Times:
    """When a drain does what, in seconds from its start (pure)."""

    linger: float
    spread: float
    end: float

    @classmethod
    def of(cls, timeout: float) -> Times:
        end = max(0.0, timeout - min(MARGIN_MAX_S, MARGIN_S + timeout * MARGIN_SHARE))
        return cls(min(LINGER_S, timeout * LINGER_SHARE), timeout * SPREAD_SHARE, end)

    def goodbyes(self, count: int, first: float) -> list[float]:
        """When each of `count` is told, none before `first`: EACH_S apart, closer where time is short."""
        step = min(EACH_S, max(0.0, self.spread - first) / max(count, 1))
        return [first + number * step for number in range(count)]


@dataclass(frozen=True)
class Cut:
    """What the end of the time took away."""

    requests: int = 0
    connections: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests or self.connections)


class Drain:
    """One drain. `run` returns when nothing is left, or its time is over."""

    def __init__(self, state: Any, counting: Counting, timeout: float) -> None:
        self._state, self._counting = state, counting
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self.times = Times.of(timeout)
        self._told: dict[Any, float] = {}
        self._announced: set[Any] = set()
        self._late: dict[Any, float] = {}  # event streams amid an event
        self._waiting: dict[Any, tuple[int, float]] = {}  # bytes that wait for a client, and since when it is so many
        self._given_up = 0
        self._callbacks: list[asyncio.Task[None]] = []
        counting.is_last = is_last_answer

    def call(self, callbacks: Iterable[Any]) -> None:
        """Run the application's own `on_drain`s beside the drain."""
        tasks = [call(callback, (), "on_drain") for callback in callbacks]
        self._callbacks = [task for task in tasks if task is not None]

    async def run(self) -> Cut:
        while not self._is_over():
            self._announce()
            self._say_goodbyes()
            self._give_up()
            if self.elapsed >= self.times.end:
                return self._cut()
            await asyncio.sleep(LOOK_S)
        return Cut(connections=self._given_up)

    @property
    def elapsed(self) -> float:
        return self._loop.time() - self._began

    def _is_over(self) -> bool:
        ended = {stream.task for stream in self._counting.streams if self._has_heard(stream)}
        working = [task for task in self._state.tasks if task not in ended]
        return not self._state.connections and not working and all(task.done() for task in self._callbacks)

    def _has_heard(self, stream: Any) -> bool:
        """Its application had the time to notice that it ended, and to clean up; if it still works nobody waits."""
        return stream.ended_at is not None and self._loop.time() > stream.ended_at + MID_EVENT_S

    def _announce(self) -> None:
        for connection in list(self._state.connections):
            if connection not in self._announced:
                self._announced.add(connection)
                be_gentle(connection)

    def _say_goodbyes(self) -> None:
        """Plan one for each that has none yet, and say those that are due."""
        connections, streams = list(self._state.connections), list(self._counting.streams)
        self._plan([c for c in connections if is_websocket(c)] + streams, 0.0)
        self._plan([c for c in connections if not is_websocket(c)], self.times.linger)
        now = self.elapsed
        for connection in connections:
            if is_websocket(connection):
                if now >= self._told[connection] and not shakes_hands(connection):
                    self._told[connection] = float("inf")
                    connection.shutdown()  # 1012, and the client's own goodbye is waited for
            elif not is_idle(connection) or not self._still(connection, untaken(connection)):
                self._told[connection] = max(self._told[connection], now + self.times.linger)
            elif now >= self._told[connection]:
                connection.transport.close()
        for stream in streams:
            if now >= self._told[stream] and not stream.ended and self._may_end(stream):
                stream.end()

    def _give_up(self) -> None:
        """Who reads nothing more has gone, or sleeps: an endless answer need not wait for its end."""
        told = [c.transport for c in self._state.connections if self._told.get(c) == float("inf")]
        told += [stream.transport for stream in self._counting.streams if stream.ended]
        for transport in told:
            size = transport.get_write_buffer_size()
            if self._still(transport, size) > UNREAD_S and size:
                transport.abort()
                self._given_up += 1

    def _still(self, one: Any, size: int) -> float:
        """For how many seconds so many bytes have waited; 0 when it was another number at the last look."""
        before, since = self._waiting.get(one, (-1, 0.0))
        if size != before:
            self._waiting[one] = (size, self.elapsed)
            return 0.0
        return self.elapsed - since

    def _plan(self, those: list[Any], first: float) -> None:
        new = [one for one in those if one not in self._told]
        self._told.update(zip(new, self.times.goodbyes(len(new), max(first, self.elapsed)), strict=True))

    def _may_end(self, stream: Any) -> bool:
        """Between two events; or when the application leaves one half sent for too long."""
        waited = self.elapsed - self._late.setdefault(stream, self.elapsed)
        return bool(stream.between_events) or waited > MID_EVENT_S

    def _cut(self) -> Cut:
        requests, connections = 0, self._given_up
        for connection in list(self._state.connections):
            if is_websocket(connection):
                connections += 1
            elif is_busy(connection) or has_begun(connection):
                requests += 1
            elif not is_flushed(connection):
                connections += 1
            connection.transport.abort()
        for task in list(self._state.tasks):
            task.cancel()
        cut = Cut(requests, connections)
        if cut:
            log.warning("drain: time is over: cut %d requests and %d other connections", requests, connections)
        return cut
