"""Looks after workers that serve: one that is too large, too old or stuck is replaced, as `limits` decides.

It looks as seldom as the limits allow, and at nothing that has none. What a replacement was for is in state.db before
it begins; a manager that is killed amid one is followed by another that finds the same.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterable
from typing import Any

import msgspec
import structlog

from deployer.clock import uptime
from deployer.config.model import Worker as WorkerConfig
from deployer.manager import limits, verdict
from deployer.manager.limits import End, Limits, Pulses, Reason, Vitals
from deployer.manager.supervisor import STRAY, Supervisor
from deployer.osutil.process import memory
from deployer.osutil.tasks import watched
from deployer.rollout.machine import Phase
from deployer.state.store import Store
from deployer.units import parse_duration, parse_size
from deployer.wire.schema import Recycled
from deployer.workers.pool import Pool
from deployer.workers.worker import State, Worker

LOOK_MIN_S, LOOK_MAX_S = 1.0, 5.0
MEMORY_EVERY_S = 5.0
RECORD = "recycled"  # in `meta`: slot -> the last recycling there

log = structlog.get_logger()


class Note(Recycled, frozen=True, kw_only=True):
    """What state.db keeps of the last recycling in a slot."""

    worker: int  # its row: the same is noted once, however many managers find it
    quick: int = 0


def notes(store: Store) -> dict[int, Note]:
    return msgspec.convert(store.get(RECORD, {}), dict[int, Note], strict=False)


class Hygiene:
    """A look now and then, for as long as the manager lives."""

    def __init__(self, *, store: Store, pool: Pool, supervisor: Supervisor) -> None:
        self._store, self._pool, self._supervisor = store, pool, supervisor
        self._pulses = Pulses()
        self._measured_at = -MEMORY_EVERY_S
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = watched(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        pause = LOOK_MIN_S
        while True:
            await asyncio.sleep(pause)
            workers = [worker for worker in self._pool.workers.values() if _is_watched(worker)]
            if workers:
                self._look(workers, pause)
            pause = _pause(workers)

    def _look(self, workers: list[Worker], planned_s: float) -> None:
        found = self._vitals(workers, planned_s)
        rollout = self._supervisor.rollout
        under_way = rollout is not None and rollout.phase is not Phase.HELD
        ends = limits.hung(found, rollout=under_way)
        worn = None if ends or under_way else limits.worn(found)
        if worn is not None and self._is_settled():
            ends.append(worn)
        by_id = {worker.id: worker for worker in workers}
        for end in ends:
            self._end(by_id[end.id], end)
        for each in found:
            self._warn(by_id[each.id], each)

    # Looking

    def _vitals(self, workers: list[Worker], planned_s: float) -> list[Vitals]:
        now = time.monotonic()
        beats = {} if all(of(worker).watchdog_s is None for worker in workers) else self._beats(workers)
        stills = self._pulses.look(now, planned_s, beats)
        measure = now - self._measured_at >= MEMORY_EVERY_S - limits.LATE_S
        limited = [worker for worker in workers if measure and of(worker).memory is not None]
        self._measured_at = now if limited else self._measured_at
        last = notes(self._store) if limited else {}
        found = []
        for worker in workers:
            bounds, note = of(worker), last.get(worker.slot)
            still = limits.stuck(stills.get(worker.id, ()), bounds)
            worker.hung = None if still is None else (still.field, still.at)
            found.append(
                Vitals(
                    worker.id,
                    worker.slot,
                    bounds,
                    age_s=uptime() - (worker.ready_at or worker.spawned_at),
                    memory=memory(worker.pid, bounds.memory) if worker in limited and bounds.memory else 0,
                    quick=note.quick if note and note.release == worker.release.name else 0,
                    still=still,
                    candidate=self._supervisor.is_candidate(worker),
                    condemned=worker.condemned is not None,
                )
            )
        return found

    def _beats(self, workers: Iterable[Worker]) -> dict[int, dict[str, float]]:
        pulses = self._pool.board.pulses()
        return {
            worker.id: pulse._asdict()
            for worker in workers
            if (pulse := pulses.get((worker.pid, worker.ticks))) is not None
        }

    def _is_settled(self) -> bool:
        """Every slot has its worker: nothing else is being replaced, or is missing."""
        ready = {w.slot for w in self._pool.workers.values() if w.state is State.READY and w.condemned is None}
        booting = any(w.in_slot and w.state is State.STARTING for w in self._pool.workers.values())
        return not booting and set(self._supervisor.wants()) <= ready

    # Acting

    def _end(self, worker: Worker, end: End) -> None:
        log.warning("worker.recycled", slot=worker.slot, pid=worker.pid, reason=end.reason, text=end.text)
        if not self._supervisor.is_candidate(worker):
            self._note(worker, end)
        ailment = "hung" if end.reason is Reason.HUNG else "recycling"
        self._supervisor.replace(worker, ailment, verdict.failure_of_end(worker, end.reason, end.text))

    def _note(self, worker: Worker, end: End) -> None:
        """Once for each worker: the event, and what the next look at the slot has to know."""
        known = notes(self._store)
        last = known.get(worker.slot)
        if last is not None and last.worker == worker.id:
            return
        said: dict[str, Any] = {"pid": worker.pid, "release": worker.release.name, "reason": end.reason}
        note = Note(at=time.time(), **said, text=end.text, worker=worker.id, quick=end.quick)
        with self._store.transaction():
            self._store.put(RECORD, {str(slot): each for slot, each in {**known, worker.slot: note}.items()})
            self._store.emit("worker.recycled", slot=worker.slot, **said, text=end.text)

    def _warn(self, worker: Worker, vitals: Vitals) -> None:
        """That a limit is too low is said once for each worker it is too low for."""
        if worker.warning is None and limits.is_large(vitals) and limits.held_back_s(vitals) > 0:
            worker.warning = limits.held_back_text(vitals)
            log.warning("worker.over_limit", slot=worker.slot, pid=worker.pid, text=worker.warning)
            said: dict[str, Any] = {"pid": worker.pid, "release": worker.release.name, "text": worker.warning}
            self._store.emit("worker.over_limit", slot=worker.slot, **said)


def of(worker: Worker) -> Limits:
    config: WorkerConfig = worker.release.config.worker
    return _limits(config.memory_limit, config.max_age, config.patience)


@functools.lru_cache(16)
def _limits(memory_limit: str | None, max_age: str | None, watchdog: str) -> Limits:
    return Limits(
        memory=None if memory_limit is None else parse_size(memory_limit),
        age_s=None if max_age is None else parse_duration(max_age),
        watchdog_s=parse_duration(watchdog) or None,
    )


def _is_watched(worker: Worker) -> bool:
    """It serves, in a slot of ours, and there is something to look at."""
    serves = worker.slot > 0 and worker.generation != STRAY and worker.state is State.READY and worker.exit is None
    return serves and of(worker) != Limits()


def _pause(workers: Iterable[Worker]) -> float:
    """Seconds until the next look: a quarter of the shortest time that matters, and never less than a second."""
    times = (each for worker in workers for each in (of(worker).watchdog_s, of(worker).age_s) if each is not None)
    return min(max(min(times, default=LOOK_MAX_S) / 4, LOOK_MIN_S), LOOK_MAX_S)
