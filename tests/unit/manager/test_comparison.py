"""What canary and peers answered since the soak began, from one look to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from deployer.config.model import Rollout
from deployer.manager.comparison import Comparison
from deployer.rollout.numbers import Judgement, Verdict
from deployer.runtime.histogram import BUCKETS, bucket
from deployer.runtime.scoreboard import INTEGERS, REALS, Row
from deployer.workers.worker import State

OLD, NEW, GROUP = 6, 7, 99


@dataclass
class World:
    """A pool of workers, each with a record that may be missing, and what they answer."""

    records: dict[tuple[int, int], Row] = field(default_factory=dict)
    workers: dict[int, Any] = field(default_factory=dict)
    pids: Iterator[int] = field(default_factory=lambda: count(100))

    @property
    def board(self) -> Any:
        return SimpleNamespace(rows=lambda: dict(self.records))

    def start(self, generation: int, *, group: int = GROUP, counted: bool = True, state: State = State.READY) -> Any:
        pid = next(self.pids)
        worker = SimpleNamespace(pid=pid, ticks=pid * 10, generation=generation, state=state)
        self.workers[pid] = worker
        if counted:
            numbers = dict.fromkeys(INTEGERS, 0) | {"pid": pid, "ticks": pid * 10, "group": group}
            reals = dict.fromkeys(REALS, 0.0)
            row = Row(index=pid, **numbers, **reals, error="", status="", histogram=(0,) * BUCKETS)  # type: ignore[arg-type]
            self.records[pid, pid * 10] = row
        return worker

    def answers(self, worker: Any, good: int = 0, *, failed: int = 0, seconds: float = 0.005, error: str = "") -> None:
        row = self.records[worker.pid, worker.ticks]
        counts = list(row.histogram)
        counts[bucket(seconds)] += good + failed
        self.records[worker.pid, worker.ticks] = replace(
            row,
            status_2xx=row.status_2xx + good,
            status_5xx=row.status_5xx + failed,
            histogram=tuple(counts),
            error=error or row.error,
        )


@pytest.fixture
def world() -> World:
    return World()


def comparison(world: World, previous: int | None = OLD) -> Comparison:
    return Comparison(world, previous, Rollout())  # type: ignore[arg-type]


def judged(found: Judgement | None) -> tuple[Verdict, int, int, int, int]:
    assert found is not None
    return found.verdict, found.canary.errors, found.canary.answers, found.peers.errors, found.peers.answers


def test_only_what_came_since_the_first_look_counts(world: World) -> None:
    peer, canary = world.start(OLD), world.start(NEW)
    world.answers(peer, 1000, failed=500)
    world.answers(canary, failed=1)
    compared = comparison(world)
    assert judged(compared.look(canary)) == (Verdict.INCONCLUSIVE, 0, 0, 0, 0)
    world.answers(peer, 100)
    world.answers(canary, failed=10, error="ValueError: no price")
    assert judged(compared.look(canary)) == (Verdict.BAD, 10, 10, 0, 100)
    assert compared.last_error == "ValueError: no price"


def test_peers_are_added_up_also_one_that_died_or_was_started_meanwhile(world: World) -> None:
    first, second, canary = world.start(OLD), world.start(OLD), world.start(NEW)
    compared = comparison(world)
    compared.look(canary)
    world.answers(first, 30)
    world.answers(second, 5, failed=2)
    compared.look(canary)
    del world.workers[second.pid], world.records[second.pid, second.ticks]
    third = world.start(OLD)
    world.answers(third, 7)
    world.answers(canary, 1)
    compared.look(canary)
    world.answers(first, 20)
    world.answers(third, 4)
    world.answers(canary, 40)
    assert judged(compared.look(canary)) == (Verdict.GOOD, 0, 41, 2, 61)


def test_peers_are_ready_workers_of_the_release_before_on_the_same_sockets(world: World) -> None:
    canary = world.start(NEW)
    for other in ({"generation": OLD, "group": 5}, {"generation": 5}, {"generation": OLD, "state": State.DRAINING}):
        world.start(**other)  # type: ignore[arg-type]
    assert comparison(world).look(canary) is None
    world.start(OLD)
    assert comparison(world).look(canary) is not None


def test_nothing_is_said_where_there_is_nothing_to_compare(world: World) -> None:
    """A first deploy, a `command`, and each of the two before the other."""
    counted, uncounted = world.start(NEW), world.start(NEW, counted=False)
    assert comparison(world, None).look(counted) is None
    world.start(OLD, counted=False)
    assert comparison(world).look(counted) is None
    world.start(OLD)
    assert comparison(world).look(uncounted) is None


def test_the_first_slow_answers_of_a_new_process_are_left_out(world: World) -> None:
    peer, canary = world.start(OLD), world.start(NEW)
    compared = comparison(world)
    compared.look(canary)
    world.answers(peer, 100)
    world.answers(canary, 8, seconds=0.5)
    assert judged(compared.look(canary))[0] is Verdict.INCONCLUSIVE
    for number in range(3):
        world.answers(peer, 100)
        world.answers(canary, 20)
        found = compared.look(canary)
        assert judged(found) == (Verdict.GOOD, 0, 28 + 20 * number, 0, 200 + 100 * number)
        assert found is not None
        assert (found.canary.timed, found.canary.slow) == (20 + 20 * number, 0)


def test_a_canary_that_stays_slow_is_found(world: World) -> None:
    peer, canary = world.start(OLD), world.start(NEW)
    compared = comparison(world)
    for _ in range(2):
        compared.look(canary)
        world.answers(peer, 100)
        world.answers(canary, 10, seconds=0.5)
    compared.look(canary)
    world.answers(peer, 100)
    world.answers(canary, 10, seconds=0.5)
    found = compared.look(canary)
    assert found is not None
    assert (found.verdict, found.reason, found.canary.slow, found.canary.timed) == (Verdict.BAD, "latency", 20, 20)
