"""Keeps every slot running what it should: hears of workers, decides by `reconcile.plan`, acts through the pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from deployer.clock import uptime
from deployer.health.probe import Answer
from deployer.manager import observe, verdict
from deployer.manager.reconcile import Seen, backoff, plan, retired_by
from deployer.releases.catalog import Catalog
from deployer.rollout.events import AnyFact, Failure, NewFailed, OldFailed
from deployer.rollout.machine import PAST_TURNING, Phase, Rollout, Step, Want, wants
from deployer.state.store import Store
from deployer.wire.schema import TEMPLATE_SLOT
from deployer.workers.pool import Pool
from deployer.workers.worker import Listener, State, Worker

YOUNG_S = 10.0  # a worker that dies before this age counts towards back-off
STRAY = -1  # generation of workers that run but are in no record: looked at, and ended, once all slots serve
RESTORE_TRIES = 3  # how often the old release may fail to come up in a slot before a person is asked

log = structlog.get_logger()


class Supervisor:
    """What runs. The driver sets `rollout` and hears facts through `on_fact`; nobody else changes workers."""

    def __init__(self, *, store: Store, catalog: Catalog, pool: Pool, listeners: Sequence[Listener]) -> None:
        self.rollout: Rollout | None = None
        self.on_fact: Callable[[AnyFact], None] = lambda fact: None
        self.on_template_exit: Callable[[Worker], None] = lambda worker: None
        self.on_death: Callable[[Worker], None] = lambda worker: None  # of one that no rollout has to judge
        self.after_look: Callable[[], None] = lambda: None
        self.awaits_template: Callable[[str], bool] = lambda release: False
        self.stopping = False
        self._store, self._catalog, self._pool = store, catalog, pool
        self._listeners = tuple(listeners)
        self._early_deaths: dict[tuple[int, int], int] = {}
        self._not_before: dict[tuple[int, int], float] = {}
        self._wake: asyncio.TimerHandle | None = None
        self._scheduled = False
        pool.on_ready = lambda worker: self.wake()
        pool.on_never_ready = self._on_never_ready
        pool.on_exit = self._on_exit

    # What should run

    @property
    def count(self) -> int:
        return int(self._store.get("count", 0))

    @property
    def promoted(self) -> int | None:
        """The generation that slots run when no rollout says otherwise."""
        found: int | None = self._store.get("promoted")
        return found

    def release_of(self, generation: int) -> str:
        row = self._store.row("SELECT json_extract(state, '$.release') AS name FROM rollouts WHERE id = ?", generation)
        if row is None:
            raise LookupError(f"no rollout {generation}")
        return str(row["name"])

    def wants(self) -> dict[int, tuple[Want, ...]]:
        return self._wants(self.rollout)

    def _wants(self, rollout: Rollout | None) -> dict[int, tuple[Want, ...]]:
        promoted = self.promoted
        desired: dict[int, tuple[Want, ...]] = {}
        if promoted is not None:
            desired = dict.fromkeys(range(1, self.count + 1), (Want(promoted, True),))
        return desired if rollout is None else desired | wants(rollout)

    def live(self) -> list[Seen]:
        """Workers in slots that are not on their way out."""
        seen = [
            Seen(w.id, w.slot, w.generation, ready=w.state is State.READY, condemned=bool(w.condemned or w.failure))
            for w in self._pool.workers.values()
            if w.in_slot and w.state is not State.DRAINING and w.exit is None
        ]
        ready = {worker.slot for worker in seen if worker.ready and worker.generation != STRAY}
        covered = self.promoted is not None and ready >= set(range(1, self.count + 1))
        return [worker for worker in seen if covered or worker.generation != STRAY]

    def leaving(self, rollout: Rollout) -> int:
        """How many workers go, or are about to, for a rollout that is just over, and may have visitors still."""
        kept = {(slot, want.generation) for slot, those in self._wants(rollout).items() for want in those}
        served = [w for w in self._pool.workers.values() if w.in_slot and w.ready_at is not None and w.exit is None]
        draining = [w for w in served if w.state is State.DRAINING and w.retired_by == rollout.id]
        about_to = [w for w in served if w.state is not State.DRAINING and (w.slot, w.generation) not in kept]
        mine = [*draining, *(w for w in about_to if self._retired_by(w) == rollout.id)]
        return sum(not self._pool.board.is_empty(worker.pid, worker.ticks) for worker in mine)

    # Reconciling

    def wake(self) -> None:
        """Look again soon; many calls at once are one look."""
        if not self._scheduled and not self.stopping:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._reconcile)

    def _reconcile(self) -> None:
        self._scheduled = False
        if self.stopping:
            return
        while self.rollout is not None and (seen := observe.fact(self.rollout, self.live())) is not None:
            self.on_fact(seen)
        todo = plan(self.wants(), self.live(), self._not_before, time.monotonic())
        planned_for = self.rollout
        for slot, generation in todo.spawn:
            if self._is_cold() and self.awaits_template(self.release_of(generation)):
                continue  # a new look is due when it is ready, or gone
            self._spawn(slot, generation)
            if self.rollout is not planned_for:
                return  # it could not be started, which turned the rollout back: a new look is due
        for number in todo.retire:
            self._retire(self._pool.workers[number])
        self._wake_at(todo.wake_at)
        self.after_look()

    def _is_cold(self) -> bool:
        """Nobody serves, nor is about to, as after `up`: then forked workers are there sooner than all that boot at
        once, and share their memory."""
        return not any(worker.in_slot and worker.exit is None for worker in self._pool.workers.values())

    def _spawn(self, slot: int, generation: int) -> None:
        try:
            release = self._catalog.release(self.release_of(generation))
            self._pool.spawn(slot, generation, release, self._listeners)
        except OSError as error:
            log.error("worker.spawn_failed", slot=slot, error=str(error))
            if self._decides(slot, generation):
                what = f"worker {slot} of {self.release_of(generation)} cannot be started"
                self._tell_failed(
                    NewFailed(slot=slot, failure=Failure(reason="spawn", what=what, cause=str(error), slot=slot))
                )
                return
            self._count_early_death(slot, generation)
            self._not_before[slot, generation] = time.monotonic() + max(0.5, backoff(self._deaths(slot, generation)))
            self.wake()

    def _retire(self, worker: Worker) -> None:
        self._pool.retire(worker, rollout=self._retired_by(worker))

    def _retired_by(self, worker: Worker) -> int | None:
        running = None if self.rollout is None else self.rollout.id
        surplus_of = self._store.last_scale() if worker.slot > self.count else None
        return retired_by(worker.generation, running=running, promoted=self.promoted, surplus_of=surplus_of)

    def _wake_at(self, at: float | None) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if at is not None:
            self._wake = asyncio.get_running_loop().call_later(max(0.0, at - time.monotonic()), self.wake)

    # Hearing

    def _on_exit(self, worker: Worker) -> None:
        if worker.slot == TEMPLATE_SLOT:
            self.on_template_exit(worker)
        elif worker.in_slot and worker.state is not State.DRAINING and not self.stopping:
            self._died(worker)
        self.wake()

    def _died(self, worker: Worker) -> None:
        if not worker.ran or worker.generation == STRAY:
            return  # says nothing about a release or a slot
        log.warning("worker.died", slot=worker.slot, pid=worker.pid, release=worker.release.name, exit=worker.exit)
        if self.is_candidate(worker):
            self._tell_failed(NewFailed(slot=worker.slot, failure=verdict.failure_of_exit(worker)))
            return
        self._store.count_exit(worker.slot, verdict.last_exit(worker))
        if uptime() - worker.spawned_at < YOUNG_S:
            self._count_early_death(worker.slot, worker.generation)
        else:
            self._early_deaths.pop((worker.slot, worker.generation), None)
        self._restore_failed(worker, verdict.failure_of_exit(worker))
        self.on_death(worker)

    def _on_never_ready(self, worker: Worker, failure: Failure) -> None:
        if worker.forks:
            self._pool.retire(worker, now=True)
        if not worker.in_slot:
            return  # the preflight looks after its own
        log.warning("worker.never_ready", slot=worker.slot, pid=worker.pid, release=worker.release.name)
        if self.is_candidate(worker):
            self._tell_failed(NewFailed(slot=worker.slot, failure=failure))
        else:
            self._count_early_death(worker.slot, worker.generation)
            self._retire(worker)
            self._restore_failed(worker, failure)
        self.wake()

    def condemn(self, worker: Worker, answer: Answer) -> None:
        """A live health check failed for good."""
        failure = verdict.failure_of_health(worker, answer)
        if worker.condemned is None and not self.is_candidate(worker):
            self._store.emit("worker.unhealthy", slot=worker.slot, pid=worker.pid, cause=failure.cause)
        self.replace(worker, "unhealthy", failure)

    def replace(self, worker: Worker, ailment: str, failure: Failure) -> None:
        """A worker runs that should not any more: replace it, start-first, or halt the rollout that brought it."""
        if worker.condemned is not None:
            return  # it is known, and on its way out or held for inspection
        worker.condemned, worker.ailment = failure.cause or failure.what, ailment
        if self.is_candidate(worker):
            self._tell_failed(NewFailed(slot=worker.slot, failure=failure))
        self.wake()

    def is_candidate(self, worker: Worker) -> bool:
        """Does the worker stand for the release that is being rolled out?"""
        return self._decides(worker.slot, worker.generation)

    def _decides(self, slot: int, generation: int) -> bool:
        """Is what becomes of such a worker for the rollout to judge? Past turning back it is ordinary supervision."""
        rollout = self.rollout
        return (
            rollout is not None
            and generation == rollout.target
            and slot in rollout.slots
            and rollout.phase not in PAST_TURNING
        )

    def _tell_failed(self, fact: NewFailed) -> None:
        rollout = self.rollout
        if rollout is not None and rollout.phase in _HEAR_FAILURE:
            self.on_fact(fact)

    def _restore_failed(self, worker: Worker, failure: Failure) -> None:
        """While reverting: the old release fails in a slot that needs it again."""
        rollout = self.rollout
        if rollout is None or rollout.phase is not Phase.REVERTING or worker.generation != rollout.previous:
            return
        restoring = rollout.slots.get(worker.slot) is Step.RESTORING
        if restoring and self._deaths(worker.slot, worker.generation) >= RESTORE_TRIES:
            self.on_fact(OldFailed(slot=worker.slot, failure=failure))

    # Back-off

    def _deaths(self, slot: int, generation: int) -> int:
        return self._early_deaths.get((slot, generation), 0)

    def _count_early_death(self, slot: int, generation: int) -> None:
        deaths = self._early_deaths[slot, generation] = self._deaths(slot, generation) + 1
        self._not_before[slot, generation] = time.monotonic() + backoff(deaths)


_HEAR_FAILURE = (Phase.CANARY, Phase.SOAKING, Phase.ROLLING, Phase.REVERTING, Phase.HELD)
