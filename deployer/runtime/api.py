"""What `deployer.runtime` offers applications, and the one object that connects it with the worker it runs in."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .channel import Channel
from .load import own_traceback
from .notify import notify
from .scoreboard import GONE, STATES, Record

DrainCallback = Callable[[], "Awaitable[object] | object"]
MessageCallback = Callable[[Any], "Awaitable[object] | object"]
ServeOn = Callable[[int, Sequence[socket.socket]], None]

DEV = 1 << 32
CALM_S = 0.3  # after READY=1: the checks of the manager are through, and what the first requests import is imported

log = logging.getLogger("deployer.runtime")


@dataclass(frozen=True)
class Peer:
    """Another worker of the application that runs now."""

    pid: int
    slot: int
    release: str
    state: str  # starting, serving or draining
    connections: int
    in_flight: int
    status: str  # its last `report`


class _Worker:
    """What this process has of the runtime; empty where deployer did not start it."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.channel: Channel | None = None
        self.callbacks: list[DrainCallback] = []
        self.message_callbacks: list[MessageCallback] = []
        self.when_calm: Callable[[], object] | None = None

    def listen(self, loop: asyncio.AbstractEventLoop, serve_on: ServeOn) -> None:
        """Hear the manager on the loop, once the worker is ready. That it is away for good is no reason to stop
        serving."""
        if self.channel is not None:
            loop.add_reader(self.channel.fileno(), self._hear, loop, serve_on)
        if self.when_calm is not None:
            loop.call_later(CALM_S, self.when_calm)

    def _hear(self, loop: asyncio.AbstractEventLoop, serve_on: ServeOn) -> None:
        assert self.channel is not None
        try:
            found = self.channel.receive()
        except EOFError:
            loop.remove_reader(self.channel.fileno())
            return
        if found is None:
            return
        message, fds = found
        if message["op"] == "serve":
            serve_on(message["slot"], [socket.socket(fileno=fd) for fd in fds])
        elif message["op"] == "message":
            for callback in list(self.message_callbacks):
                call(callback, (message["data"],), "on_message")


async def _finish(result: Awaitable[object], what: str, callback: object) -> None:
    try:
        await result
    except Exception as error:
        log.error("%s callback %r failed\n%s", what, callback, own_traceback(error))


_tasks: set[asyncio.Task[None]] = set()  # the loop holds tasks weakly


def call(callback: Callable[..., object], arguments: Iterable[Any], what: str) -> asyncio.Task[None] | None:
    """Call what the application gave us, on the loop; the task that awaits what it returned, if that can be awaited.
    An exception is logged as the application's own."""
    try:
        result = callback(*arguments)
    except Exception as error:
        log.error("%s callback %r failed\n%s", what, callback, own_traceback(error))
        return None
    if not inspect.isawaitable(result):
        return None
    task = asyncio.get_running_loop().create_task(_finish(result, what, callback))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


worker = _Worker()


def release() -> str | None:
    """The release that this worker runs, "v7"; None where deployer did not start this process."""
    return os.environ.get("DEPLOYER_RELEASE")


def number_of(release: str) -> int:
    """As the scoreboard has it: 7 of "v7"; that of a save, "dev-7", is beyond all of those. 0 for no release."""
    kind, number = (DEV, release.removeprefix("dev-")) if release.startswith("dev-") else (0, release.removeprefix("v"))
    return kind + int(number) if number.isdecimal() else 0


def name_of(number: int) -> str:
    return f"dev-{number - DEV}" if number > DEV else f"v{number}"


def slot() -> int | None:
    """The worker's slot, from 1; None where deployer did not start this process. Ask when you need it: while the module
    of a preloaded application is imported there is none yet."""
    text = os.environ.get("DEPLOYER_WORKER", "")
    return int(text) if text.isdecimal() else None


def peers() -> list[Peer]:
    """The other workers of the application that run now: of every slot, old releases and new."""
    record = worker.record
    if record is None:
        return []
    rows = (row for row in record.board.rows() if row.index != record.index and row.state != GONE)
    return [
        Peer(
            pid=row.pid,
            slot=row.slot,
            release=name_of(row.release),
            state=STATES.get(row.state, "starting"),
            connections=row.connections,
            in_flight=row.in_flight,
            status=row.status,
        )
        for row in rows
        if row.alive
    ]


def on_drain(callback: DrainCallback) -> DrainCallback:
    """Call `callback()` on the event loop when this worker is told to stop; what it returns is awaited, if it can be.

    The worker takes no new visitors by then, and waits for what is open. Good for ending endless streams and for
    giving work back to a queue. Also a decorator.
    """
    worker.callbacks.append(callback)
    return callback


def broadcast(message: Any) -> bool:
    """Send `message`, anything that JSON can hold (64 KiB), to every worker of the application, this one too: of every
    slot, old releases and new. From any thread. Those that have registered with `on_message` by then hear it, at most
    once; what must not be lost belongs into a store. False where there is no manager to pass it on, or it is too busy
    to take more."""
    return worker.channel is not None and worker.channel.send({"op": "broadcast", "data": message})


def on_message(callback: MessageCallback) -> MessageCallback:
    """Call `callback(message)` on the event loop for each broadcast; what it returns is awaited, if it can be. Also a
    decorator."""
    worker.message_callbacks.append(callback)
    return callback


def report(status: str) -> None:
    """One line on what this worker does, shown by `deployer status`."""
    line = " ".join(status.split())
    if worker.record is not None:
        worker.record.set_text("status", line)
    notify(f"STATUS={line}")
