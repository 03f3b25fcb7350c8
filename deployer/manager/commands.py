"""Every command that changes what runs: deploy, rollback, restart, scale, abort. One rollout at a time; the others wait
their turn, take over, or are refused, as they asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from deployer.config.model import Config
from deployer.errors import BusyError, DeployerError, Exit
from deployer.manager.driver import Driver
from deployer.manager.hooks import Hooks
from deployer.manager.occasion import Occasion
from deployer.manager.queue import Queue, Waiting
from deployer.manager.requests import Requests, Source, label, origin, policy, refuse_to_watch
from deployer.manager.supervisor import Supervisor
from deployer.manager.templates import Templates, standby_seconds
from deployer.manager.views import Views
from deployer.releases.catalog import Catalog
from deployer.releases.request import Development
from deployer.rollout.events import Failure
from deployer.rollout.machine import PAST_TURNING, Kind, Phase, Rollout
from deployer.state.store import Store
from deployer.wire.schema import (
    AbortRequest,
    Command,
    DeployRequest,
    RestartRequest,
    RollbackRequest,
    RolloutInfo,
    ScaleRequest,
)

log = structlog.get_logger()


class Commands:
    """What follows from a command is done by the driver and the supervisor."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        driver: Driver,
        supervisor: Supervisor,
        views: Views,
        queue: Queue,
        requests: Requests,
        templates: Templates,
        hooks: Hooks,
    ) -> None:
        self._templates = templates
        self._store, self._catalog, self._driver, self._supervisor = store, catalog, driver, supervisor
        self._views, self._queue, self._requests, self._hooks = views, queue, requests, hooks
        self.on_staging: Callable[[], None] = lambda: None
        self.is_watched: Callable[[], bool] = lambda: False  # by `deployer watch`
        self.on_command: Callable[[], None] = lambda: None  # somebody decides what is to be live
        self.on_deploy: Callable[[int, DeployRequest, Source], None] = lambda number, request, source: None

    @property
    def is_engaged(self) -> bool:
        """Is it nobody else's turn: others wait, or the supervisor stops?"""
        return self._supervisor.stopping or bool(self._queue.numbers())

    def deploy(self, request: DeployRequest) -> RolloutInfo:
        if request.watch and self.is_watched():
            cause = "one watch at a time, and saves go live by that one"
            raise BusyError("`deployer watch` runs already", cause=cause, hint="deployer deploy, without --watch")
        return self._once(request, lambda: self._take_turn(Kind.DEPLOY, request))

    def rollback(self, request: RollbackRequest) -> RolloutInfo:
        return self._once(request, lambda: self._take_turn(Kind.ROLLBACK, request))

    def restart(self, request: RestartRequest) -> RolloutInfo:
        return self._once(request, lambda: self._restart(request))

    def scale(self, request: ScaleRequest) -> RolloutInfo:
        return self._once(request, lambda: self._scale(request))

    def abort(self, request: AbortRequest) -> RolloutInfo:
        """Turn back what runs, or take out what waits."""
        number, rollout = request.rollout, self._driver.rollout
        if number is not None and self._queue.place(number) is not None:
            self._queue.drop(number, Failure(reason="aborted", what=f"taken out of the queue by {request.who}"))
            return self.info(number)
        if rollout is None or (number is not None and (request.waiting or number != rollout.id)):
            what = "no rollout is running" if number is None else f"rollout {number} is not running, nor does it wait"
            raise DeployerError(what, hint="deployer status", exit_code=Exit.OK, reason="nothing_to_abort")
        if rollout.phase in PAST_TURNING:
            raise BusyError("too late to abort: the new release is being promoted", hint="deployer rollback")
        self.on_command()
        self._driver.abort(request.who)
        return self.info(rollout.id)

    # Turns

    def _once(self, request: Command, do: Callable[[], RolloutInfo]) -> RolloutInfo:
        """A command whose manager died before it answered is asked again: if it was begun, this tells of it."""
        if request.key is None:
            return do()
        known = self._store.row("SELECT id FROM rollouts WHERE command = ?", request.key)
        if known is not None:
            return self.info(known["id"])
        with self._store.transaction():
            info = do()
            self._store.update("rollouts", "id", info.id, command=request.key)
        return info

    def next(self) -> None:
        """Begin the rollout whose turn it is, when none runs. One that cannot begin ends, and the next has its turn."""
        while self._driver.rollout is None and not self._supervisor.stopping and (waiting := self._queue.numbers()):
            kind, request = self._queue.command(waiting[0])
            try:
                self._begin(kind, request, number=waiting[0])
            except DeployerError as error:
                log.warning("rollout.cannot_begin", rollout=waiting[0], what=error.what)
                self._queue.drop(waiting[0], _failure(error))
            else:
                self._queue.tell_places()

    def send_away(self) -> None:
        """The supervisor stops: nobody who waits has a turn any more."""
        for number in self._queue.numbers():
            self._queue.drop(number, Failure(reason="stopped", what="the supervisor is being stopped"))

    def _take_turn(self, kind: Kind, request: Waiting) -> RolloutInfo:
        self._refuse_if_stopping()
        if self._driver.rollout is None and not self._queue.numbers():
            return self.info(self._begin(kind, request))
        if not (request.queue or request.supersede):
            self._refuse_if_busy()
        self._check(request)
        behind = self._behind()
        with self._store.transaction():
            if request.supersede:
                self._supersede_waiting(request.who)
            number = self._queue.add(kind, request, behind=behind)
        if request.supersede:
            self._supersede_running(request.who)
        return self.info(number)

    def _check(self, request: Waiting) -> None:
        """What is wrong already is told now, and not when its turn comes. Raises DeployerError."""
        if isinstance(request, DeployRequest):
            loaded = self._requests.reload()
            refuse_to_watch(request, self._requests.source(request, loaded))
        elif request.release or request.commit:
            self.target(request, None)

    def _supersede_waiting(self, who: str) -> None:
        for number in self._queue.numbers():
            self._queue.drop(number, Failure(reason="superseded", what=f"superseded by {who} before it began"))

    def _supersede_running(self, who: str) -> None:
        """What is past turning back is waited for: so is a revert that is under way."""
        rollout = self._driver.rollout
        if rollout is not None and rollout.phase not in PAST_TURNING and rollout.phase is not Phase.REVERTING:
            self._driver.abort(who, superseded=True)

    def _behind(self) -> str:
        rollout = self._driver.rollout
        if rollout is None:
            return "others that wait"
        return f"{rollout.kind} {rollout.release or ''}".strip() + f" (rollout {rollout.id})"

    # Beginnings. `number` is that of a rollout that waited.

    def _begin(self, kind: Kind, request: Waiting, number: int | None = None) -> int:
        self.on_command()
        if isinstance(request, DeployRequest):
            return self.begin_deploy(request, number)
        return self.begin_rollback(request, number)

    def begin_deploy(
        self,
        request: DeployRequest,
        number: int | None = None,
        *,
        occasion: Occasion | None = None,
        development: Development | None = None,
        workers: int | None = None,
    ) -> int:
        """`development`: it is for a save, which goes live at once when it comes up. `workers`: how many there are to
        be where nothing is live yet."""
        loaded = self._requests.reload()
        source = self._requests.source(request, loaded)
        refuse_to_watch(request, source)
        self.on_staging()
        knobs = policy(loaded.config, watch=request.watch)
        with self._store.transaction():
            count, next_count = self.count_for(loaded.config)
            if workers is not None and self._store.get("count") is None:
                count = next_count = workers
            if development is not None:
                knobs = msgspec.structs.replace(knobs, soak=False, batch=count, hold=False)
            name = self._catalog.open(
                source=label(source),
                origin=origin(source),
                who=request.who,
                message=request.message,
                dev=development is not None,
            )
            stage = self._requests.stage(request, loaded, source, name)
            self._store.put("next_config", msgspec.to_builtins(loaded.config))
            self._store.put("next_count", next_count)
            begun = self._driver.start(
                Kind.DEPLOY,
                number=number,
                occasion=occasion,
                request=msgspec.to_builtins(msgspec.structs.replace(stage, development=development)),
                who=request.who,
                message=request.message,
                slots=range(1, count + 1),
                policy=knobs,
                previous=self._supervisor.promoted,
            )
        if knobs.hold:
            self.on_deploy(begun, request, source)
        return begun

    def begin_rollback(
        self, request: RollbackRequest, number: int | None = None, *, occasion: Occasion | None = None
    ) -> int:
        live: str | None = self._store.get("release")
        name = self.target(request, live)
        if name == live:
            return self._driver.record_unchanged(
                Kind.ROLLBACK, number=number, who=request.who, message=request.message, done=False
            )
        release = self._catalog.release(name)
        knobs = msgspec.structs.replace(policy(release.config), soak=False)  # it was proven when it was live
        if self._templates.ready(name):  # on standby: its workers are there in the time of a fork
            knobs = msgspec.structs.replace(knobs, preflight=False, batch=max(knobs.batch, self._supervisor.count))
        return self._driver.start(
            Kind.ROLLBACK,
            number=number,
            occasion=occasion,
            request={"release": name},
            who=request.who,
            message=request.message,
            slots=range(1, self._supervisor.count + 1),
            release=name,
            policy=self._hooks.shape(knobs, release),
            previous=self._supervisor.promoted,
        )

    def _restart(self, request: RestartRequest) -> RolloutInfo:
        self._refuse_if_busy()
        live = self._requests.live("restart")
        knobs = msgspec.structs.replace(policy(self._catalog.release(live).config), soak=False, preflight=False)
        return self._start(
            Kind.RESTART,
            request={},
            who=request.who,
            message=request.message,
            slots=range(1, self._supervisor.count + 1),
            release=live,
            policy=knobs,
        )

    def _scale(self, request: ScaleRequest) -> RolloutInfo:
        """Growing is a rollout of the slots that are added; shrinking cannot fail and is done at once."""
        self._refuse_if_busy()
        live, count = self._requests.live("scale"), self._supervisor.count
        if not 1 <= request.count <= 512:
            raise DeployerError(
                f"cannot scale to {request.count}: 1 to 512 workers", exit_code=Exit.USAGE, reason="usage"
            )
        message = f"{count} -> {request.count} workers"
        if request.count <= count:
            self._store.put("count", request.count)
            self._supervisor.wake()
            return self._unchanged(Kind.SCALE, request.who, message, done=request.count < count)
        return self._start(
            Kind.SCALE,
            request={"count": request.count},
            who=request.who,
            message=message,
            slots=range(count + 1, request.count + 1),
            release=live,
            target=self._supervisor.promoted,
            previous=None,
            policy=policy(self._catalog.release(live).config),
        )

    def target(self, request: RollbackRequest, live: str | None) -> str:
        if request.release and request.commit:
            raise DeployerError(
                f"{request.release} and --to-commit both name a release", exit_code=Exit.USAGE, reason="usage"
            )
        if request.commit:
            return self._catalog.of_commit(request.commit)
        return self._catalog.target(request.release) if request.release else self._catalog.last_good(live)

    def _start(self, kind: Kind, **arguments: Any) -> RolloutInfo:
        arguments.setdefault("previous", self._supervisor.promoted)
        return self.info(self._driver.start(kind, **arguments))

    def _unchanged(self, kind: Kind, who: str, message: str | None, *, done: bool) -> RolloutInfo:
        """A finished rollout that had nothing to roll."""
        with self._store.transaction():
            return self.info(self._driver.record_unchanged(kind, who=who, message=message, done=done))

    def info(self, number: int) -> RolloutInfo:
        info = self._views.rollout(number)
        assert info is not None
        return info

    def _refuse_if_stopping(self) -> None:
        if self._supervisor.stopping:
            raise BusyError("the supervisor is stopping", hint="deployer up")

    def _refuse_if_busy(self) -> None:
        self._refuse_if_stopping()
        rollout = self._driver.rollout
        if rollout is None:
            if self._queue.numbers():
                raise BusyError("other rollouts wait for their turn", hint="deployer status")
            return
        info = self.info(rollout.id)
        since = time.strftime("%H:%M:%S", time.localtime(info.started_at))
        name = f"{info.kind} {info.release or ''}".strip()
        if rollout.phase is Phase.HELD:
            raise BusyError(
                f"{name} (rollout {info.id}) is held for inspection since {since}, started by {info.who}",
                cause=info.problem.what if info.problem else None,
                hint="deployer deploy --abort",
            )
        raise BusyError(
            f"{name} (rollout {info.id}) is running, started by {info.who} at {since}",
            cause=f"one rollout at a time; this one is {info.phase}",
            hint="deployer follow",
        )

    # Numbers of workers, and what a promotion makes true

    def count_for(self, config: Config) -> tuple[int, int | None]:
        """(slots to roll, what `count` becomes at promotion or None). What `scale` said stays, until deployer.toml
        itself says something new."""
        wanted = _configured(config)
        if self._store.get("count") is None or self._store.get("config_count") != wanted:
            return wanted if self._store.get("count") is None else min(wanted, self._supervisor.count), wanted
        return self._supervisor.count, None

    def on_promoted(self, rollout: Rollout) -> None:
        """In the transaction that promotes: what is live from now on."""
        assert rollout.release is not None
        if rollout.kind is Kind.SCALE:
            self._store.put("count", max(rollout.slots))
            return
        if rollout.kind is not Kind.RESTART:
            previous = self._store.get("release")
            self._catalog.promoted(rollout.release, previous, back=rollout.kind is Kind.ROLLBACK)
            if previous is not None and previous != rollout.release:
                release = self._catalog.release(rollout.release)
                self._templates.stand_by(previous, standby_seconds(release))
        self._store.put("promoted", rollout.target)
        self._store.put("release", rollout.release)
        if rollout.kind is Kind.DEPLOY:
            config = self._store.get("next_config")
            self._store.put("config", config)
            wanted = self._store.get("next_count")
            if wanted is not None:
                self._store.put("count", wanted)
                self._store.put("config_count", _configured(msgspec.convert(config, Config)))


def _configured(config: Config) -> int:
    return usable_cpus() if config.worker.count == "auto" else config.worker.count


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _failure(error: DeployerError) -> Failure:
    return Failure(reason=error.reason, what=error.what, cause=error.cause, hint=error.hint, exit=int(error.exit_code))
