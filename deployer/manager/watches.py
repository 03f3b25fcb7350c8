"""`deployer watch`, and the deploy that waits for its fix: from what is saved to the rollouts it leads to.

There is one watch at most. What it is lies in `meta`, and the next manager goes on with it. A save that comes while a
rollout is under way supersedes it as long as no slot is left to the new release alone; else it waits for the end. The
newest counts: what a snapshot holds is what is on disk when it is made, so no save is lost by those that are skipped.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from deployer.clock import uptime
from deployer.config.load import Loaded
from deployer.errors import BusyError, DeployerError, Exit
from deployer.manager import staging
from deployer.manager.commands import Commands
from deployer.manager.driver import Driver
from deployer.manager.lookout import Lookout
from deployer.manager.occasion import FILES_TOLD, Occasion, Watch, WatchKind
from deployer.manager.requests import Requests, Source
from deployer.manager.saves import Saves
from deployer.osutil.process import open_pidfd, start_ticks
from deployer.osutil.tasks import watched
from deployer.releases.catalog import Catalog
from deployer.releases.release import is_dev as is_save
from deployer.releases.request import Development, Directory, StageRequest, StageResult
from deployer.rollout.machine import FINAL, WORKING, Kind, Phase, Rollout
from deployer.state.store import NO_ROLLOUT, Store
from deployer.units import parse_duration
from deployer.watch.protocol import Fault, Saved, Settings
from deployer.wire.schema import DeployRequest, Problem, RollbackRequest, RolloutInfo, WatchInfo, WatchRequest
from deployer.workers.worker import Worker

SUPERSEDED_IN = frozenset({Phase.STAGING, Phase.PREFLIGHT, Phase.CANARY, Phase.SOAKING})
"""Phases that a newer save ends: every slot has its old worker still."""
ASIDE = f"v{2**62 - 1}"  # what a look is staged as, and not kept
PROVEN_S = 3.0  # a worker of a save that dies sooner, once live, takes its save back
START = Saved(files=[], count=0, at=0.0)
"""Not a save: what is on disk when nobody has watched."""

log = structlog.get_logger()


class Watches:
    """`on_own_end` is called when a watch is over for which the cluster was started."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        driver: Driver,
        commands: Commands,
        requests: Requests,
        saves: Saves,
        root: str,
        on_own_end: Callable[[], object],
    ) -> None:
        self._store, self._catalog, self._driver, self._commands = store, catalog, driver, commands
        self._requests, self._saves, self._root, self._on_own_end = requests, saves, root, on_own_end
        self._watch: Watch | None = None
        self._lookout: Lookout | None = None
        self._crashed: str | None = None
        self._holder: int | None = None  # pidfd
        self._superseded: int | None = None  # the rollout that was told to give way last

    # Commands

    def start(self, request: WatchRequest) -> WatchInfo:
        """Watch for saves. DeployerError where there is nothing to watch, or somebody does already.

        A command that asks again, since the manager before died before it had answered, has its watch already.
        """
        watch = self._watch
        if watch is not None and watch.request is not None:
            info = self.info()
            same = (request.holder, start_ticks(request.holder)) == (watch.request.holder, watch.holder_ticks)
            if info is not None and same:
                return info
            since = time.strftime("%H:%M:%S", time.localtime(watch.since))
            raise BusyError(
                f"{watch.path} is watched already, by {watch.who} since {since}",
                cause="there is one watch at most",
                hint="stop that one: q in its terminal",
            )
        loaded = self._requests.reload()
        source = self._requests.source(DeployRequest(who=request.who, path=request.path), loaded)
        path = _directory(source, loaded)
        ticks = start_ticks(request.holder)
        if ticks is None:
            raise DeployerError("the command that asks has ended", exit_code=Exit.USAGE, reason="usage")
        if watch is not None:
            self.stop("a watch of every save begins")
        self._begin(
            Watch(
                id=self._next_id(),
                kind=WatchKind.DEV,
                path=path,
                who=request.who,
                since=time.time(),
                request=msgspec.structs.replace(request, path=path),
                holder_ticks=ticks,
            )
        )
        info = self.info()
        assert info is not None
        return info

    def stop(self, why: str) -> None:
        """End the watch; nothing where there is none. What serves goes on."""
        watch, rollout = self._watch, self._driver.rollout
        if watch is None:
            return
        lookout, self._lookout = self._lookout, None
        self._watch, self._crashed = None, None
        with self._store.transaction():
            self._store.put("watch", None)
            if watch.active:
                self._store.emit("watch.ended", rollout=NO_ROLLOUT, watch=watch.id, why=why)
        log.info("watch.ended", watch=watch.id, why=why)
        self._let_go_of_holder()
        if rollout is not None and rollout.phase in WORKING and self._is_ours(rollout, watch):
            self._driver.abort(watch.who)
        if lookout is not None:
            lookout.close()
        if watch.kind is WatchKind.DEV:
            self._saves.end()
            if watch.request is not None and watch.request.own:
                self._on_own_end()

    def again(self, who: str) -> RolloutInfo:
        """Deploy what is on disk, even if it is what is live."""
        self._dev()
        if self._driver.rollout is not None:
            raise BusyError("a save is on its way", hint="wait for it")
        return self._commands.info(self._begin_save(START, force=True, who=who))

    def back(self, who: str) -> RolloutInfo:
        """To the save before the one that is live."""
        watch = self._dev()
        if self._driver.rollout is not None:
            raise BusyError("a save is on its way", hint="wait for it")
        before = self._catalog.save_before(self._store.get("release"))
        if before is None:
            raise DeployerError("there is no save before this one", exit_code=Exit.OK, reason="nothing_before")
        return self._commands.info(self._go_back(watch, before, who))

    def info(self) -> WatchInfo | None:
        watch, lookout = self._watch, self._lookout
        if watch is None or lookout is None or not watch.active:
            return None
        return WatchInfo(
            id=watch.id,
            kind=watch.kind,
            path=watch.path,
            mode=lookout.watching.mode if lookout.watching else None,
            directories=lookout.watching.directories if lookout.watching else 0,
            who=watch.who,
            since=watch.since,
            saves=lookout.saves,
            rollout=watch.rollout,
        )

    # The beginning of a manager

    def resume(self) -> None:
        """Go on with the watch of the manager before, if its command is still there."""
        found = self._store.get("watch")
        if found is not None:
            self._begin(msgspec.convert(found, Watch), resumed=True)

    # A deploy that may have to wait for its fix

    def arm(self, number: int, request: DeployRequest, source: Source) -> None:
        """A deploy begins that is to be held if it fails: what is saved from its snapshot on may be the fix."""
        if self._watch is not None and self._watch.kind is WatchKind.DEV:
            return  # whose saves go live anyway
        if self._watch is not None or not isinstance(source, Directory):
            return  # it is for a fix; or nobody edits there
        path = _place(source, self._requests.directory)
        self._begin(
            Watch(
                id=self._next_id(),
                kind=WatchKind.HEAL,
                path=path,
                who=request.who,
                since=time.time(),
                message=request.message,
                rollout=number,
                active=False,
            )
        )

    def disarm(self) -> None:
        """Somebody decides by hand what is to be live."""
        if self._watch is not None and self._watch.kind is WatchKind.HEAL:
            self.stop("another deploy or rollback was asked for")

    # Staging

    async def stage(self, request: StageRequest, on_progress: Callable[[str], None]) -> StageResult | Problem:
        """By who watches the source, where somebody does."""
        watch, lookout = self._watch, self._lookout
        if watch is None or lookout is None or not _is_of(request, watch):
            return await staging.stage(request, on_progress)
        return await lookout.stage(request, on_progress)

    # What happens

    def on_decided(self, rollout: Rollout) -> None:
        """A rollout has an outcome; it may be held."""
        watch, lookout = self._watch, self._lookout
        if watch is None or lookout is None:
            return
        ours = self._is_ours(rollout, watch)
        if watch.kind is WatchKind.DEV:
            if ours:
                self._saves.tidy(rollout)
                lookout.follow_settings()
        elif ours or rollout.id == watch.rollout:
            self._heal(watch, lookout, rollout)
        elif rollout.phase is Phase.PROMOTED and rollout.kind in (Kind.DEPLOY, Kind.ROLLBACK):
            self.stop(f"{rollout.release} is live")

    def on_death(self, worker: Worker) -> None:
        """A worker that was live died by itself."""
        live = self._store.get("release")
        young = worker.ready_at is not None and uptime() - worker.ready_at < PROVEN_S
        if self.is_dev() and young and live is not None and worker.release.name == live and is_save(live):
            self._crashed = live
            self.advance()

    def advance(self) -> None:
        """Begin what is due, when its turn has come. Call it whenever something has changed."""
        watch, lookout, rollout = self._watch, self._lookout, self._driver.rollout
        if watch is None or lookout is None or not watch.active or self._commands.is_engaged:
            return
        if lookout.unseen and lookout.is_ready:
            lookout.unseen = False
            self._catch_up(watch, lookout)
        if lookout.pending is not None and lookout.is_ready:
            if rollout is None:
                self._begin_pending(watch, lookout, lookout.pending)
            elif self._superseded != rollout.id and self._may_supersede(rollout, watch):
                self._superseded = rollout.id
                self._driver.abort("a newer save", superseded=True)
        elif rollout is None and self._crashed is not None:
            self._fall_back(watch, self._crashed)

    # Private: the watch

    def _begin(self, watch: Watch, *, resumed: bool = False) -> None:
        if watch.request is not None and not self._hold(watch.request.holder, watch.holder_ticks):
            self._watch = watch
            self.stop("the command that showed it has ended")
            return
        self._watch = watch
        self._store.put("watch", msgspec.to_builtins(watch))
        if watch.kind is WatchKind.DEV:
            self._saves.begin()
        unseen = watch.kind is WatchKind.DEV or resumed
        self._lookout = Lookout(self._store, watch, lambda: self._settings(watch), self.advance, unseen=unseen)

    def _settings(self, watch: Watch) -> Settings:
        config = self._requests.config()
        section, request = config.watch, watch.request or WatchRequest(who=watch.who, holder=0)
        return Settings(
            path=watch.path,
            root=self._root,
            paths=request.paths or section.paths,
            ignore=[*section.ignore, *request.ignore],
            extensions=request.extensions or section.extensions,
            settle_s=parse_duration(request.settle or section.settle),
            poll_s=None if request.poll is None else parse_duration(request.poll),
            include=config.source.include,
            exclude=config.source.exclude,
        )

    def _next_id(self) -> int:
        number = int(self._store.get("last_watch", 0)) + 1
        self._store.put("last_watch", number)
        return number

    def _dev(self) -> Watch:
        if self._watch is None or self._watch.kind is not WatchKind.DEV:
            raise DeployerError("no watch runs", hint="deployer watch", exit_code=Exit.USAGE, reason="no_watch")
        return self._watch

    def is_dev(self) -> bool:
        """Does every save go live?"""
        return self._watch is not None and self._watch.kind is WatchKind.DEV

    def _hold(self, pid: int, ticks: int) -> bool:
        """Hear of the end of the command that the watch is for; False: it has ended."""
        self._holder = open_pidfd(pid, ticks)
        if self._holder is None:
            return False
        asyncio.get_running_loop().add_reader(self._holder, self.stop, "the command that showed it has ended")
        return True

    def _let_go_of_holder(self) -> None:
        if self._holder is not None:
            asyncio.get_running_loop().remove_reader(self._holder)
            os.close(self._holder)
            self._holder = None

    # Private: rollouts

    def _is_ours(self, rollout: Rollout, watch: Watch) -> bool:
        row = self._store.row("SELECT watch FROM rollouts WHERE id = ?", rollout.id)
        return row is not None and row["watch"] == watch.id

    def _may_supersede(self, rollout: Rollout, watch: Watch) -> bool:
        if not (self._is_ours(rollout, watch) or rollout.id == watch.rollout):
            return False
        if rollout.kind is not Kind.DEPLOY or rollout.phase in FINAL:
            return False
        return rollout.phase in SUPERSEDED_IN or rollout.phase is Phase.HELD

    def _begin_pending(self, watch: Watch, lookout: Lookout, saved: Saved) -> None:
        lookout.pending = None
        try:
            self._begin_save(saved, force=False, who=watch.who)
        except DeployerError as error:  # deployer.toml is part of what is being edited
            log.warning("watch.cannot_begin", what=error.what)
            lookout.tell_fault(Fault(what=error.what, cause=error.cause, hint="fix and save"))

    def _begin_save(self, saved: Saved, *, force: bool, who: str) -> int:
        watch = self._watch
        assert watch is not None
        occasion = Occasion(
            watch=watch.id,
            files=saved.files[:FILES_TOLD],
            saved_at=saved.at if saved.count else None,
            fixes=watch.rollout,
        )
        if watch.kind is WatchKind.HEAL:
            request = DeployRequest(who=who, path=watch.path, message=watch.message, watch=True)
            return self._commands.begin_deploy(request, occasion=occasion)
        assert watch.request is not None
        return self._commands.begin_deploy(
            DeployRequest(who=who, path=watch.path, force=force),
            occasion=occasion,
            development=Development(stop_signal=watch.request.signal, reload=watch.request.reload),
            workers=watch.request.workers,
        )

    def _fall_back(self, watch: Watch, crashed: str) -> None:
        """The live save is no good after all."""
        self._crashed = None
        before = self._catalog.save_before(crashed)
        if before is None or self._store.get("release") != crashed:
            return
        self._catalog.end(crashed, "bad", "crash")
        self._go_back(watch, before, watch.who, f"{crashed} crashed")

    def _go_back(self, watch: Watch, before: str, who: str, message: str | None = None) -> int:
        request = RollbackRequest(who=who, release=before, message=message)
        return self._commands.begin_rollback(request, occasion=Occasion(watch=watch.id))

    # Private: healing

    def _heal(self, watch: Watch, lookout: Lookout, rollout: Rollout) -> None:
        """The deploy, or what was to be its fix, has an outcome."""
        if rollout.phase in (Phase.PROMOTED, Phase.UNCHANGED):
            self.stop(f"{rollout.release or self._store.get('release')} is live")
            return
        failed = watch.failed if rollout.release is None else rollout.release
        self._watch = msgspec.structs.replace(watch, failed=failed, active=True)
        self._store.put("watch", msgspec.to_builtins(self._watch))
        lookout.open()
        asyncio.get_running_loop().call_soon(self.advance)

    def _catch_up(self, watch: Watch, lookout: Lookout) -> None:
        """Nobody has watched for a while."""
        if watch.kind is WatchKind.DEV:
            lookout.pending = lookout.pending or START
        else:
            watched(self._look(watch, lookout))

    async def _look(self, watch: Watch, lookout: Lookout) -> None:
        """Has anything changed since what failed was staged?"""
        digest, _ = self._catalog.digests(watch.failed)
        if digest is not None and await self._is_still(digest, watch):
            return
        lookout.pending = lookout.pending or START
        self.advance()

    async def _is_still(self, digest: str, watch: Watch) -> bool:
        """Is this what lies there? Also where nobody can say: what is wrong is told when a deploy is tried."""
        request = DeployRequest(who=watch.who, path=watch.path)
        try:
            loaded = self._requests.reload()
            wanted = self._requests.stage(request, loaded, self._requests.source(request, loaded), ASIDE)
        except DeployerError as error:
            log.warning("watch.cannot_look", what=error.what)
            return True
        wanted = msgspec.structs.replace(wanted, dry_run=True, live_digest=digest, live_settings=None)
        found = await staging.stage(wanted, lambda text: None)
        return isinstance(found, Problem) or found.outcome == "same"


def _directory(source: Source, loaded: Loaded) -> str:
    if not isinstance(source, Directory):
        raise DeployerError(
            "only a directory can be watched",
            cause="[source] in deployer.toml names something else",
            hint="deployer watch DIR",
            exit_code=Exit.USAGE,
            reason="usage",
        )
    path = _place(source, loaded.directory)
    if not os.path.isdir(path):
        raise DeployerError(
            f"{path} is not a directory", hint="deployer watch DIR", exit_code=Exit.USAGE, reason="usage"
        )
    return path


def _is_of(request: StageRequest, watch: Watch) -> bool:
    """Is it the watch's source that is to be staged?"""
    if not isinstance(request.source, Directory):
        return False
    return _place(request.source, request.directory) == watch.path


def _place(source: Directory, base: str | Path) -> str:
    """Absolute; `base` is the directory of deployer.toml."""
    return os.path.normpath(os.path.join(base, os.path.expanduser(source.path)))
