"""The work of each phase of a rollout, which ends in the fact that moves it on. Decides nothing, journals nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from deployer.errors import DiskError
from deployer.manager import preflight
from deployer.manager.hooks import Hooks, Place, Stage
from deployer.manager.soak import Soak
from deployer.manager.templates import Templates
from deployer.paths import Layout
from deployer.releases import current, tree
from deployer.releases.catalog import Catalog, NoSuchReleaseError
from deployer.releases.release import Release, is_dev
from deployer.releases.request import StageRequest, StageResult
from deployer.rollout.events import (
    AnyFact,
    Failure,
    Finished,
    NewFailed,
    PreflightFailed,
    PreflightPassed,
    Promoted,
    SoakPassed,
    Staged,
    StagingFailed,
    Unchanged,
)
from deployer.rollout.machine import Kind, Phase, Rollout
from deployer.state.store import Store
from deployer.units import parse_duration
from deployer.wire.schema import Problem
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener

PROMOTE_RETRY_S = 1.0
HOOKED = (Kind.DEPLOY, Kind.ROLLBACK)
"""Kinds that change what is live; the others run no hooks and leave nothing to clean up."""

log = structlog.get_logger()

Job = Callable[[Rollout], Coroutine[Any, Any, AnyFact]]
CleanUp = Callable[[], Awaitable[list[str]]]
StageBy = Callable[[StageRequest, Callable[[str], None]], Awaitable[StageResult | Problem]]
"""Makes what a request asks for, and tells of its progress."""


async def nothing_to_clean_up() -> list[str]:
    return []


class Work:
    """What there is to do in a phase: `of`."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        pool: Pool,
        layout: Layout,
        listeners: tuple[Listener, ...],
        templates: Templates,
        hooks: Hooks,
        clean_up: CleanUp,
        stage_by: StageBy,
    ) -> None:
        self._templates, self._stage_by = templates, stage_by
        self._store, self._catalog, self._pool, self._layout = store, catalog, pool, layout
        self._listeners, self._hooks, self._clean_up = listeners, hooks, clean_up

    def of(self, phase: Phase) -> Job | None:
        jobs: dict[Phase, Job] = {
            Phase.STAGING: self._stage,
            Phase.PREFLIGHT: self._preflight,
            Phase.SOAKING: self._soak,
            Phase.PROMOTING: self._promote,
            Phase.FINISHING: self._finish,
        }
        return jobs.get(phase)

    # Staging, and the hooks before a rollout

    async def _stage(self, rollout: Rollout) -> AnyFact:
        if rollout.kind is not Kind.DEPLOY:
            assert rollout.release is not None
            return await self._prepared(rollout, rollout.release)
        request = self.request(rollout)
        if request.development is None:
            self._templates.start_early(rollout.target)
        if failures := await self._hooks.run(Stage.BEFORE_STAGE, rollout, Place.before(request), name=request.name):
            return StagingFailed(failure=failures[0])
        self._hooks.forget(rollout, Stage.AFTER_BUILD)
        tree.remove(self._layout.release(request.name))  # whole, but its manager died before it could say so
        result = await self._stage_by(request, lambda text: self._store.emit("release.progress", text=text))
        if isinstance(result, Problem):
            return StagingFailed(failure=_failure(result))
        if result.outcome == "same":
            self._catalog.forget(request.name)
            return Unchanged()
        with self._store.transaction():
            self._catalog.staged(result)
            self._emit_staged(result)
        place = Place.of(self._catalog.release(result.name))
        if failures := await self._hooks.run(Stage.AFTER_BUILD, rollout, place, name=result.name):
            return StagingFailed(failure=failures[0])
        return await self._prepared(rollout, result.name)

    async def _prepared(self, rollout: Rollout, name: str) -> AnyFact:
        place = Place.of(self._catalog.release(name))
        if failures := await self._hooks.run(Stage.BEFORE_ROLLOUT, rollout, place, name=name):
            return StagingFailed(failure=failures[0])
        preload = self._catalog.release(name).config.worker.preload
        return Staged(release=name, canary_hook=bool(self._hooks.find(Stage.AFTER_CANARY, place)), preload=preload)

    def request(self, rollout: Rollout) -> StageRequest:
        """What a deploy was asked to stage."""
        row = self._store.row("SELECT request FROM rollouts WHERE id = ?", rollout.id)
        assert row is not None
        return msgspec.json.decode(row["request"], type=StageRequest)

    def _emit_staged(self, result: StageResult) -> None:
        self._store.emit(
            "release.staged",
            release=result.name,
            source=result.source,
            commit=result.commit,
            subject=result.subject,
            files=result.files,
            bytes=result.bytes,
            seconds=round(result.seconds, 3),
            environment=result.environment,
            warnings=result.warnings,
        )

    # The canary, and before

    async def _preflight(self, rollout: Rollout) -> AnyFact:
        assert rollout.release is not None
        began = time.monotonic()
        release = self._catalog.release(rollout.release)
        found = await self._templates.prepare(release, rollout.target) or await self._checked(rollout, release)
        if isinstance(found, Failure):
            return PreflightFailed(failure=found)
        seconds = round(time.monotonic() - began, 3)
        self._store.emit("preflight.passed", release=release.name, seconds=seconds, checks=found.checks)
        if found.worker is not None:
            self._pool.move(found.worker, min(rollout.slots), self._listeners)
        return PreflightPassed()

    async def _checked(self, rollout: Rollout, release: Release) -> Failure | preflight.Passed:
        try:
            return await preflight.check(
                self._pool, rollout.target, release, self._listeners, self._layout.run, min(rollout.slots)
            )
        except OSError as error:
            what = f"cannot start the preflight worker of {release.name}"
            return Failure(reason="worker_exit", what=what, cause=str(error))

    async def _soak(self, rollout: Rollout) -> AnyFact:
        """The canary lives beside the worker it is to replace; its death is heard by the supervisor."""
        assert rollout.release is not None
        release = self._catalog.release(rollout.release)
        seconds = parse_duration(release.config.rollout.soak)
        if rollout.kind is Kind.DEPLOY and seconds > 0:  # what a rollback goes to was proven when it was live
            self._store.emit("soak.started", seconds=seconds)
            failure = await Soak(self._store, self._pool, rollout, release).watch()
            if failure is not None:
                return NewFailed(slot=min(rollout.slots), failure=failure)
        if failures := await self._hooks.run(Stage.AFTER_CANARY, rollout, Place.of(release)):
            return NewFailed(slot=min(rollout.slots), failure=failures[0])
        return SoakPassed()

    # Going live

    async def _promote(self, rollout: Rollout) -> AnyFact:
        """`current` moves before the database says so: done twice, it is the same."""
        assert rollout.release is not None
        while True:
            try:
                current.promote(self._layout, rollout.release)
                return Promoted()
            except DiskError as error:  # a full disk; the new release serves already
                log.error("rollout.cannot_move_current", error=str(error))
                await asyncio.sleep(PROMOTE_RETRY_S)

    # After the end is decided

    async def _finish(self, rollout: Rollout) -> AnyFact:
        """The new release is live, whatever happens here."""
        if rollout.kind not in HOOKED or is_dev(self._name(rollout)):
            return Finished()
        stage = Stage.AFTER_ROLLBACK if rollout.kind is Kind.ROLLBACK else Stage.AFTER_ROLLOUT
        failures = await self._hooks.run(stage, rollout, self._place(rollout))
        return Finished(warnings=(*map(told, failures), *await self._clean_up()))

    def has_last_words(self, rollout: Rollout) -> bool:
        """Whether there are hooks to tell that the rollout failed, and nobody told them before."""
        failed = rollout.phase in (Phase.FAILED, Phase.REVERTED, Phase.HELD) and rollout.kind in HOOKED
        return failed and self._hooks.due(Stage.ON_FAILURE, rollout, self._place(rollout))

    async def last_words(self, rollout: Rollout) -> list[str]:
        failures = await self._hooks.run(Stage.ON_FAILURE, rollout, self._place(rollout), name=self._name(rollout))
        return [told(failure) for failure in failures]

    def _place(self, rollout: Rollout) -> Place:
        name = self._name(rollout)
        try:
            release = self._catalog.release(name)
        except NoSuchReleaseError:  # it was never staged
            return Place.before(self.request(rollout))
        return Place.of(release)

    def _name(self, rollout: Rollout) -> str:
        return rollout.release or self.request(rollout).name


def told(failure: Failure) -> str:
    """As one line, where it is only a warning."""
    return failure.what if failure.cause is None else f"{failure.what}: {failure.cause}"


def _failure(problem: Problem) -> Failure:
    return Failure(
        reason=problem.reason,
        what=problem.what,
        cause=problem.cause,
        hint=problem.hint,
        tail=tuple(problem.tail),
        exit=int(problem.exit),
    )
