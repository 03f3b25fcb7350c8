"""Streams of JSON lines: events, which a client can take up again where it lost them, and log lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from deployer.logs.applog import AppLog
from deployer.state.store import Store
from deployer.wire.schema import Event, LogLine

KEEPALIVE_S = 10.0
BATCH = 500
LOG_QUEUE = 10_000  # lines a slow follower may lag behind before it misses some


class Bell:
    """Wakes everyone who waits for the next event."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self, _: Event | None = None) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            self._waiting.discard(future)


async def events(
    store: Store, bell: Bell, *, after: int, rollout: int | None, follow: bool, stopped: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Events as flat objects. They are read from state.db, so nothing is missed however slow the reader is."""
    seq, said = after, time.monotonic()
    while True:
        batch = store.events(after=seq, rollout=rollout, limit=BATCH)
        for event in batch:
            seq, said = event.seq, time.monotonic()
            yield flat(event)
        if rollout is not None and (_ends(batch) or (not batch and _is_over(store, rollout))):
            return
        if batch:
            continue  # while the reader took it, more may have come, and nobody heard the bell
        if not follow or stopped():
            return
        if time.monotonic() - said < KEEPALIVE_S:
            await bell.wait(KEEPALIVE_S)
        else:
            said = time.monotonic()
            yield b"\n"


def _ends(batch: list[Event]) -> bool:
    return any(event.event == "rollout.finished" for event in batch)


def _is_over(store: Store, rollout: int) -> bool:
    row = store.row("SELECT finished_at FROM rollouts WHERE id = ?", rollout)
    return row is not None and row["finished_at"] is not None


async def log_lines(
    log: AppLog, *, lines: int, follow: bool, slot: int | None, release: str | None
) -> AsyncIterator[bytes]:
    queue: asyncio.Queue[LogLine] = asyncio.Queue(LOG_QUEUE)

    def take(line: LogLine) -> None:
        if (slot is None or line.slot == slot) and (release is None or line.release == release) and not queue.full():
            queue.put_nowait(line)

    if follow:
        log.followers.add(take)
    try:
        for line in log.last(lines, slot=slot, release=release):
            yield msgspec.json.encode(line) + b"\n"
        while follow:
            try:
                line = await asyncio.wait_for(queue.get(), KEEPALIVE_S)
            except TimeoutError:
                yield b"\n"
            else:
                yield msgspec.json.encode(line) + b"\n"
    finally:
        log.followers.discard(take)


def flat(event: Event) -> bytes:
    head = {"seq": event.seq, "ts": round(event.ts, 3), "event": event.event, "rollout": event.rollout}
    return msgspec.json.encode(head | event.data) + b"\n"
