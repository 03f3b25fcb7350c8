"""Who still drains: while it lasts, and at the end of a rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.manager import drains
from deployer.manager.drains import Drains
from deployer.manager.supervisor import Supervisor
from deployer.releases.release import Release
from deployer.rollout.machine import Kind, Phase, Rollout, Step
from deployer.state.store import Store
from deployer.workers.worker import Exit, State, Worker

RELEASE = Release("v1", Path("/"), Config(name="a", worker=WorkerConfig(app="a:b")), {})
OLD, NEW = 3, 4


def worker(number: int, slot: int, generation: int, state: State = State.READY, **more: Any) -> Worker:
    values = {"pid": number, "ticks": 1, "pidfd": -1, "spawned_at": 0.0, "ready_at": 1.0, **more}
    return Worker(id=number, slot=slot, generation=generation, release=RELEASE, listeners=(), state=state, **values)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


def pool(*workers: Worker, empty: tuple[int, ...] = ()) -> Any:
    board = SimpleNamespace(is_empty=lambda pid, ticks: pid in empty, rows=dict)
    return SimpleNamespace(workers={one.id: one for one in workers}, board=board)


def leaving(store: Store, rollout: Rollout, *workers: Worker, promoted: int, empty: tuple[int, ...] = ()) -> int:
    store.put("promoted", promoted)
    store.put("count", 2)
    supervisor = Supervisor(store=store, catalog=cast(Any, None), pool=pool(*workers, empty=empty), listeners=())
    return supervisor.leaving(rollout)


def over(phase: Phase, step: Step) -> Rollout:
    return Rollout(id=NEW, kind=Kind.DEPLOY, phase=phase, slots={1: step, 2: step}, target=NEW, previous=OLD)


def test_after_a_promotion_the_old_workers_that_have_visitors_still_drain(store: Store) -> None:
    gone = worker(14, 2, OLD, State.DRAINING, retired_by=NEW, exit=Exit(0))
    of_another = worker(15, 2, 2, State.DRAINING, retired_by=OLD)
    draining = [worker(number, 1, OLD, State.DRAINING, retired_by=NEW) for number in (11, 12)]
    workers = [worker(1, 1, NEW), worker(2, 2, NEW), *draining, gone, of_another]
    promoted = over(Phase.PROMOTED, Step.NEW)
    assert leaving(store, promoted, *workers, promoted=NEW) == 2
    assert leaving(store, promoted, *workers, promoted=NEW, empty=(11,)) == 1


def test_after_a_revert_the_canary_goes_although_it_was_not_told_yet(store: Store) -> None:
    """Unless it never had a visitor."""
    reverted, old = over(Phase.REVERTED, Step.OLD), [worker(1, 1, OLD), worker(2, 2, OLD)]
    assert leaving(store, reverted, *old, worker(11, 1, NEW), promoted=OLD) == 1
    assert leaving(store, reverted, *old, worker(11, 1, NEW, State.STARTING, ready_at=None), promoted=OLD) == 0


def test_a_held_canary_stays(store: Store) -> None:
    held, old = over(Phase.HELD, Step.STARTING), [worker(1, 1, OLD), worker(2, 2, OLD)]
    assert leaving(store, held, *old, worker(11, 1, NEW), promoted=OLD) == 0


def test_closed_slots_drain_for_the_change_of_the_count(store: Store) -> None:
    values = {"state": "{}", "request": "{}", "phase": "promoted", "who": "ana", "started_at": 0.0}
    number = store.insert("rollouts", id=9, kind="scale", **values)
    done = Rollout(id=number, kind=Kind.SCALE, phase=Phase.PROMOTED, slots={}, target=number, previous=None)
    assert leaving(store, done, *(worker(n, n, NEW) for n in (1, 2, 3)), promoted=NEW) == 1


def test_a_drain_is_told_when_something_changed_and_while_it_lasts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "EACH_S", 0)
    going, command = (worker(number, number, OLD, State.DRAINING) for number in (1, 2))
    there = pool(going, command, worker(3, 3, OLD), worker(4, 0, OLD, State.DRAINING))
    looks = iter([(3, 12), (3, 12), (1, 12), (0, 1)])

    def rows() -> dict[tuple[int, int], Any]:
        left = next(looks, None)
        if left is None:
            going.exit = command.exit = Exit(0)
            return {}
        row = SimpleNamespace(in_flight=left[0], connections=left[1])
        return {(1, 1): row, (3, 1): row, (4, 1): row}

    there.board.rows = rows

    async def test() -> None:
        watch = Drains(store, there)
        there.on_draining()
        there.on_draining()
        assert watch._task is not None
        await asyncio.wait_for(watch._task, 10)

    asyncio.run(test())
    told = [event.data for event in store.events()]
    assert [(data["pid"], data["requests"], data["connections"]) for data in told] == [
        (1, 3, 12),
        (1, 1, 12),
        (1, 0, 1),
    ]


def test_a_drain_that_is_over_at_once_is_not_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "EACH_S", 0)
    there = pool(worker(1, 1, OLD))

    async def test() -> None:
        watch = Drains(store, there)
        there.on_draining()
        assert watch._task is not None
        await asyncio.wait_for(watch._task, 10)

    asyncio.run(test())
    assert store.events() == []
