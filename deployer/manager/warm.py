"""The warm template of a watch: that there is one, with what the saves have in common imported.

Which modules these are is told by the workers of saves, and kept in `meta`, so that the next watch starts with them.
While another is made the one before is used. Nothing depends on it: where none fits a worker boots on its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import structlog

from deployer.manager.retries import Retries
from deployer.manager.supervisor import Supervisor
from deployer.osutil.tasks import watched
from deployer.releases.release import Release, is_dev
from deployer.state.store import Store
from deployer.wire.schema import WARM_SLOT
from deployer.workers.pool import Pool
from deployer.workers.worker import State, Worker

META = "warm"
NAMES_MAX = 128 * 1024  # bytes: what the socket to a process that still boots takes at once

log = structlog.get_logger()


class Warm:
    """`want` says for which release; what is heard from workers and templates does the rest."""

    def __init__(self, *, store: Store, pool: Pool, supervisor: Supervisor) -> None:
        self._store, self._pool, self._supervisor = store, pool, supervisor
        self._wanted: Release | None = None
        self._latest: Worker | None = None
        self._given: tuple[str, ...] = ()  # what that was told to import
        self._refused: set[str] = set()  # modules that cannot be imported for themselves, or do not survive a fork
        self._is_hopeless = False  # even without packages there is something that does not survive one
        self._retries = Retries()
        self._look_is_due = False
        pool.messages.on_imported = self._on_imported
        pool.messages.on_refused = self._on_refused
        pool.messages.on_unsafe_warm = self._on_unsafe

    @property
    def names(self) -> tuple[str, ...]:
        """Of modules, in the order of their import."""
        return tuple(self._store.get(META, ()))

    def want(self, release: Release | None) -> None:
        """Keep one that workers of releases like this can be forked from; None: end what there is. A new watch, and
        another environment, may import what could not be imported before."""
        if release is None or self._wanted is None or release.environment != self._wanted.environment:
            self._refused.clear()
            self._is_hopeless = False
            self._retries.forget(META)
        self._wanted = release if release is not None and release.config.worker.app is not None else None
        self._look_soon()

    # Hearing

    def _on_imported(self, worker: Worker, names: Sequence[str]) -> None:
        if is_dev(worker.release.name):
            self._learn(grown(self.names, names, self._refused))

    def _on_refused(self, worker: Worker, names: Sequence[str]) -> None:
        """Another is made without these; who has tried to import them is not clean any more."""
        log.info("warm.refused", pid=worker.pid, names=list(names))
        self._refuse(worker, names)

    def _on_unsafe(self, worker: Worker, what: str) -> None:
        """Nobody knows by which of the modules: none of them, then."""
        log.warning("warm.unsafe", pid=worker.pid, what=what, names=len(self._given))
        self._is_hopeless = not self._given
        self._refuse(worker, self._given)

    def _refuse(self, worker: Worker, names: Collection[str]) -> None:
        self._refused.update(names)
        self._learn(tuple(name for name in self.names if name not in self._refused))
        self._pool.retire(worker)

    def _learn(self, names: tuple[str, ...]) -> None:
        if names != self.names:
            self._store.put(META, names)
            self._look_soon()

    # What there should be, and that it is there

    def _look_soon(self) -> None:
        """What is heard at once is one look."""
        if not self._look_is_due:
            self._look_is_due = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._look_is_due = False
        if self._supervisor.stopping:
            return
        if self._wanted is not None and not self._is_hopeless:
            self._ensure(self._wanted)
        for worker in self._outdated():
            self._pool.retire(worker)

    def _outdated(self) -> list[Worker]:
        """All but the latest; those that are ready stay until that is."""
        running, latest = self._running(), self._latest
        if self._wanted is None or self._is_hopeless:
            return running
        is_ready = latest is not None and latest.state is State.READY
        return [w for w in running if w is not latest and (is_ready or w.state is State.STARTING)]

    def _ensure(self, release: Release) -> None:
        try:
            if self._is_right(release):
                return
            if (wait := self._retries.wait_s(META)) > 0:
                asyncio.get_running_loop().call_later(wait, self._look_soon)
                return
            names = self.names
            self._latest, self._given = self._pool.spawn_warm(release, names), names
        except OSError as error:
            log.error("warm.spawn_failed", release=release.name, error=str(error))
            self._retries.died(META)
            self._look_soon()
        else:
            watched(self._follow(self._latest))

    def _is_right(self, release: Release) -> bool:
        """Is the latest, ready or not yet, what there should be?"""
        latest = self._latest
        if latest is None or latest not in self._running():
            return False
        return self._given == self.names and self._pool.fits(latest, release)

    async def _follow(self, worker: Worker) -> None:
        started = asyncio.create_task(worker.started.wait())
        ended = asyncio.create_task(worker.ended.wait())
        await asyncio.wait({started, ended}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        self._look_soon()
        await ended
        if worker.state is not State.DRAINING or worker.failure is not None:
            log.warning("warm.died", pid=worker.pid, exit=worker.exit, failure=worker.failure)
            if worker.ready_at is None and META in self._retries:
                self._refuse(worker, self._given)  # one of them hangs, or crashes the interpreter
            self._retries.died(META, worker.spawned_at)
        self._look_soon()

    def _running(self) -> list[Worker]:
        workers = self._pool.workers.values()
        return [w for w in workers if w.slot == WARM_SLOT and w.exit is None and w.state is not State.DRAINING]


def grown(names: Sequence[str], new: Sequence[str], refused: Collection[str]) -> tuple[str, ...]:
    """With what a worker has imported besides, as far as there is room for it."""
    size, found = 0, []
    for name in dict.fromkeys((*names, *(name for name in new if name not in refused))):
        size += len(name) + 3  # as JSON
        if size > NAMES_MAX:
            break
        found.append(name)
    return tuple(found)
