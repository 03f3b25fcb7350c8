"""The manager: builds its parts and joins them. One loop, one state."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from deployer.config.load import Loaded
from deployer.config.model import Config, Health
from deployer.config.model import Release as Keep
from deployer.keeper.link import KeeperLink
from deployer.logs.applog import AppLog
from deployer.manager.adoption import Adoption
from deployer.manager.cleanup import CleanUp
from deployer.manager.commands import Commands
from deployer.manager.drains import Drains
from deployer.manager.driver import Driver
from deployer.manager.hooks import Hooks
from deployer.manager.hygiene import Hygiene
from deployer.manager.monitor import Monitor
from deployer.manager.planning import Planner
from deployer.manager.queue import Queue
from deployer.manager.requests import Requests
from deployer.manager.saves import Saves
from deployer.manager.supervisor import Supervisor
from deployer.manager.templates import Templates
from deployer.manager.views import Views
from deployer.manager.warm import Warm
from deployer.manager.watches import Watches
from deployer.osutil.tasks import watched
from deployer.paths import Layout
from deployer.releases.catalog import Catalog
from deployer.rollout.machine import PAST_TURNING, Phase
from deployer.state.store import Store, WorkerRow
from deployer.wire.schema import ReleaseDetail, SettingsDiff
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener

log = structlog.get_logger()


class Manager:
    """What follows from `commands` is done by the driver and the supervisor."""

    def __init__(
        self,
        *,
        loaded: Loaded,
        store: Store,
        keeper: KeeperLink,
        layout: Layout,
        listeners: tuple[Listener, ...],
        base_env: dict[str, str],
    ) -> None:
        self.store, self.layout, self._keeper = store, layout, keeper
        self.log = AppLog(layout.app_log)
        self.catalog = Catalog(store, layout)
        self.pool = Pool(
            app=loaded.config.name, store=store, keeper=keeper, layout=layout, log=self.log, base_env=base_env
        )
        self.supervisor = Supervisor(store=store, catalog=self.catalog, pool=self.pool, listeners=listeners)
        self.templates = Templates(store=store, catalog=self.catalog, pool=self.pool, supervisor=self.supervisor)
        self.warm = Warm(store=store, pool=self.pool, supervisor=self.supervisor)
        self.cleanup = CleanUp(catalog=self.catalog, layout=layout, used=self._used)
        hooks = Hooks(store=store, layout=layout, base_env=base_env, config_file=loaded.path)
        self.driver = Driver(
            store=store,
            catalog=self.catalog,
            pool=self.pool,
            supervisor=self.supervisor,
            layout=layout,
            listeners=listeners,
            on_promoted=lambda rollout: self.commands.on_promoted(rollout),
            on_finished=self._on_finished,
            on_decided=lambda rollout: self.watches.on_decided(rollout),
            templates=self.templates,
            hooks=hooks,
            clean_up=self._clean_up,
            stage_by=lambda request, tell: self.watches.stage(request, tell),
        )
        self._queue = Queue(store)
        self.views = Views(
            store=store,
            pool=self.pool,
            supervisor=self.supervisor,
            keeper=keeper,
            layout=layout,
            config_file=loaded.path,
            listeners=listeners,
            queue=self._queue,
            templates=self.templates,
            watch=lambda: self.watches.info(),
        )
        self._requests = Requests(config_path=loaded.path, store=store, layout=layout, catalog=self.catalog)
        self.commands = Commands(
            store=store,
            catalog=self.catalog,
            driver=self.driver,
            supervisor=self.supervisor,
            views=self.views,
            queue=self._queue,
            requests=self._requests,
            templates=self.templates,
            hooks=hooks,
        )
        self.planner = Planner(
            store=store,
            catalog=self.catalog,
            driver=self.driver,
            supervisor=self.supervisor,
            requests=self._requests,
            cleanup=self.cleanup,
            commands=self.commands,
        )
        self.watches = Watches(
            store=store,
            catalog=self.catalog,
            driver=self.driver,
            commands=self.commands,
            requests=self._requests,
            saves=Saves(
                store=store,
                catalog=self.catalog,
                layout=layout,
                used=self._used,
                warm=self.warm,
                on_end=lambda: watched(self._back_up()),
            ),
            root=str(layout.root),
            on_own_end=lambda: watched(self.stop()),
        )
        self.supervisor.on_death = self.watches.on_death
        self.commands.on_staging = self.planner.give_way
        self.commands.on_command = self.watches.disarm
        self.commands.on_deploy = self.watches.arm
        self.commands.is_watched = self.watches.is_dev
        self.drains = Drains(store, self.pool)
        self.monitor = Monitor(self.pool, listeners, self.supervisor.condemn)
        self.hygiene = Hygiene(store=store, pool=self.pool, supervisor=self.supervisor)
        self._listeners = listeners
        self.on_stopped: Callable[[], None] = lambda: None

    @property
    def config(self) -> Config:
        """The host's configuration as of the last promotion."""
        return msgspec.convert(self.store.get("config"), Config)

    # The beginning

    def take_over(self, rows: Sequence[WorkerRow]) -> tuple[int, int | None]:
        """Adopt the workers that run and go on with the rollout that was under way: (adopted, rollout)."""
        adoption = Adoption(
            store=self.store,
            catalog=self.catalog,
            pool=self.pool,
            keeper=self._keeper,
            layout=self.layout,
            listeners=self._listeners,
            config=self.config,
        )
        adopted = adoption.run(rows, self.driver.resume)
        resumed = None if self.driver.rollout is None else self.driver.rollout.id
        self.monitor.start(self._live_health)
        self.hygiene.start()
        self.supervisor.wake()
        self.store.emit("manager.started", pid=os.getpid(), adopted=adopted, resumed=resumed)
        self.commands.next()
        self.watches.resume()
        return adopted, resumed

    def _live_health(self) -> Health | None:
        live = self.store.get("release")
        return None if live is None else self.catalog.release(live).config.health

    # Questions that need more than one part

    def release(self, name: str) -> ReleaseDetail:
        return self.catalog.detail(name, self.views.rollouts_of(name))

    def diff(self, old: str, new: str) -> SettingsDiff:
        """What differs in the settings; files and commits are for the command to compare, which may take its time."""
        env, config = self.catalog.settings_changes(old, new)
        return SettingsDiff(old=self.release(old), new=self.release(new), env=env, config=config)

    def pin(self, name: str, *, pinned: bool) -> ReleaseDetail:
        self.catalog.pin(name, pinned=pinned)
        return self.release(name)

    # The end

    async def stop(self, *, now: bool = False) -> None:
        """Retire every worker and wait for it; bounded by the longest drain timeout."""
        if self.supervisor.stopping:
            for worker in list(self.pool.workers.values()) if now else []:
                self.pool.retire(worker, now=True)
            return
        rollout = self.driver.rollout
        if rollout is not None and rollout.phase not in (*PAST_TURNING, Phase.REVERTING):
            self.driver.abort_now("deployer down")
        self.supervisor.stopping = True
        self.watches.stop("the supervisor is being stopped")
        self.commands.send_away()
        self.store.put("stopping", True)  # a manager that is killed now is followed by one that goes on stopping
        self.driver.halt()
        self.monitor.stop()
        self.hygiene.stop()
        self._keeper.stopping()
        log.info("manager.stopping", workers=len(self.pool.workers))
        while workers := list(self.pool.workers.values()):
            for worker in workers:
                self.pool.retire(worker, now=now)
            await asyncio.wait([asyncio.create_task(worker.ended.wait()) for worker in workers])
        await self.driver.halted()
        for listener in self._listeners:
            if listener.address.kind == "unix":
                Path(listener.address.path).unlink(missing_ok=True)
        with self.store.transaction():
            self.store.put("stopping", False)
            self.store.emit("manager.stopped", pid=os.getpid())
        self.on_stopped()

    # Private

    async def _back_up(self) -> None:
        """Aside, in a thread: the copy is for the day on which state.db is damaged."""
        try:
            await asyncio.to_thread(self.store.back_up)
        except (OSError, sqlite3.Error) as error:
            log.warning("state.not_backed_up", error=str(error))

    def _used(self) -> set[str]:
        """Releases that a worker runs (a draining one too), that a rollout goes to or comes from, or that a waiting
        rollback names."""
        used = {worker.release.name for worker in self.pool.workers.values()} | self._queue.needs()
        live, rollout = self.store.get("release"), self.driver.rollout
        used |= {live} if live is not None else set()
        used |= self.templates.kept()
        if rollout is not None:
            previous = None if rollout.previous is None else self.supervisor.release_of(rollout.previous)
            used |= {name for name in (rollout.release, previous) if name is not None}
        return used

    async def _clean_up(self) -> list[str]:
        return await self.cleanup.run(self._keep())

    async def _clean_up_failed(self) -> None:
        """Releases that fail one after the other must not fill the disk until one succeeds."""
        await self.cleanup.releases(self._keep())

    def _keep(self) -> Keep:
        live = self.store.get("release")
        return (self.config if live is None else self.catalog.release(live).config).release

    def _on_finished(self) -> None:
        """Many saves a minute are not copied one by one; what they leave is `Saves`' to remove."""
        if not self.watches.is_dev():
            watched(self._back_up())
            watched(self._clean_up_failed())
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self.commands.next()
        self.watches.advance()
