"""The worker's life: start the application, accept, beat, drain, leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

from . import api
from .accept import Acceptor
from .connections import http_class, is_websocket, websocket_class
from .counting import Counting
from .drain import Drain
from .notify import notify
from .scoreboard import DRAINING, GONE, SERVING, Record

BEAT_S = 0.2
FIRST_FD = 3  # SD_LISTEN_FDS_START
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
GOODBYE_S = 0.1  # before SIGKILL, to leave in order; and the least that the application's own shutdown gets

log = logging.getLogger("deployer.runtime")


class StartupFailedError(Exception):
    """The application's own startup (lifespan) failed; it has logged why."""


class Worker:
    """One worker process on its event loop."""

    def __init__(
        self, config: Any, counting: Counting, record: Record | None, drain_timeout: float, *, greedy: bool = False
    ) -> None:
        self._greedy = greedy
        self._config, self._counting, self._record = config, counting, record
        self._drain_timeout = drain_timeout
        self._stop = asyncio.Event()
        self._finished = 0
        self._before: set[Any] = set()  # connections at the last heartbeat
        self.is_stuck = False  # threads of the application that will not end are left behind

    async def run(self, listeners: Sequence[socket.socket]) -> None:
        """Until it was told to stop and has drained."""
        from uvicorn.server import ServerState

        self._listeners = list(listeners)

        config = self._config
        if not config.loaded:
            config.load()
        self._state = ServerState()
        lifespan = config.lifespan_class(config)
        await lifespan.startup()
        if lifespan.should_exit:
            raise StartupFailedError
        self._acceptor = Acceptor(
            self._listeners, self._protocol_factory(lifespan.state), self._record, greedy=self._greedy
        )
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        self._beat()
        self._acceptor.start()
        if self._record is not None:
            self._record.move(SERVING)
        notify("READY=1")
        api.worker.listen(loop, self._serve_on)
        heart = loop.create_task(self._heart())
        await self._stop.wait()
        kill_at = loop.time() + self._drain_timeout
        await self._drain()
        await self._shut_down(lifespan, max(GOODBYE_S, kill_at - GOODBYE_S - loop.time()))
        heart.cancel()
        self._leave()

    def _serve_on(self, slot: int, sockets: Sequence[socket.socket]) -> None:
        """The preflight is over: these are the sockets that visitors come to. Being told twice is no harm."""
        if self._stop.is_set():
            close_all(sockets)
            return
        if inodes(sockets) == inodes(self._listeners):
            close_all(sockets)
        else:
            os.environ["DEPLOYER_WORKER"] = str(slot)
            self._listeners = list(sockets)
            if self._record is not None:
                self._record.set("slot", slot)
                self._record.set("group", group_of(sockets))
            self._acceptor.move(sockets)
            if self._record is not None:
                self._record.move(SERVING)
        notify("READY=1")

    def _protocol_factory(self, app_state: dict[str, Any]) -> Any:
        config, closed = self._config, self._acceptor_closed
        if config.ws_protocol_class is not None:
            config.ws_protocol_class = websocket_class(config.ws_protocol_class, closed)
        http = http_class(config.http_protocol_class, closed)

        def protocol(accepted: socket.socket) -> Any:
            connection = http(config=config, server_state=self._state, app_state=app_state)
            connection.accepted = accepted
            return connection

        return protocol

    def _acceptor_closed(self) -> None:
        self._acceptor.closed()

    async def _drain(self) -> None:
        notify("STOPPING=1")
        if self._record is not None:
            self._record.move(DRAINING)
        self._acceptor.stop()
        await self._acceptor.settled()
        drain = Drain(self._state, self._counting, self._drain_timeout)
        drain.call(api.worker.callbacks)
        cut = await drain.run()
        if self._record is not None:
            self._record.set("cut_requests", cut.requests)
            self._record.set("cut_connections", cut.connections)
        self.is_stuck = bool(cut) or self._under_way() > 0

    async def _shut_down(self, lifespan: Any, limit_s: float) -> None:
        """What is left of the drain's time is the application's."""
        try:
            await asyncio.wait_for(lifespan.shutdown(), limit_s)
        except asyncio.TimeoutError:  # noqa: UP041  # another class before Python 3.11
            log.warning("the application's shutdown did not end in time")

    def _leave(self) -> None:
        if self._record is not None:
            self._beat()
            self._record.move(GONE)

    # Every BEAT_S

    async def _heart(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._beat()
            self._acceptor.look_around()

    def _beat(self) -> None:
        self._refresh_headers()
        if self._record is None:
            return
        now = time.monotonic()
        record = self._record
        record.set_real("heartbeat", now)
        under_way = self._under_way()
        record.set("in_flight", under_way)
        open_now = set(self._state.connections)
        record.set("settled", len(open_now & self._before))
        self._before = open_now
        record.set("websockets", sum(map(is_websocket, self._state.connections)))
        threads = record.get("threads")
        # With every thread taken and none that finished or moved anything, all is stuck although the loop turns.
        finished = self._state.total_requests + self._counting.moved
        if not threads or under_way < threads or finished != self._finished:
            self._finished = finished
            record.set_real("progress", now)

    def _under_way(self) -> int:
        """Requests that the application works on; a websocket is none."""
        return max(0, len(self._state.tasks) - sum(map(is_websocket, self._state.connections)))

    def _refresh_headers(self) -> None:
        """Those that every answer carries."""
        date = (b"date", formatdate(time.time(), usegmt=True).encode())
        self._state.default_headers = [date, *self._config.encoded_headers]


def group_of(listeners: Sequence[socket.socket]) -> int:
    """What workers that compete for the same visitors have in common."""
    return os.fstat(listeners[0].fileno()).st_ino if listeners else 0


def inodes(sockets: Sequence[socket.socket]) -> list[int]:
    return [os.fstat(sock.fileno()).st_ino for sock in sockets]


def close_all(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def inherited() -> list[socket.socket]:
    """The listening sockets of LISTEN_FDS (sd_listen_fds(3)); children of the application do not get them."""
    if os.environ.get("LISTEN_PID", str(os.getpid())) != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0") or "0")
    for fd in range(FIRST_FD, FIRST_FD + count):
        os.set_inheritable(fd, False)
    return [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + count)]


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def has_living_threads() -> bool:
    """Threads that would keep the interpreter from ending."""
    main = threading.main_thread()
    return any(thread is not main and not thread.daemon for thread in threading.enumerate())
