"""Asks ready workers how they are, as long as they live, and names the one that is not well.

Probes go to the shared socket, as visitors do; the kernel tells which worker answered. A worker that no probe met in
a round is judged in a later one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from deployer.config.model import Health
from deployer.health.probe import Answer, get
from deployer.osutil.process import descendants
from deployer.osutil.tasks import watched
from deployer.units import parse_duration
from deployer.workers.listening import holder_of
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener, State, Worker

PROBES_PER_WORKER = 4  # tries in a round for each worker that was not met yet


class Monitor:
    """`condemn` hears of a worker that failed `unhealthy_after` checks in a row."""

    def __init__(self, pool: Pool, listeners: Sequence[Listener], condemn: Callable[[Worker, Answer], None]) -> None:
        self._pool, self._listeners, self._condemn = pool, listeners, condemn
        self._failures: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, health: Callable[[], Health | None]) -> None:
        """`health`: the check of the live release, or None when there is none to make."""
        self._task = watched(self._run(health))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, health: Callable[[], Health | None]) -> None:
        while True:
            check = health()
            await asyncio.sleep(parse_duration(check.interval) if check else 5.0)
            if check is not None and check.http is not None and self._listeners:
                await self._round(check, check.http)

    async def _round(self, check: Health, path: str) -> None:
        ready = {w.id: w for w in self._pool.workers.values() if w.in_slot and w.state is State.READY}
        self._failures = {number: count for number, count in self._failures.items() if number in ready}
        unmet = dict(ready)
        for _ in range(PROBES_PER_WORKER * len(ready)):
            if not unmet:
                return
            timeout = parse_duration(check.timeout)
            answer = await get(self._listeners[0].address, path, timeout, lambda inode: _who(inode, unmet))
            if answer.holder is not None:
                worker = unmet.pop(answer.holder)
                self._judge(worker, answer, worker.release.config.health)

    def _judge(self, worker: Worker, answer: Answer, check: Health) -> None:
        if check.http is None or answer.status == check.expect:
            self._failures.pop(worker.id, None)
            return
        failures = self._failures[worker.id] = self._failures.get(worker.id, 0) + 1
        if failures >= check.unhealthy_after:
            self._condemn(worker, answer)


def _who(inode: int, workers: dict[int, Worker]) -> int | None:
    """The id of the worker among `workers` that holds the socket."""
    found = (number for number, worker in workers.items() if holder_of(inode, descendants(worker.pid)) is not None)
    return next(found, None)
