"""What workers of an `app`, and those that fork them, say over their channels: heard, and passed on to who decides."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from deployer.wire.schema import WARM_SLOT
from deployer.workers.worker import Worker

AT_ONCE = 64  # of one worker: who broadcasts without end must not keep us from all else

log = structlog.get_logger()


class Messages:
    """`hear` reads a worker's channel. The callbacks are those of `[worker] preload` and of warm templates."""

    def __init__(self, workers: Mapping[int, Worker]) -> None:
        self._workers = workers
        self.on_unsafe: Callable[[Worker, str], None] = lambda worker, what: None
        self.on_unsafe_warm: Callable[[Worker, str], None] = lambda worker, what: None
        self.on_refused: Callable[[Worker, list[str]], None] = lambda worker, names: None
        self.on_imported: Callable[[Worker, list[str]], None] = lambda worker, names: None

    def hear(self, worker: Worker) -> None:
        """All it has said until now, within bounds: the rest is read in the loop's next turn."""
        try:
            for _ in range(AT_ONCE):
                found = None if worker.channel is None else worker.channel.receive()
                if found is None:
                    return
                message, fds = found
                for fd in fds:
                    os.close(fd)
                self._take(worker, message)
        except EOFError:
            if worker.channel is not None:
                asyncio.get_running_loop().remove_reader(worker.channel.fileno())

    def _take(self, worker: Worker, message: dict[str, Any]) -> None:
        match message["op"]:
            case "broadcast":
                self._broadcast(message["data"])
            case "unsafe":
                (self.on_unsafe_warm if worker.slot == WARM_SLOT else self.on_unsafe)(worker, message["what"])
            case "refused":
                self.on_refused(worker, message["names"])
            case "imported":
                self.on_imported(worker, message["names"])

    def _broadcast(self, data: Any) -> None:
        for other in self._workers.values():
            if other.channel is None or other.forks or other.exit is not None:
                continue
            heard = other.channel.send({"op": "message", "data": data})
            if not heard and not other.deaf:  # said once: there may be thousands a second
                log.warning("worker.message_lost", slot=other.slot, pid=other.pid)
            other.deaf = not heard
