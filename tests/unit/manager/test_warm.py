"""What the manager makes of what it hears about modules, and which warm template there should be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployer.clock import uptime
from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.manager import retries as module
from deployer.manager.retries import Retries
from deployer.manager.warm import NAMES_MAX, Warm, grown
from deployer.releases.release import Release
from deployer.state.store import Store
from deployer.wire.schema import WARM_SLOT
from deployer.workers.messages import Messages
from deployer.workers.worker import Exit, State, Worker

# What is known


def test_what_is_new_comes_after_what_is_known() -> None:
    assert grown(("a", "b"), ["c", "b", "bad", "c"], {"bad"}) == ("a", "b", "c")


def test_names_without_end_end() -> None:
    endless = [f"module{number}" for number in range(NAMES_MAX)]
    names = grown((), endless, ())
    assert names == tuple(endless[: len(names)])
    assert NAMES_MAX - 20 < sum(len(name) + 3 for name in names) <= NAMES_MAX
    assert grown(names, ["one" * 20], ()) == names


# Which there should be


class Pool:
    """Templates are ready, refuse or die when the test says so."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.given: list[tuple[str, ...]] = []
        self.retired: list[Worker] = []
        self.messages = Messages(self.workers)

    def spawn_warm(self, release: Release, names: tuple[str, ...]) -> Worker:
        number = len(self.given) + 1
        worker = Worker(number, WARM_SLOT, 0, release, (), number, 0, -1, uptime())
        self.workers[number] = worker
        self.given.append(names)
        return worker

    def fits(self, worker: Worker, release: Release) -> bool:
        return worker.release.env == release.env

    def retire(self, worker: Worker) -> None:
        if worker.exit is not None:
            return
        worker.state = State.DRAINING
        self.retired.append(worker)
        self.end(worker)

    def end(self, worker: Worker) -> None:
        worker.exit = Exit(-9)
        del self.workers[worker.id]
        worker.ended.set()

    def ready(self, number: int) -> Worker:
        self.workers[number].state = State.READY
        self.workers[number].started.set()
        return self.workers[number]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def warm(store: Store, pool: Pool) -> Warm:
    return Warm(store=store, pool=pool, supervisor=SimpleNamespace(stopping=False))  # type: ignore[arg-type]


def save(environment: Path | None = None, **env: str) -> Release:
    return Release("dev-1", Path("/"), Config(name="a", worker=WorkerConfig(app="main:app")), env, environment)


def worker_of(release: Release) -> Any:
    return SimpleNamespace(release=release)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(bounded())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_there_is_none_until_one_is_wanted_and_one_for_all_that_was_told(warm: Warm, pool: Pool) -> None:
    async def test() -> None:
        pool.messages.on_imported(worker_of(save()), ["a"])
        await settle()
        assert pool.given == []
        warm.want(save())
        pool.messages.on_imported(worker_of(save()), ["b"])
        await settle()
        assert pool.given == [("a", "b")]
        warm.want(save())
        pool.messages.on_imported(worker_of(save()), ["b"])
        await settle()
        assert pool.given == [("a", "b")]

    run(test)


def test_the_one_before_stays_until_the_next_is_ready(warm: Warm, pool: Pool) -> None:
    async def test() -> None:
        warm.want(save())
        await settle()
        first = pool.ready(1)
        pool.messages.on_imported(worker_of(save()), ["a"])
        await settle()
        second = pool.workers[2]
        pool.messages.on_imported(worker_of(save()), ["b"])
        await settle()
        assert pool.given == [(), ("a",), ("a", "b")]
        assert pool.retired == [second], "it is outdated before it is ready"
        pool.ready(3)
        await settle()
        assert pool.retired == [second, first]

    run(test)


def test_what_was_refused_is_left_out_and_what_has_tried_goes(warm: Warm, pool: Pool) -> None:
    async def test() -> None:
        pool.messages.on_imported(worker_of(save()), ["a", "bad", "worse"])
        warm.want(save())
        await settle()
        tried = pool.workers[1]
        pool.messages.on_refused(tried, ["bad"])
        pool.messages.on_refused(tried, ["worse"])
        await settle()
        assert pool.given == [("a", "bad", "worse"), ("a",)]
        pool.messages.on_imported(worker_of(save()), ["bad", "b"])
        await settle()
        assert pool.given[2:] == [("a", "b")]
        warm.want(save(Path("/envs/other")))  # which may import what this one cannot
        pool.messages.on_imported(worker_of(save()), ["bad"])
        await settle()
        assert pool.given[3:] == [("a", "b", "bad")]

    run(test)


def test_unsafe_modules_are_left_out_and_without_any_it_is_given_up(warm: Warm, pool: Pool) -> None:
    """Until the environment is another, or the next watch begins."""

    async def test() -> None:
        pool.messages.on_imported(worker_of(save()), ["a", "b"])
        warm.want(save())
        await settle()
        pool.messages.on_unsafe_warm(pool.workers[1], "a thread")
        await settle()
        assert pool.given == [("a", "b"), ()]
        pool.messages.on_unsafe_warm(pool.workers[2], "a thread")
        await settle()
        warm.want(save())
        await settle()
        assert (len(pool.given), pool.workers) == (2, {})
        warm.want(None)
        warm.want(save())
        await settle()
        assert pool.given[2:] == [()]

    run(test)


def test_other_variables_ask_for_another_one(warm: Warm, pool: Pool) -> None:
    async def test() -> None:
        warm.want(save(LEVEL="1"))
        await settle()
        pool.ready(1)
        warm.want(save(LEVEL="2"))
        await settle()
        assert sorted(pool.workers) == [1, 2]

    run(test)


def test_a_command_has_none(warm: Warm, pool: Pool) -> None:
    async def test() -> None:
        warm.want(Release("dev-1", Path("/"), Config(name="a", worker=WorkerConfig(command="serve")), {}))
        await settle()
        assert pool.given == []

    run(test)


def test_one_that_dies_again_and_again_is_tried_more_and_more_slowly(warm: Warm, pool: Pool) -> None:
    async def test() -> None:
        warm.want(save())
        await settle()
        pool.end(pool.workers[1])
        await settle()
        assert len(pool.given) == 2, "at once"
        pool.end(pool.workers[2])
        await settle()
        assert len(pool.given) == 2
        while len(pool.given) == 2:
            await asyncio.sleep(0.01)

    run(test)


def test_modules_that_crash_the_interpreter_are_left_out(warm: Warm, pool: Pool) -> None:
    """Once it may have been somebody's kill; one that was ready before died of something else."""

    async def test() -> None:
        pool.messages.on_imported(worker_of(save()), ["a", "crash"])
        warm.want(save())
        await settle()
        pool.end(pool.workers[1])
        await settle()
        pool.end(pool.workers[2])
        while len(pool.given) == 2:
            await asyncio.sleep(0.01)
        assert pool.given == [("a", "crash"), ("a", "crash"), ()]

    run(test)


def test_the_next_manager_knows_what_this_one_knew(warm: Warm, store: Store, pool: Pool) -> None:
    async def test() -> None:
        pool.messages.on_imported(worker_of(save()), ["a"])
        next_pool = Pool()
        next_warm = Warm(store=store, pool=next_pool, supervisor=SimpleNamespace(stopping=False))  # type: ignore[arg-type]
        next_warm.want(save())
        await settle()
        assert next_pool.given == [("a",)]

    run(test)


# Tries


def test_tries_come_later_and_later_until_one_lived_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "uptime", lambda: now)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    tries = Retries()
    assert "a" not in tries
    waits = []
    for _ in range(4):
        tries.died("a", now)
        waits.append(tries.wait_s("a"))
    assert waits == [0.0, 0.5, 1.0, 2.0]
    assert tries.wait_s("b") <= 0
    tries.died("a", now - 60)
    assert tries.wait_s("a") == 0.0
