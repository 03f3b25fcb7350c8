"""The templates that workers of `[worker] preload` are forked from: which there should be, and that they are there.

The live release has one; so has the one that a rollout goes to, until it is decided; and, with `[rollout] standby`, the
one before for a while, for a rollback that boots nothing. Nothing depends on them: where there is none a worker boots
on its own, as without `preload`.
"""

from __future__ import annotations

import asyncio

import structlog

from deployer.clock import uptime
from deployer.manager import verdict
from deployer.manager.retries import Retries
from deployer.manager.supervisor import Supervisor
from deployer.releases.catalog import Catalog
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.rollout.machine import FINAL, Phase, Rollout
from deployer.state.store import Store
from deployer.units import parse_duration
from deployer.wire.schema import BLANK_SLOT, TEMPLATE_SLOT
from deployer.workers.pool import Pool
from deployer.workers.worker import State, Worker

log = structlog.get_logger()


class Templates:
    """`look` is called whenever the supervisor has looked after the workers."""

    def __init__(self, *, store: Store, catalog: Catalog, pool: Pool, supervisor: Supervisor) -> None:
        self._store, self._catalog, self._pool, self._supervisor = store, catalog, pool, supervisor
        self._preparing: str | None = None
        self._retries = Retries()
        self._timer: asyncio.TimerHandle | None = None
        supervisor.after_look = self.look
        supervisor.awaits_template = self.is_importing
        supervisor.on_template_exit = self._on_exit
        pool.messages.on_unsafe = self._on_unsafe

    def ready(self, release: str) -> bool:
        """Can workers of the release be forked now?"""
        return self._pool.template(release) is not None

    def running(self) -> list[Worker]:
        return [w for w in self._pool.workers.values() if w.slot == TEMPLATE_SLOT and w.exit is None]

    @property
    def unsafe(self) -> dict[str, str]:
        """Release -> what in it does not survive a fork."""
        found: dict[str, str] = self._store.get("unsafe", {})
        return found

    def start_early(self, target: int) -> None:
        """While the release of a rollout is being staged: interpreter and server come up meanwhile, for a template as
        that of the live release."""
        name = self._store.get("release")
        if name is None or name in self.unsafe or self._blank(target) is not None:
            return
        release = self._catalog.release(name)
        try:
            if release.config.worker.preload:
                self._pool.spawn_blank(target, release)
        except OSError as error:
            log.warning("template.not_early", release=name, error=str(error))

    def _blank(self, target: int) -> Worker | None:
        """That of a rollout, if there is one that may become its template still."""
        return next((w for w in self._blanks() if w.generation == target and w.failure is None), None)

    def _blanks(self) -> list[Worker]:
        workers = self._pool.workers.values()
        return [w for w in workers if w.slot == BLANK_SLOT and w.exit is None and w.state is not State.DRAINING]

    async def prepare(self, release: Release, generation: int) -> Failure | None:
        """Wait for the template of a rollout's release. None: it is ready, or its workers are to boot on their own. A
        Failure: the application cannot be imported."""
        if not release.config.worker.preload or release.name in self.unsafe:
            return None
        self._preparing = release.name
        try:
            template = await self._decided(release, generation)
        except OSError as error:
            what = f"cannot start the template of {release.name}"
            return Failure(reason="spawn", what=what, cause=str(error))
        finally:
            self._preparing = None
        if release.name in self.unsafe or self.ready(release.name):
            return None
        if template.failure is not None:
            return template.failure
        if template.exit is None or template.exit.code is None or template.exit.code < 0:
            return None  # it was killed: what that says about the release, its first worker will show
        return verdict.failure_of_exit(template)

    async def _decided(self, release: Release, generation: int) -> Worker:
        """A template that is ready, or never will be."""
        while True:
            template = self._of(release.name) or self._begun(release, generation)
            ended = asyncio.create_task(template.ended.wait())
            started = asyncio.create_task(template.started.wait())
            try:
                await asyncio.wait({ended, started}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                started.cancel()
            if template.exit is None or template.ran:
                return template

    def _begun(self, release: Release, generation: int) -> Worker:
        blank = self._blank(generation)
        if blank is None or not self._pool.fits(blank, release):
            return self._pool.spawn_template(generation, release)
        self._pool.make_template(blank, release)
        return blank

    def warnings(self, release: str | None) -> list[str]:
        what = self.unsafe.get(release or "")
        return [f"workers of {release} boot one by one: {what} would not survive a fork"] if what else []

    # Standby

    def stand_by(self, release: str | None, seconds: float) -> None:
        """Keep this release's template for a while; called in the transaction that promotes another."""
        now = uptime()
        standby = {"release": release, "since": now, "until": now + seconds}
        self._store.put("standby", standby if release is not None and seconds > 0 else None)

    def standby_left(self, release: str) -> float | None:
        """Seconds for which the template stays although its release is not live."""
        standby = self._store.get("standby")
        if standby is None or standby["release"] != release or release == self._store.get("release"):
            return None
        now = uptime()
        begun = float(standby["since"]) <= now  # or the machine was started anew since, and the clock with it
        return max(0.0, float(standby["until"]) - now) if begun else 0.0

    def kept(self) -> set[str]:
        """Releases that are not to be removed, since workers of theirs may be wanted at once."""
        standby = self._store.get("standby")
        return {standby["release"]} if standby is not None and self.standby_left(standby["release"]) else set()

    def is_importing(self, release: str) -> bool:
        """Is its template about to be ready, for the first time? One that died before is not waited for."""
        self.look()
        template = self._of(release)
        return template is not None and template.state is State.STARTING and release not in self._retries

    # Which there should be, and that they are there

    def look(self) -> None:
        """Compare, start, end."""
        if self._supervisor.stopping:
            return
        wanted = self._wanted()
        for worker in self.running():
            if worker.release.name not in wanted:
                self._pool.retire(worker)
        for blank in self._blanks():
            if not _is_before_canary(self._supervisor.rollout, blank.generation):
                self._pool.retire(blank)
        unsafe = self.unsafe
        for name, generation in wanted.items():
            if self._of(name) is None and name not in unsafe and name != self._preparing:
                self._start(name, generation)
        self._wake_at_the_end_of_standby()

    def _wanted(self) -> dict[str, int]:
        """Release -> generation."""
        found: dict[str, int] = {}
        live, promoted, rollout = self._store.get("release"), self._supervisor.promoted, self._supervisor.rollout
        if live is not None and promoted is not None:
            found[live] = promoted
        if rollout is not None and rollout.release is not None and _needs_template(rollout):
            found[rollout.release] = rollout.target
        standby = self._store.get("standby")
        if standby is not None and self.standby_left(standby["release"]):
            found.setdefault(standby["release"], promoted or 0)
        return {name: number for name, number in found.items() if self._catalog.release(name).config.worker.preload}

    def _of(self, release: str) -> Worker | None:
        """Its template, ready or not yet."""
        mine = (w for w in self.running() if w.release.name == release and w.state is not State.DRAINING)
        return next(mine, None)

    def _start(self, name: str, generation: int) -> None:
        wait = self._retries.wait_s(name)
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self._supervisor.wake)
            return
        try:
            self._pool.spawn_template(generation, self._catalog.release(name))
        except OSError as error:
            log.error("template.spawn_failed", release=name, error=str(error))
            self._retries.died(name)

    def _wake_at_the_end_of_standby(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        standby = self._store.get("standby")
        left = None if standby is None else self.standby_left(standby["release"])
        if left:
            self._timer = asyncio.get_running_loop().call_later(left, self._supervisor.wake)

    # What becomes of them

    def _on_exit(self, template: Worker) -> None:
        retired = template.state is State.DRAINING and template.failure is None
        if retired or not template.ran or template.release.name in self.unsafe:
            return
        log.warning("template.died", release=template.release.name, pid=template.pid, exit=template.exit)
        self._retries.died(template.release.name, template.spawned_at)

    def _on_unsafe(self, template: Worker, what: str) -> None:
        """Its workers boot on their own from now on, and it is of no use. The next manager does not try again."""
        name = template.release.name
        known = {other: why for other, why in self.unsafe.items() if other in self._wanted()}
        with self._store.transaction():
            self._store.put("unsafe", {**known, name: what})
            self._store.emit("template.unsafe", release=name, pid=template.pid, what=what)
        log.warning("template.unsafe", release=name, what=what)
        self._pool.retire(template)


def _needs_template(rollout: Rollout) -> bool:
    return rollout.phase is not Phase.STAGING and rollout.phase not in FINAL


def _is_before_canary(rollout: Rollout | None, target: int) -> bool:
    if rollout is None or rollout.target != target:
        return False
    return rollout.phase in (Phase.STAGING, Phase.PREFLIGHT)


def standby_seconds(release: Release) -> float:
    return parse_duration(release.config.rollout.standby)
