"""The first thing a manager does: adopt the workers that run, and bury those that ended while nobody looked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from deployer.clock import uptime
from deployer.config.model import Config
from deployer.keeper.link import KeeperLink
from deployer.manager import inherit
from deployer.manager.supervisor import STRAY
from deployer.osutil.process import environment
from deployer.paths import Layout
from deployer.releases.catalog import Catalog, NoSuchReleaseError
from deployer.releases.release import Release
from deployer.state.store import Store, WorkerRow
from deployer.wire.schema import BLANK_SLOT, PREFLIGHT_SLOT, WARM_SLOT
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener, State

log = structlog.get_logger()


class Adoption:
    """From the rows of state.db, and from the processes themselves, to the pool."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        pool: Pool,
        keeper: KeeperLink,
        layout: Layout,
        listeners: Sequence[Listener],
        config: Config,
    ) -> None:
        self._store, self._catalog, self._pool, self._keeper = store, catalog, pool, keeper
        self._layout, self._listeners, self._config = layout, listeners, config

    def run(self, rows: Sequence[WorkerRow], resume: Callable[[], Any]) -> int:
        """How many were adopted. `resume` takes up the rollout: when all who live are known, and before it is told
        of any who died. All of it happens before the loop runs again."""
        adopted, dead = 0, []
        for row in rows:
            release = self._release(row.release)
            worker = self._pool.adopt(row, release, self._listeners)
            adopted += worker is not None
            if worker is None:
                dead.append((row, release))
            elif worker.slot in (PREFLIGHT_SLOT, WARM_SLOT, BLANK_SLOT) or (worker.forks and worker.channel is None):
                # The preflight starts anew, on sockets of its own, and so do those whose fit nobody knows; a template
                # that nobody can reach is of no use.
                self._pool.retire(worker, now=True)
        for pid, ticks in inherit.strays(self._layout, {row.pid for row in rows}):
            adopted += self._adopt_stray(pid, ticks)
        resume()
        for row, release in dead:
            self._pool.bury(row, release)
        for pid in tuple(self._keeper.exits):
            self._pool.on_foreign_exit(pid)
        self._keeper.on_exit = self._pool.on_foreign_exit
        self._sweep()
        return adopted

    def _adopt_stray(self, pid: int, ticks: int) -> bool:
        """A worker of ours that state.db has never heard of: no slot wants it, so it goes once others serve."""
        env = environment(pid)
        slot, name = env.get("DEPLOYER_WORKER", ""), env.get("DEPLOYER_RELEASE", "")
        if not slot.isdecimal():
            return False
        # A worker that was forked still shows its template's variables (proc(5), /proc/PID/environ), which has no slot.
        values = {"slot": max(int(slot), 1), "generation": STRAY, "release": name, "pid": pid, "ticks": ticks}
        row = self._store.add_worker(**values, state=State.READY, spawned_at=uptime(), ready_at=uptime())
        log.warning("worker.stray", pid=pid, release=name)
        return self._pool.adopt(row, self._release(name), self._listeners) is not None

    def _release(self, name: str) -> Release:
        """Enough to look after a worker until it goes, when its release is in no record."""
        try:
            return self._catalog.release(name)
        except NoSuchReleaseError:
            return Release(name, self._layout.release(name), self._config, {})

    def _sweep(self) -> None:
        """Socket files whose worker is gone."""
        used = {worker.notify.getsockname() for worker in self._pool.workers.values() if worker.notify}
        for path in (*self._layout.notify.iterdir(), *self._layout.run.glob("preflight-*.sock")):
            if str(path) not in used:
                path.unlink(missing_ok=True)
