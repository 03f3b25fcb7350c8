"""`--dry-run`: what a deploy or a rollback would do. Fetches and compares aside; uses up no number, row or release."""

from __future__ import annotations

import asyncio

import msgspec

from deployer.errors import BusyError, DeployerError, Exit
from deployer.manager.cleanup import CleanUp
from deployer.manager.commands import Commands
from deployer.manager.driver import Driver
from deployer.manager.requests import Requests
from deployer.manager.staging import stage
from deployer.manager.supervisor import Supervisor
from deployer.releases import settings
from deployer.releases.catalog import Catalog
from deployer.releases.request import StageRequest, StageResult
from deployer.rollout.machine import Phase
from deployer.state.store import Store
from deployer.wire.schema import Changes, DeployRequest, Plan, Problem, RollbackRequest

NAME = f"v{2**62}"  # aside of all releases there will ever be: a dry run leaves nothing under it


class Planner:
    """One plan at a time, and none while a release is being staged: they share the git mirror."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        driver: Driver,
        supervisor: Supervisor,
        requests: Requests,
        cleanup: CleanUp,
        commands: Commands,
    ) -> None:
        self._store, self._catalog, self._driver, self._supervisor = store, catalog, driver, supervisor
        self._requests, self._cleanup, self._commands = requests, cleanup, commands
        self._turn = asyncio.Lock()
        self._job: asyncio.Task[StageResult | Problem] | None = None

    def give_way(self) -> None:
        """A real deploy begins."""
        if self._job is not None:
            self._job.cancel()

    async def deploy(self, request: DeployRequest) -> Plan:
        async with self._turn:
            rollout = self._driver.rollout
            if rollout is not None and rollout.phase is Phase.STAGING:
                raise _busy()
            loaded = self._requests.reload()
            wanted = self._requests.stage(request, loaded, self._requests.source(request, loaded), NAME)
            found = await self._stage(msgspec.structs.replace(wanted, dry_run=True))
        if isinstance(found, Problem):
            raise _error(found)
        live: str | None = self._store.get("release")
        before = None if live is None else self._catalog.release(live)
        unchanged = found.outcome == "same"
        return Plan(
            kind="deploy",
            source=found.source,
            commit=found.commit,
            subject=found.subject,
            release=None,
            live=live,
            unchanged=unchanged,
            files=found.files_changed or Changes(),
            env=settings.compare_env({} if before is None else before.env, found.env),
            config=settings.compare_config(None if before is None else before.config, found.config),
            slots=[] if unchanged else self._slots(self._commands.count_for(loaded.config)[0]),
            removes=[] if unchanged else self._cleanup.after(found.config.release, live, None),
            warnings=found.warnings,
        )

    def rollback(self, request: RollbackRequest) -> Plan:
        live: str | None = self._store.get("release")
        name = self._commands.target(request, live)
        env, config = self._catalog.settings_changes(live, name)
        info, keep = self._catalog.detail(name, []).info, self._catalog.release(name).config.release
        unchanged = name == live
        return Plan(
            kind="rollback",
            source=info.source,
            commit=info.commit,
            subject=info.subject,
            release=name,
            live=live,
            unchanged=unchanged,
            files=Changes(),  # both trees are on disk: the command compares them itself
            env=env,
            config=config,
            slots=[] if unchanged else self._slots(self._supervisor.count),
            removes=[] if unchanged else self._cleanup.after(keep, live, name),
        )

    async def _stage(self, request: StageRequest) -> StageResult | Problem:
        self._job = asyncio.create_task(stage(request, lambda text: None))
        try:
            return await self._job
        except asyncio.CancelledError:
            if not self._job.cancelled() or (task := asyncio.current_task()) is None or task.cancelling():
                raise  # it is we who are cancelled
            raise _busy() from None
        finally:
            self._job = None

    def _slots(self, count: int) -> list[int]:
        return list(range(1, count + 1))


def _error(problem: Problem) -> DeployerError:
    return DeployerError(
        problem.what,
        cause=problem.cause,
        hint=problem.hint,
        exit_code=Exit(problem.exit) if problem.exit in set(Exit) else Exit.BUG,
        reason=problem.reason,
    )


def _busy() -> BusyError:
    return BusyError(
        "a release is being staged: a dry run would be in its way",
        cause="both use one git mirror",
        hint="deployer follow",
    )
