"""What the API shows: state as it is, read from the workers and from state.db."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from deployer import __version__
from deployer.clock import uptime
from deployer.keeper.link import KeeperLink
from deployer.manager.driver import problem_of
from deployer.manager.hygiene import notes
from deployer.manager.queue import Queue
from deployer.manager.supervisor import Supervisor
from deployer.manager.templates import Templates
from deployer.manager.traffic import Traffics
from deployer.osutil.process import descendants
from deployer.paths import Layout
from deployer.rollout.machine import Rollout
from deployer.state.store import OF_SAVE, Store
from deployer.wire.schema import (
    KeeperInfo,
    ManagerInfo,
    Recycled,
    RolloutInfo,
    Status,
    TemplateInfo,
    Traffic,
    WatchInfo,
    WorkerInfo,
)
from deployer.workers import cut
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener, State, Worker


class Views:
    """Questions about the cluster; nothing here changes it."""

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        supervisor: Supervisor,
        keeper: KeeperLink,
        layout: Layout,
        config_file: Path,
        listeners: tuple[Listener, ...],
        queue: Queue,
        templates: Templates,
        watch: Callable[[], WatchInfo | None],
    ) -> None:
        self._queue, self._templates, self._watch = queue, templates, watch
        self._store, self._pool, self._supervisor, self._keeper = store, pool, supervisor, keeper
        self._layout, self._config_file, self._listeners = layout, config_file, listeners
        self._started = time.monotonic()
        self._traffics = Traffics()
        self._cpu: dict[int, tuple[float, float]] = {}  # worker id -> (when, CPU seconds) at the last look

    def status(self) -> Status:
        rollout = self._supervisor.rollout
        return Status(
            app=self._store.get("app"),
            release=self._store.get("release"),
            rollout=None if rollout is None else self.rollout(rollout.id),
            listen=[str(listener.address) for listener in self._listeners],
            count=self._supervisor.count,
            manager=self.manager(),
            keeper=KeeperInfo(pid=self._keeper.pid if self._keeper.alive else None),
            workers=self._workers(),
            config_file=str(self._config_file),
            root=str(self._layout.root),
            templates=[self._template(template) for template in self._templates.running()],
            queued=[info for number in self._queue.numbers() if (info := self.rollout(number)) is not None],
            watch=self._watch(),
        )

    def manager(self) -> ManagerInfo:
        return ManagerInfo(
            pid=psutil.Process().pid, uptime_s=round(time.monotonic() - self._started, 1), version=__version__
        )

    def rollout(self, number: int) -> RolloutInfo | None:
        row = self._store.row("SELECT * FROM rollouts WHERE id = ?", number)
        return None if row is None else self._info(row, self._queue.place(number))

    def rollouts(self, limit: int, *, saves: bool = False) -> list[RolloutInfo]:
        """Newest first; those of saves are none, unless `saves` are asked for too."""
        query = f"SELECT * FROM rollouts WHERE ? OR {OF_SAVE} IS NOT TRUE ORDER BY id DESC LIMIT ?"  # noqa: S608
        rows = self._store.rows(query, saves, limit)
        return [self._info(row, self._queue.place(row["id"])) for row in rows]

    def rollouts_of(self, release: str) -> list[RolloutInfo]:
        """Those that led to it, newest first."""
        query = "SELECT * FROM rollouts WHERE json_extract(state, '$.release') = ? ORDER BY id DESC"
        return [self._info(row, None) for row in self._store.rows(query, release)]

    def _info(self, row: sqlite3.Row, place: int | None) -> RolloutInfo:
        going = [worker for worker in self._pool.workers.values() if worker.retired_by == row["id"]]
        return _rollout(row, place, sum(worker.exit is None for worker in going))

    def _workers(self) -> list[WorkerInfo]:
        """By slot; a slot with no worker is shown too."""
        alive = [w for w in self._pool.workers.values() if w.exit is None and not w.forks]
        keys = [(worker.pid, worker.ticks) for worker in alive if worker.release.config.worker.app is not None]
        traffic = self._traffics.of(self._pool.board.rows(), keys, time.monotonic()) if keys else {}
        infos = [self._worker(worker, traffic.get((worker.pid, worker.ticks))) for worker in alive]
        covered = {worker.slot for worker in alive if worker.state is not State.DRAINING}
        infos += [self._empty(slot) for slot in self._supervisor.wants() if slot not in covered]
        return sorted(infos, key=lambda info: (info.slot, info.pid or 0))

    def _worker(self, worker: Worker, traffic: Traffic | None) -> WorkerInfo:
        slot = self._store.slot(worker.slot)
        recycled = notes(self._store).get(worker.slot)
        rss, cpu = self._usage(worker)
        return WorkerInfo(
            slot=worker.slot,
            pid=worker.pid,
            release=worker.release.name,
            state=worker.ailment if worker.condemned and worker.state is State.READY else str(worker.state),
            uptime_s=round(uptime() - worker.spawned_at, 1),
            restarts=slot.restarts,
            rss_bytes=rss,
            cpu_percent=cpu,
            last_exit=slot.last_exit,
            traffic=traffic,
            why=worker.condemned or worker.warning,
            recycled=None if recycled is None else msgspec.convert(recycled, Recycled, from_attributes=True),
        )

    def _template(self, template: Worker) -> TemplateInfo:
        left = self._templates.standby_left(template.release.name)
        return TemplateInfo(
            release=template.release.name,
            pid=template.pid,
            state=str(template.state),
            rss_bytes=self._usage(template)[0],
            standby_left_s=None if left is None else round(left, 1),
        )

    def _empty(self, slot: int) -> WorkerInfo:
        known = self._store.slot(slot)
        return WorkerInfo(
            slot=slot,
            pid=None,
            release=None,
            state="backoff",
            uptime_s=0.0,
            restarts=known.restarts,
            rss_bytes=0,
            cpu_percent=0.0,
            last_exit=known.last_exit,
        )

    def _usage(self, worker: Worker) -> tuple[int, float]:
        """(resident bytes, per cent of one CPU since the last look) of the worker and its children."""
        rss, seconds = usage(worker)
        now = uptime()
        since, before = self._cpu.get(worker.id, (worker.spawned_at, 0.0))
        self._cpu[worker.id] = (now, seconds)
        return rss, round(max(0.0, 100 * (seconds - before) / max(now - since, 0.01)), 1)


def usage(worker: Worker) -> tuple[int, float]:
    """(resident bytes, CPU seconds) of the worker and its children, those included that it has reaped."""
    rss, seconds = 0, 0.0
    for pid in descendants(worker.pid):
        try:
            process = psutil.Process(pid)
            rss += process.memory_info().rss
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return rss, seconds


def _rollout(row: sqlite3.Row, place: int | None, draining: int) -> RolloutInfo:
    rollout = msgspec.json.decode(row["state"], type=Rollout)
    failure = rollout.failure
    return RolloutInfo(
        id=row["id"],
        kind=row["kind"],
        phase=row["phase"],
        release=rollout.release,
        previous=row["previous"],
        outcome=row["outcome"],
        exit_code=row["exit_code"],
        reason=failure.reason if failure else None,
        who=row["who"],
        message=row["message"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        problem=problem_of(rollout),
        serving=row["serving"],
        tail=list(failure.tail) if failure else [],
        warnings=list(rollout.warnings),
        place=place,
        cut=cut.decoded(row["cut"]),
        draining=draining,
        watch=row["watch"],
    )
