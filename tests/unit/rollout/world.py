"""A world without processes or clocks, in which the engine can be crashed at any line.

Real: `rollout.machine`, `manager.observe`, `manager.reconcile` and the whole of `manager.supervisor`. Simulated: the
disk (what was committed), the worker processes, the keeper (a new manager after each death), and time. `Engine` is
what is left of the driver when its work is simulated too: decide, journal, then act.

Every write and every signal passes through `World.io`, before it is done and after: there a manager can die, which
loses all it knew and leaves what is on disk and every process as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.health.probe import Answer
from deployer.manager import supervisor, verdict
from deployer.releases.release import Release
from deployer.rollout.events import (
    Aborted,
    AnyFact,
    DeadlinePassed,
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
from deployer.rollout.machine import (
    FINAL,
    PAST_TURNING,
    WORKING,
    Kind,
    Phase,
    Policy,
    Rollout,
    Step,
    advance,
    begin,
    outcome,
    wants,
)
from deployer.workers.worker import Exit, State, Worker

CONFIG = Config(name="shop", worker=WorkerConfig(command="serve"))
SETTLE_STEPS = 3000
FACTS_MAX = 300  # of one rollout; five slots move at most a few times each
SICK = Answer(500, "sick", None)
NO_LOG = SimpleNamespace(warning=lambda *_, **__: None, error=lambda *_, **__: None)


class Died(BaseException):
    """The manager was killed here."""


@dataclass
class Process:
    """What is true of a worker, whether the manager knows it or not."""

    id: int
    slot: int
    generation: int
    alive: bool = True
    said_ready: bool = False
    sick: bool = False
    told_to_stop: bool = False
    had_order: bool = False  # else only the shim ran


@dataclass
class Disk:
    """state.db, the `current` link and what the keeper keeps: it survives every manager."""

    count: int
    promoted: int | None = None
    release: str | None = None
    current: str | None = None
    running: int | None = None
    rollouts: dict[int, bytes] = field(default_factory=dict)
    journal: dict[int, list[bytes]] = field(default_factory=dict)
    first: dict[int, bytes] = field(default_factory=dict)  # each rollout as it began
    rows: dict[int, tuple[int, int, State]] = field(default_factory=dict)  # worker -> slot, generation, state

    def rollout(self, number: int) -> Rollout:
        return msgspec.json.decode(self.rollouts[number], type=Rollout)


@dataclass
class Loop:
    """Callbacks and timers; nothing runs by itself."""

    world: World
    soon: list[Callable[[], None]] = field(default_factory=list)
    timers: list[SimpleNamespace] = field(default_factory=list)

    def call_soon(self, do: Callable[[], None]) -> None:
        self.soon.append(do)

    def call_later(self, seconds: float, do: Callable[[], None]) -> SimpleNamespace:
        timer = SimpleNamespace(at=self.world.now + seconds, do=do)
        timer.cancel = lambda: self.timers.remove(timer) if timer in self.timers else None
        self.timers.append(timer)
        return timer

    def due(self) -> bool:
        """Run one callback that may run now."""
        late = [timer for timer in self.timers if timer.at <= self.world.now]
        for timer in late:
            self.timers.remove(timer)
            self.soon.append(timer.do)
        if self.soon:
            self.soon.pop(0)()
            return True
        return False


class FakeStore:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self._disk, key, default)

    def row(self, query: str, generation: int) -> dict[str, Any]:
        return {"name": self._disk.rollout(generation).release}

    def last_scale(self) -> None:
        pass

    def emit(self, *_: object, **__: object) -> None:
        pass

    def count_exit(self, *_: object) -> None:
        pass


class FakePool:
    """The pool as the supervisor sees it. Workers are the real class; the processes behind them are the world's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.workers: dict[int, Worker] = {}
        self.on_ready: Callable[[Worker], None]
        self.on_never_ready: Callable[[Worker, Failure], None]
        self.on_exit: Callable[[Worker], None]

    def spawn(self, slot: int, generation: int, release: Release, listeners: object) -> Worker:
        world = self.world
        world.may_spawn(slot, generation)
        if world.spawn_fails:
            world.spawn_fails = False
            raise OSError(11, "no process to be had")
        number = next(world.numbers)
        process = Process(number, slot, generation, alive=False)  # the shim: it has no orders yet
        with world.transaction():
            world.disk.rows[number] = (slot, generation, State.STARTING)
            world.processes[number] = process
        worker = self.workers[number] = self.known(number, State.STARTING)
        process.alive = process.had_order = True
        world.io()
        return worker

    def known(self, number: int, state: State) -> Worker:
        process = self.world.processes[number]
        release = self.world.release(self.world.disk.rollout(process.generation).release)
        return Worker(
            id=number,
            slot=process.slot,
            generation=process.generation,
            release=release,
            listeners=(),
            pid=number,
            ticks=0,
            pidfd=-1,
            spawned_at=self.world.now,
            state=state,
        )

    def retire(self, worker: Worker, *, rollout: int | None = None) -> None:
        if worker.state is State.DRAINING or worker.exit is not None:
            return
        self.world.may_retire(worker)
        worker.state, worker.retired_by = State.DRAINING, rollout
        with self.world.transaction():
            self.world.disk.rows[worker.id] = (worker.slot, worker.generation, State.DRAINING)
        self.world.processes[worker.id].told_to_stop = True
        self.world.io()

    # What the world makes known

    def hear_ready(self, worker: Worker) -> None:
        with self.world.transaction():
            self.world.disk.rows[worker.id] = (worker.slot, worker.generation, State.READY)
        worker.state, worker.ready_at = State.READY, self.world.now
        self.on_ready(worker)

    def hear_nothing(self, worker: Worker) -> None:
        """Its ready_timeout has passed."""
        worker.failure = Failure(reason="never_ready", what="nothing was heard", slot=worker.slot)
        self.on_never_ready(worker, worker.failure)

    def hear_exit(self, worker: Worker) -> None:
        worker.exit = Exit(1)
        with self.world.transaction():
            del self.world.disk.rows[worker.id]
            if self.world.processes[worker.id].had_order:
                self.on_exit(worker)
        self.workers.pop(worker.id, None)


class Engine:
    """One life of a manager: the real supervisor, and the driver's order of things."""

    def __init__(self, world: World) -> None:
        self.world, self.disk = world, world.disk
        self.loop = Loop(world)
        world.loop = self.loop
        self.pool = FakePool(world)
        catalog = SimpleNamespace(release=world.release)
        store: Any = FakeStore(world.disk)
        self.supervisor = supervisor.Supervisor(store=store, catalog=catalog, pool=self.pool, listeners=())  # type: ignore[arg-type]
        self.supervisor.on_fact = self.apply
        self.job: Phase | None = None

    @property
    def rollout(self) -> Rollout | None:
        return self.supervisor.rollout

    def take_over(self) -> None:
        """As Manager.take_over: adopt, resume, and only then hear of those that died meanwhile."""
        dead = []
        for number, (_, _, state) in list(self.disk.rows.items()):
            worker = self.pool.known(number, state)
            if self.world.processes[number].alive:
                self.pool.workers[number] = worker
                if state is State.DRAINING:
                    self.world.processes[number].told_to_stop = True
            else:
                dead.append(worker)
        if self.disk.running is not None:
            self.run(self.disk.rollout(self.disk.running))
        for worker in dead:
            self.pool.hear_exit(worker)
        self.supervisor.wake()

    def start(self, kind: Kind, slots: range, **machine: Any) -> None:
        number = len(self.disk.rollouts) + 1
        machine.setdefault("target", number)
        machine.setdefault("previous", self.disk.promoted)
        first = begin(number, kind, slots, **machine)
        with self.world.transaction():
            self.disk.running = number
            self.disk.rollouts[number] = self.disk.first[number] = msgspec.json.encode(first)
            self.disk.journal[number] = []
        self.run(first)

    def run(self, rollout: Rollout) -> None:
        self.supervisor.rollout = rollout
        self.job = rollout.phase
        self.supervisor.wake()

    def apply(self, fact: AnyFact) -> None:
        """As Driver.apply: decide, commit, and only then act."""
        before = self.rollout
        assert before is not None
        after = advance(before, fact)
        self.world.may_follow(before, after)
        with self.world.transaction():
            self.disk.journal[after.id].append(msgspec.json.encode(fact))
            assert len(self.disk.journal[after.id]) < FACTS_MAX, "facts without end"
            self.disk.rollouts[after.id] = msgspec.json.encode(after)
            if isinstance(fact, Promoted):
                self.promoted(after)
            if after.phase in FINAL:
                self.disk.running = None
                self.world.is_over(after)
        self.supervisor.rollout = None if after.phase in FINAL else after
        if after.phase is not before.phase:
            self.job = after.phase
        self.supervisor.wake()

    def promoted(self, rollout: Rollout) -> None:
        """As Manager._on_promoted."""
        if rollout.kind is Kind.SCALE:
            self.disk.count = max(rollout.slots)
            return
        self.disk.promoted, self.disk.release = rollout.target, rollout.release

    def finish_job(self, *, good: bool) -> None:
        """The work of the phase comes to its end."""
        rollout = self.rollout
        if rollout is None or self.job is not rollout.phase:
            return
        bad = Failure(reason="test", what="it failed")
        slot = min(rollout.slots)
        match rollout.phase:
            case Phase.STAGING:
                self.apply(Staged(release=f"v{rollout.id}") if good else StagingFailed(failure=bad))
            case Phase.PREFLIGHT:
                self.apply(PreflightPassed() if good else PreflightFailed(failure=bad))
            case Phase.SOAKING if not self.loop.soon:  # it lasts longer than a turn of the loop
                sick = Failure(reason="health", what="the canary is sick", slot=slot)
                self.apply(SoakPassed() if good else NewFailed(slot=slot, failure=sick))
            case Phase.PROMOTING if good:
                self.world.io()
                self.disk.current = rollout.release
                self.world.io()
                self.apply(Promoted())
            case Phase.FINISHING:
                self.world.io()
                self.apply(Finished(warnings=() if good else ("the hook failed",)))


class World:
    """Everything there is, and what must hold in it at each moment."""

    def __init__(self, count: int) -> None:
        self.disk = Disk(count)
        self.now = 1000.0
        self.numbers = itertools.count(1)
        self.processes: dict[int, Process] = {}
        self.behaviour: dict[int, str] = {}  # generation -> how it behaves when the world is let run
        self.spawn_fails = False
        self.dies_in: int | None = None  # after so many calls of `io`
        self.depth = 0
        self.loop: Loop
        self.engine: Engine | None = Engine(self)
        self.lives = 1

    # The manager's lives

    def io(self) -> None:
        if self.dies_in is not None and not self.depth:
            self.dies_in -= 1
            if self.dies_in < 0:
                raise Died

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it is on disk, or nothing. A nested one is part of the outer."""
        self.io()
        self.depth += 1  # inside, a death is the same as one before
        yield
        self.depth -= 1
        self.io()

    def manager(self, do: Callable[[Engine], None]) -> None:
        """Let the manager do something; it may die of it."""
        if self.engine is None:
            return
        try:
            do(self.engine)
        except Died:
            self.engine = self.dies_in = None

    def restart(self) -> None:
        if self.engine is None:
            self.lives += 1
            self.engine = Engine(self)
            self.manager(Engine.take_over)

    # What may happen

    def start(self, kind: Kind, *, behaviour: str, policy: Policy, more: int) -> None:
        """As the manager's commands: one rollout at a time, and only a deploy before anything is live."""
        engine = self.engine
        if engine is None or engine.rollout is not None or (kind is not Kind.DEPLOY and self.disk.promoted is None):
            return
        self.behaviour[len(self.disk.rollouts) + 1] = behaviour
        slots, machine = range(1, self.disk.count + 1), {}
        if kind is Kind.SCALE:
            slots = range(self.disk.count + 1, self.disk.count + 1 + more)
            machine = {"target": self.disk.promoted, "previous": None, "release": self.disk.release}
        elif kind is not Kind.DEPLOY:
            machine = {"release": "v0" if kind is Kind.ROLLBACK else self.disk.release}
        self.manager(lambda engine: engine.start(kind, slots, policy=policy, **machine))

    def shrink(self) -> None:
        """Fewer workers: done at once, it cannot fail."""
        engine = self.engine
        if engine is not None and engine.rollout is None and self.disk.promoted is not None and self.disk.count > 1:
            self.disk.count -= 1
            engine.supervisor.wake()

    def say_ready(self, number: int) -> None:
        if starting := [p for p in self.processes.values() if p.alive and not p.said_ready]:
            starting[number % len(starting)].said_ready = True

    def crash(self, number: int) -> None:
        if alive := [p for p in self.processes.values() if p.alive]:
            alive[number % len(alive)].alive = False

    def reboot(self) -> None:
        """The machine starts anew: no process and no row is left (inherit.live_rows)."""
        self.engine = self.dies_in = None
        for process in self.processes.values():
            process.alive = False
        self.disk.rows.clear()

    def abort(self) -> None:
        def do(engine: Engine) -> None:
            if engine.rollout is not None and engine.rollout.phase not in PAST_TURNING:
                engine.apply(Aborted(by="ann"))

        self.manager(do)

    def deadline(self) -> None:
        def do(engine: Engine) -> None:
            if engine.rollout is not None and engine.rollout.phase in WORKING:
                engine.apply(DeadlinePassed(failure=Failure(reason="deadline", what="too late")))

        self.manager(do)

    def unchanged(self) -> None:
        def do(engine: Engine) -> None:
            if engine.rollout is not None and engine.rollout.phase is Phase.STAGING:
                engine.apply(Unchanged())

        self.manager(do)

    def silence(self, number: int) -> None:
        """The ready_timeout of a worker passes."""

        def do(engine: Engine) -> None:
            waiting = [w for w in engine.pool.workers.values() if w.state is State.STARTING and w.exit is None]
            if waiting:
                worker = waiting[number % len(waiting)]
                if not self.processes[worker.id].said_ready and worker.failure is None:
                    engine.pool.hear_nothing(worker)

        self.manager(do)

    def sicken(self, number: int) -> None:
        """The live health check of a ready worker fails for good."""

        def do(engine: Engine) -> None:
            ready = [w for w in engine.pool.workers.values() if w.state is State.READY]
            if ready:
                worker = ready[number % len(ready)]
                self.processes[worker.id].sick = True
                engine.supervisor.condemn(worker, SICK)

        self.manager(do)

    def hear(self, number: int) -> bool:
        """One thing that is true of a worker reaches the manager; False when it knows all."""
        if self.engine is None:
            return False
        news: list[Callable[[Engine], None]] = []
        for worker in self.engine.pool.workers.values():
            process = self.processes[worker.id]
            if not process.alive:
                news.append(lambda engine, w=worker: engine.pool.hear_exit(w))  # type: ignore[misc]
            elif process.said_ready and worker.state is State.STARTING and worker.failure is None:
                news.append(lambda engine, w=worker: engine.pool.hear_ready(w))  # type: ignore[misc]
        if news:
            self.manager(news[number % len(news)])
        return bool(news)

    def step(self) -> bool:
        """One turn of the manager's loop."""
        turned = False

        def do(engine: Engine) -> None:
            nonlocal turned
            turned = engine.loop.due()

        self.manager(do)
        return turned

    # What must hold at each moment

    def may_spawn(self, slot: int, generation: int) -> None:
        """A slot runs the promoted generation, or the rollout's target where the rollout has just put it."""
        disk = self.disk
        if generation == disk.promoted:
            assert slot <= disk.count or disk.running is not None
            return
        assert disk.running is not None, f"generation {generation} is nobody's"
        rollout = disk.rollout(disk.running)
        if rollout.phase in PAST_TURNING:
            assert rollout.slots[slot] is Step.NEW
            return
        assert generation == rollout.target
        journal = [msgspec.json.decode(fact, type=AnyFact) for fact in disk.journal[rollout.id]]
        assert not any(isinstance(fact, NewFailed) for fact in journal), "a failed release was started again"
        if rollout.phase is Phase.CANARY:
            assert slot == min(rollout.slots), "the canary goes alone"
            return
        assert rollout.phase is Phase.ROLLING
        assert rollout.slots[slot] is Step.STARTING
        assert list(rollout.slots.values()).count(Step.STARTING) <= rollout.policy.batch

    def may_retire(self, worker: Worker) -> None:
        """Nobody who serves is sent away before another serves in the slot."""
        if worker.state is not State.READY or worker.slot > self.disk.count or self.disk.promoted is None:
            return
        assert self.engine is not None
        others = [
            other
            for other in self.engine.pool.workers.values()
            if other.slot == worker.slot and other is not worker and other.state is State.READY and other.exit is None
        ]
        assert others, f"slot {worker.slot} was left with no ready worker"

    def may_follow(self, before: Rollout, after: Rollout) -> None:
        if before.phase in PAST_TURNING:
            assert after.phase in (*PAST_TURNING, Phase.PROMOTED), "a promotion was turned back"
        for slot, step in after.slots.items():
            if step is Step.NEW and before.slots[slot] is Step.STARTING:
                self._was_ready(slot, after.target)
            if step is Step.OLD and before.slots[slot] is Step.RESTORING:
                assert after.previous is not None
                self._was_ready(slot, after.previous)

    def _was_ready(self, slot: int, generation: int) -> None:
        assert self.engine is not None
        assert any(
            worker.state is State.READY and worker.exit is None
            for worker in self.engine.pool.workers.values()
            if (worker.slot, worker.generation) == (slot, generation)
        ), f"slot {slot} moved to generation {generation}, of which no worker was ready"

    def is_over(self, rollout: Rollout) -> None:
        """In the transaction that ends a rollout: one release in all slots' wants, and `current` agrees."""
        assert self.disk.current == self.disk.release
        back = [msgspec.json.decode(fact, type=AnyFact) for fact in self.disk.journal[rollout.id]]
        again = msgspec.json.decode(self.disk.first[rollout.id], type=Rollout)
        for fact in back:
            again = advance(again, fact)
        assert again == rollout, "the journal replayed gives another rollout"
        generations = {want.generation for slot in wants(rollout).values() for want in slot}
        if rollout.phase in (Phase.PROMOTED, Phase.REVERTED):
            assert len(generations) <= 1
            assert generations <= {self.disk.promoted}

    # Letting it run

    def settle(self) -> None:
        """Events are over: time passes until nothing more happens, and the promoted release behaves."""
        self.dies_in, self.spawn_fails = None, False
        self.let_run()

    def let_run(self) -> None:
        """Whatever happens next, the soonest first, until nothing does. The keeper starts a manager that died."""
        for _ in range(SETTLE_STEPS):
            self.restart()
            if self.engine is None:
                continue
            if self.step() or self.hear(0) or self._behave() or self._work():
                continue
            if self.engine is not None:
                if not self.loop.timers:
                    return
                self.now = max(self.now, min(timer.at for timer in self.loop.timers))
        raise AssertionError("it never comes to rest")

    def _work(self) -> bool:
        rollout = None if self.engine is None else self.engine.rollout
        working = (Phase.STAGING, Phase.PREFLIGHT, Phase.SOAKING, *PAST_TURNING)
        if rollout is None or rollout.phase not in working:
            return False
        bad = {Phase.STAGING: "source", Phase.PREFLIGHT: "preflight"}.get(rollout.phase)
        self.manager(lambda engine: engine.finish_job(good=bad is None or self.behaviour.get(rollout.id) != bad))
        return True

    def _behave(self) -> bool:
        """Workers do what is in the nature of their release."""
        for worker in [] if self.engine is None else list(self.engine.pool.workers.values()):
            process = self.processes[worker.id]
            nature = self._nature(process.generation)
            if process.told_to_stop or nature == "crash":
                process.alive = False
            elif worker.state is State.READY and process.sick and worker.condemned is None and self._is_told(worker):
                self.manager(lambda engine, w=worker: engine.supervisor.condemn(w, SICK))  # type: ignore[misc]
            elif worker.state is State.READY and nature == "crash_later":
                process.alive = False
            elif worker.state is State.READY and nature == "sick" and not process.sick:
                process.sick = True
            elif worker.state is State.STARTING and worker.failure is None:
                if nature == "silent":
                    self.manager(lambda engine, w=worker: engine.pool.hear_nothing(w))  # type: ignore[misc]
                elif process.said_ready:
                    continue
                else:
                    process.said_ready = True
            else:
                continue
            return True
        return False

    def _is_told(self, worker: Worker) -> bool:
        """While a rollout is held its sick candidate stays; it need be told of only once."""
        assert self.engine is not None
        rollout = self.engine.rollout
        still = rollout is not None and rollout.phase in (Phase.HELD, Phase.REVERTING)
        return not (still and rollout is not None and worker.generation == rollout.target)

    def _nature(self, generation: int) -> str:
        """What is promoted behaves; a target shows what it is until it is past turning back."""
        rollout = None if self.disk.running is None else self.disk.rollout(self.disk.running)
        if generation == self.disk.promoted or rollout is None or rollout.phase in PAST_TURNING:
            return "good"
        return self.behaviour.get(generation, "good")

    def check_at_rest(self) -> None:
        """One ready worker of the promoted release in each slot, nobody else, and `current` names it."""
        engine = self.engine
        assert engine is not None
        assert engine.rollout is None
        assert self.disk.running is None
        assert self.disk.current == self.disk.release
        alive = sorted((p.slot, p.generation, p.said_ready) for p in self.processes.values() if p.alive)
        wanted = [] if self.disk.promoted is None else range(1, self.disk.count + 1)
        assert alive == [(slot, self.disk.promoted, True) for slot in wanted]
        assert all(worker.condemned is None for worker in engine.pool.workers.values())

    def check_held(self) -> None:
        """Mixed is allowed; every slot that had a worker has one that serves."""
        engine = self.engine
        assert engine is not None
        assert engine.rollout is not None
        assert outcome(engine.rollout) == "held"
        serving = {w.slot for w in engine.pool.workers.values() if w.state is State.READY}
        assert serving >= set(range(1, self.disk.count + 1)), "a slot is empty while the rollout is held"

    def release(self, name: str | None) -> Release:
        assert name is not None, "a worker of a release that was never staged"
        return Release(name=name, directory=Path("/"), config=CONFIG, env={})


@contextmanager
def world(count: int) -> Iterator[World]:
    """A world whose clock and loop are what the supervisor sees."""
    made: World
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: made.now)
        patch.setattr(supervisor, "asyncio", SimpleNamespace(get_running_loop=lambda: made.loop))
        patch.setattr(supervisor, "time", clock)
        for module in (supervisor, verdict):
            patch.setattr(module, "uptime", lambda: made.now)
        patch.setattr(supervisor, "log", NO_LOG)
        made = World(count)
        yield made
