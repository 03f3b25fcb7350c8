"""What `deployer.runtime` offers applications, and the one object that connects it with the worker it runs in."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .notify import notify
from .scoreboard import GONE, STATES, Record

DrainCallback = Callable[[], "Awaitable[object] | object"]


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
        self.callbacks: list[DrainCallback] = []


worker = _Worker()


def release() -> str | None:
    """The release that this worker runs, "v7"; None where deployer did not start this process."""
    return os.environ.get("DEPLOYER_RELEASE")


def slot() -> int | None:
    """The worker's slot, from 1; 0 in the preflight worker; None where deployer did not start this process."""
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
            release=f"v{row.release}",
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


def report(status: str) -> None:
    """One line on what this worker does, shown by `deployer status`."""
    line = " ".join(status.split())
    if worker.record is not None:
        worker.record.set_text("status", line)
    notify(f"STATUS={line}")
