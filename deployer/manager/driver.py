"""Carries one rollout out: journals each decision of `rollout.machine`, then does the work of the phase it led to."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from deployer.clock import uptime
from deployer.manager.hooks import Hooks
from deployer.manager.occasion import Occasion
from deployer.manager.soak import newest
from deployer.manager.staging import stage
from deployer.manager.supervisor import Supervisor
from deployer.manager.templates import Templates
from deployer.manager.work import CleanUp, Job, StageBy, Work, nothing_to_clean_up
from deployer.osutil.tasks import watched
from deployer.paths import Layout
from deployer.releases.catalog import Catalog
from deployer.rollout.events import Aborted, AnyFact, DeadlinePassed, Failure, Promoted
from deployer.rollout.machine import (
    FINAL,
    WORKING,
    Kind,
    Phase,
    Rollout,
    Step,
    advance,
    begin,
    exit_code,
    outcome,
    warned,
)
from deployer.state.store import Store
from deployer.units import parse_duration
from deployer.wire.schema import Problem
from deployer.workers import cut
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener

log = structlog.get_logger()


class Driver:
    """At most one rollout at a time; `rollout` is None between them. A held one stays until it is aborted."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        pool: Pool,
        supervisor: Supervisor,
        layout: Layout,
        listeners: tuple[Listener, ...],
        on_promoted: Callable[[Rollout], None],
        on_finished: Callable[[], object],
        on_decided: Callable[[Rollout], object] = lambda rollout: None,
        templates: Templates,
        hooks: Hooks,
        clean_up: CleanUp = nothing_to_clean_up,
        stage_by: StageBy = stage,
    ) -> None:
        self._store, self._catalog, self._pool, self._supervisor = store, catalog, pool, supervisor
        self._hooks, self._templates = hooks, templates
        self._work = Work(
            store=store,
            catalog=catalog,
            pool=pool,
            layout=layout,
            listeners=listeners,
            templates=templates,
            hooks=hooks,
            clean_up=clean_up,
            stage_by=stage_by,
        )
        self._on_promoted, self._on_finished, self._on_decided = on_promoted, on_finished, on_decided
        self._job: asyncio.Task[None] | None = None
        self._jobs: set[asyncio.Task[None]] = set()  # that one, and those that were cancelled and take their leave
        self._deadline: asyncio.TimerHandle | None = None
        self._started_at = 0.0
        supervisor.on_fact = self.apply

    @property
    def rollout(self) -> Rollout | None:
        return self._supervisor.rollout

    # A rollout's life

    def start(
        self,
        kind: Kind,
        *,
        request: dict[str, Any],
        who: str,
        message: str | None,
        number: int | None = None,
        occasion: Occasion | None = None,
        **machine: Any,
    ) -> int:
        """Journal a rollout and begin it; `machine` goes to `rollout.machine.begin`. `number`: one that waited."""
        previous, told = self._store.get("release"), _told(occasion)
        with self._store.transaction():
            number = self._record(
                number,
                kind=kind,
                state="{}",
                request=msgspec.json.encode(request).decode(),
                phase=Phase.STAGING,
                previous=previous,
                who=who,
                message=message,
                started_at=time.time(),
                watch=told["watch"],
            )
            machine.setdefault("target", number)
            rollout = begin(number, kind, **machine)
            self._save(rollout)
            self._store.rollout = number
            self._store.emit(
                "rollout.started",
                kind=kind,
                release=rollout.release,
                previous=previous,
                slots=sorted(rollout.slots),
                who=who,
                message=message,
                **told,
            )
            self._store.emit("rollout.phase", phase=rollout.phase)
        log.info("rollout.started", rollout=number, kind=kind, release=rollout.release, who=who)
        self._run(rollout)
        return number

    def resume(self) -> None:
        """Go on with the rollout that a dead manager left, if there is one. One whose end was decided still has to
        tell its hooks and everybody else."""
        self._hooks.end_inherited()
        final = ", ".join(f"'{phase}'" for phase in sorted(FINAL))
        unfinished = f"phase != 'queued' AND (phase NOT IN ({final}) OR finished_at IS NULL)"
        row = self._store.row(f"SELECT id, state FROM rollouts WHERE {unfinished}")  # noqa: S608
        if row is None:
            return
        self._store.rollout = row["id"]
        rollout = msgspec.json.decode(row["state"], type=Rollout)
        log.info("rollout.resumed", rollout=rollout.id, phase=rollout.phase)
        self._run(rollout)

    def record_unchanged(
        self, kind: Kind, *, who: str, message: str | None, done: bool, number: int | None = None
    ) -> int:
        """A rollout with nothing to roll, finished as it begins; `done` when something was changed all the same."""
        live, now = self._store.get("release"), time.time()
        phase = Phase.PROMOTED if done else Phase.UNCHANGED
        with self._store.transaction():
            number = self._record(
                number, kind=kind, state="{}", request="{}", phase=phase, previous=live, who=who, started_at=now
            )
            rollout = Rollout(id=number, kind=kind, phase=phase, slots={}, target=number, previous=None, release=live)
            self._save(rollout)
            self._store.update("rollouts", "id", number, message=message)
            facts = {"kind": kind, "release": live, "previous": live, "slots": [], "who": who, "message": message}
            self._store.emit("rollout.started", rollout=number, **facts)
            self._store.rollout = number
            self._finish_row(rollout)
            self._store.rollout = None
        return number

    def abort(self, by: str, *, superseded: bool = False) -> None:
        """Turn the rollout back. The caller has checked that this is still possible. When it is over but for its
        on_failure hook, that is cut short. A staging child is ended first: when the rollout says that it is over,
        nothing half-made is left."""
        rollout, job = self.rollout, self._job
        aborted = Aborted(by=by, reason="superseded" if superseded else "aborted")
        if rollout is not None and rollout.phase in FINAL:
            self._cut_last_words(by)
        elif rollout is not None and rollout.phase is Phase.STAGING and job is not None and not job.done():
            if not job.cancelling():  # cancelled once more it would not wait for its child any more
                job.add_done_callback(lambda _: self._if_staging(aborted))
                job.cancel()
        else:
            self.apply(aborted)

    def abort_now(self, by: str) -> None:
        """The same while the supervisor is being stopped: nobody waits for a staging child."""
        if self.rollout is not None and self.rollout.phase in FINAL:
            self._cut_last_words(by)
        else:
            self.apply(Aborted(by=by))

    def _if_staging(self, aborted: Aborted) -> None:
        if self.rollout is not None and self.rollout.phase is Phase.STAGING and not self._supervisor.stopping:
            self.apply(aborted)

    def halt(self) -> None:
        """The supervisor is being stopped: no work goes on."""
        self._cancel_job()
        if self.rollout is not None and self.rollout.phase in FINAL:
            self._cut_last_words("deployer down")

    async def halted(self) -> None:
        """All work is over: what was started for it has ended, and has been told."""
        if self._jobs:
            await asyncio.wait(self._jobs)

    def apply(self, fact: AnyFact) -> None:
        """The one place where a rollout changes: decide, commit, and only then act."""
        before = self.rollout
        assert before is not None
        after = advance(before, fact)
        moved = after.phase is not before.phase
        over = moved and outcome(after) is not None
        last_words = over and self._work.has_last_words(after)
        with self._store.transaction():
            encoded = msgspec.json.encode(fact).decode()
            self._store.insert("journal", rollout=after.id, at=time.time(), fact=encoded, phase=after.phase)
            self._save(after)
            self._tell(before, after)
            if isinstance(fact, Promoted):
                self._on_promoted(after)
            if over:
                self._judge(after)
            if last_words:
                self._store.update("rollouts", "id", after.id, finished_at=None)
            elif over:
                self._finish_row(after)
        log.info("rollout.fact", rollout=after.id, fact=type(fact).__name__, phase=after.phase)
        self._supervisor.rollout = after
        if over and not last_words:
            self._on_decided(after)
        if last_words:
            self._begin_job(self._last_words(after))
        elif after.phase in FINAL:
            self._leave()
        elif moved:
            self._enter(after)
        self._supervisor.wake()

    def _run(self, rollout: Rollout) -> None:
        self._supervisor.rollout = rollout
        row = self._row(rollout.id)
        self._started_at = row["started_at"]
        deadline = self._started_at + self._deadline_s(rollout) - time.time()
        self._deadline = asyncio.get_running_loop().call_later(max(0.0, deadline), self._on_deadline)
        if outcome(rollout) is not None and row["finished_at"] is None:
            self._begin_job(self._last_words(rollout))
        else:
            self._enter(rollout)
        self._supervisor.wake()

    def _leave(self) -> None:
        self._supervisor.rollout = None
        self._store.rollout = None
        self._cancel_job()
        if self._deadline is not None:
            self._deadline.cancel()
        self._on_finished()

    # What is written with each decision

    def _record(self, number: int | None, **values: Any) -> int:
        """A row of its own, or that of a rollout that waited for its turn."""
        if number is None:
            return self._store.insert("rollouts", **values)
        self._store.update("rollouts", "id", number, **values)
        return number

    def _row(self, number: int) -> sqlite3.Row:
        row = self._store.row("SELECT * FROM rollouts WHERE id = ?", number)
        assert row is not None
        return row

    def _save(self, rollout: Rollout) -> None:
        state = msgspec.json.encode(rollout).decode()
        # A held rollout that is aborted goes on, until it ends a second time.
        ended = {} if outcome(rollout) else {"outcome": None, "exit_code": None, "finished_at": None}
        self._store.update("rollouts", "id", rollout.id, state=state, phase=rollout.phase, **ended)

    def _tell(self, before: Rollout, after: Rollout) -> None:
        """Events for those who watch."""
        if after.failure is not None and before.failure is None:
            self._store.emit("rollout.failed", **msgspec.structs.asdict(after.failure))
        for slot, step in sorted(after.slots.items()):
            if step is not before.slots[slot] and step in (Step.NEW, Step.OLD):
                self._tell_moved(after, slot, back=step is Step.OLD)
        if after.phase is not before.phase and after.phase not in FINAL:
            self._store.emit("rollout.phase", phase=after.phase)

    def _tell_moved(self, rollout: Rollout, slot: int, *, back: bool) -> None:
        old, new = newest(self._pool, slot, rollout.previous), newest(self._pool, slot, rollout.target)
        leaves, stays = (new, old) if back else (old, new)
        if stays is None or (back and leaves is None):
            return
        self._store.emit(
            "slot.moved",
            slot=slot,
            old_pid=leaves.pid if leaves else None,
            new_pid=stays.pid,
            release=stays.release.name,
            seconds=round(uptime() - max(stays.spawned_at, leaves.spawned_at if leaves else 0.0), 3),
        )

    def _judge(self, rollout: Rollout) -> None:
        """What the release of a deploy that ends is worth."""
        if rollout.kind is not Kind.DEPLOY:
            return
        reason = rollout.failure.reason if rollout.failure else None
        if rollout.phase is Phase.FAILED:
            self._catalog.end(self._work.request(rollout).name, "failed", reason)
        elif rollout.phase is Phase.REVERTED and rollout.release is not None:
            undecided = reason in ("aborted", "superseded", "deadline", "inconclusive")
            self._catalog.end(rollout.release, "reverted" if undecided else "bad", reason)

    def _finish_row(self, rollout: Rollout) -> None:
        serving = self._store.get("release")
        code, end, failure, row = exit_code(rollout), outcome(rollout), rollout.failure, self._row(rollout.id)
        release = serving if rollout.phase is Phase.UNCHANGED else rollout.release
        self._store.update(
            "rollouts", "id", rollout.id, finished_at=time.time(), outcome=end, exit_code=code, serving=serving
        )
        self._store.emit(
            "rollout.finished",
            outcome=end,
            release=release,
            serving=serving,
            reason=failure.reason if failure else None,
            exit_code=code,
            seconds=round(time.time() - row["started_at"], 3),
            problem=problem_of(rollout),
            tail=list(failure.tail) if failure else [],
            warnings=self._warnings(rollout),
            cut=cut.decoded(row["cut"]),
            draining=self._supervisor.leaving(rollout),
        )
        log.info("rollout.finished", rollout=rollout.id, outcome=end, release=release, serving=serving)

    def _warnings(self, rollout: Rollout) -> list[str]:
        """What staging found odd, which is no reason for another exit code; then what went wrong afterwards."""
        odd = self._catalog.warnings(rollout.release) if rollout.kind is Kind.DEPLOY and rollout.release else []
        return [*odd, *self._templates.warnings(rollout.release), *rollout.warnings]

    # The work of each phase

    def _enter(self, rollout: Rollout) -> None:
        job = self._work.of(rollout.phase)
        if job is None:
            self._cancel_job()
        else:
            self._begin_job(self._do(rollout, job))

    async def _do(self, rollout: Rollout, job: Job) -> None:
        fact = await job(rollout)
        if self.rollout is not None and self.rollout.phase is rollout.phase:
            self.apply(fact)

    def _begin_job(self, job: Coroutine[Any, Any, None]) -> None:
        self._cancel_job()
        self._job = watched(job)
        self._jobs.add(self._job)
        self._job.add_done_callback(self._jobs.discard)

    def _cancel_job(self) -> None:
        if self._job is not None and self._job is not asyncio.current_task():
            self._job.cancel()
        self._job = None

    # The end of one that failed

    async def _last_words(self, rollout: Rollout) -> None:
        """What becomes of it is decided; only then is it told to the on_failure hooks, and after them to everybody."""
        warnings = await self._work.last_words(rollout)
        if self.rollout is not None and self.rollout.phase is rollout.phase:
            self._end(warned(self.rollout, warnings))

    def _cut_last_words(self, by: str) -> None:
        assert self.rollout is not None
        self._cancel_job()
        self._end(warned(self.rollout, [f"the on_failure hook was cut short by {by}"]))

    def _end(self, rollout: Rollout) -> None:
        with self._store.transaction():
            self._save(rollout)
            self._finish_row(rollout)
        self._supervisor.rollout = rollout
        self._on_decided(rollout)
        if rollout.phase in FINAL:
            self._leave()

    # The whole rollout's deadline

    def _deadline_s(self, rollout: Rollout) -> float:
        return parse_duration(self._store.get("config")["rollout"]["deadline"])

    def _on_deadline(self) -> None:
        rollout = self.rollout
        if rollout is not None and rollout.phase in WORKING:
            limit = self._store.get("config")["rollout"]["deadline"]
            what = f"the rollout was not done within [rollout] deadline = {limit}"
            self.apply(DeadlinePassed(failure=Failure(reason="deadline", what=what, cause=f"it was {rollout.phase}")))


def _told(occasion: Occasion | None) -> dict[str, Any]:
    """What `rollout.started` says of a save."""
    if occasion is None:
        return {"watch": None, "files": [], "saved_at": None, "fixes": None}
    return msgspec.structs.asdict(occasion)


def problem_of(rollout: Rollout) -> Problem | None:
    failure, code = rollout.failure, exit_code(rollout)
    if failure is None or code is None:
        return None
    return Problem(what=failure.what, cause=failure.cause, hint=failure.hint, exit=int(code), reason=failure.reason)
