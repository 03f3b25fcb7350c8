"""Tells how far draining workers are, once a second at most and only while there are any."""

from __future__ import annotations

import asyncio

from deployer.osutil.tasks import watched
from deployer.state.store import Store
from deployer.workers.pool import Pool
from deployer.workers.worker import State, Worker

EACH_S = 1.0


class Drains:
    """Wakes up when a worker is told to go, and rests when the last one has gone."""

    def __init__(self, store: Store, pool: Pool) -> None:
        self._store, self._pool = store, pool
        self._task: asyncio.Task[None] | None = None
        pool.on_draining = self._begin

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = watched(self._run())

    async def _run(self) -> None:
        told: dict[int, tuple[int, int]] = {}
        while self._draining():  # looked at first: a drain that takes less than a second has nothing to tell
            await asyncio.sleep(EACH_S)
            self._tell(told)

    def _draining(self) -> list[Worker]:
        return [w for w in self._pool.workers.values() if w.in_slot and w.state is State.DRAINING and w.exit is None]

    def _tell(self, told: dict[int, tuple[int, int]]) -> None:
        """What has changed, in one commit."""
        rows = self._pool.board.rows()
        with self._store.transaction():
            for worker in self._draining():
                row = rows.get((worker.pid, worker.ticks))
                left = None if row is None else (row.in_flight, row.connections)
                if left is None or left == told.get(worker.id):
                    continue
                told[worker.id] = left
                self._store.emit(
                    "worker.drain",
                    slot=worker.slot,
                    pid=worker.pid,
                    release=worker.release.name,
                    requests=left[0],
                    connections=left[1],
                )
