"""What a new manager makes of workers whose manager died in the middle of starting or ending them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployer.clock import uptime
from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.keeper.link import KeeperLink
from deployer.logs.applog import AppLog
from deployer.osutil.process import start_ticks
from deployer.paths import Layout
from deployer.releases.release import Release
from deployer.state.store import Store, WorkerRow
from deployer.workers import pool as module
from deployer.workers import shim
from deployer.workers.pool import Pool
from deployer.workers.worker import State, Worker

LIMIT_S = 60.0
RELEASE = Release("v1", Path("/"), Config(name="a", worker=WorkerConfig(command="x", drain_timeout="300ms")), {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


@pytest.fixture
def pool(tmp_path: Path, store: Store) -> Iterator[Pool]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        log = AppLog(tmp_path / "app.log")
        yield Pool(app="a", store=store, keeper=KeeperLink(ours), layout=Layout(tmp_path), log=log, base_env={})


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """It would run on for a minute, and dies of a SIGTERM."""
    code = "import time; print('here', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == b"here\n"
        yield made
        if made.poll() is None:
            made.kill()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(bounded())


def row(store: Store, pid: int, state: State, **more: Any) -> WorkerRow:
    values = {"slot": 1, "generation": 1, "release": "v1", "pid": pid, "ticks": start_ticks(pid) or 0, "state": state}
    return store.add_worker(**values, spawned_at=uptime(), **more)


async def exit_of(pool: Pool, worker: Worker) -> int | None:
    await worker.ended.wait()
    assert worker.exit is not None
    assert worker.id not in pool.workers
    return worker.exit.code


def test_the_signal_is_sent_between_two_commits(
    pool: Pool, store: Store, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First that it drains, then the signal, then since when: what is there without the last may not have been told."""
    seen: list[WorkerRow] = []
    send = module.signal_pidfd

    def look(pidfd: int, number: int) -> None:
        seen.extend(store.workers())
        send(pidfd, number)

    async def test() -> None:
        worker = pool.adopt(row(store, process.pid, State.READY), RELEASE, ())
        assert worker is not None
        with monkeypatch.context() as patch:
            patch.setattr(module, "signal_pidfd", look)
            pool.retire(worker)
        assert [(found.state, found.drain_at) for found in seen] == [("draining", None)]
        assert store.workers()[0].drain_at == worker.drain_at
        assert await exit_of(pool, worker) == -signal.SIGTERM

    run(test)


def test_a_draining_worker_that_was_not_told_is_told(
    pool: Pool, store: Store, process: subprocess.Popen[bytes]
) -> None:
    """Else it would go on taking visitors until its drain timeout, and then be killed with them."""

    async def test() -> None:
        worker = pool.adopt(row(store, process.pid, State.DRAINING), RELEASE, ())
        assert worker is not None
        assert store.workers()[0].drain_at is not None
        assert await exit_of(pool, worker) == -signal.SIGTERM

    run(test)


def test_a_draining_worker_that_was_told_is_not_told_again(
    pool: Pool, store: Store, process: subprocess.Popen[bytes]
) -> None:
    """A second SIGTERM ends many a server at once. Its time goes on from where it was."""

    async def test() -> None:
        worker = pool.adopt(row(store, process.pid, State.DRAINING, drain_at=uptime()), RELEASE, ())
        assert worker is not None
        assert await exit_of(pool, worker) == -signal.SIGKILL

    run(test)


@pytest.mark.parametrize(
    ("state", "code", "told"),
    [
        (State.STARTING, shim.NO_ORDER, False),
        (State.STARTING, 1, True),
        (State.READY, shim.NO_ORDER, True),
        (State.STARTING, None, True),
    ],
)
def test_a_worker_that_never_got_its_order_is_not_held_against_its_release(
    pool: Pool, store: Store, state: State, code: int | None, told: bool
) -> None:
    """Its manager died before it could give one; a canary must not fail of that."""
    pid = os.getpid()  # any: it is not looked at
    heard: list[Worker] = []
    pool.on_exit = heard.append
    if code is not None:
        pool._keeper.exits[pid] = code << 8

    async def test() -> None:
        pool.bury(row(store, pid, state), RELEASE)

    run(test)
    assert [worker.exit.code if worker.exit else None for worker in heard] == [code]
    assert [worker.ran for worker in heard] == [told]
    assert store.workers() == []
    assert [event.event for event in store.events()] == ["worker.exited"]


def test_a_worker_that_is_still_about_to_find_that_it_has_no_order(pool: Pool, store: Store) -> None:
    """The next manager was quicker than the shim: the end that it sees then says nothing either."""
    heard: list[Worker] = []
    pool.on_exit = heard.append

    async def test() -> None:
        program = [sys.executable, "-S", "-c", f"input(); raise SystemExit({shim.NO_ORDER})"]
        with subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True) as process:
            worker = pool.adopt(row(store, process.pid, State.STARTING), RELEASE, ())
            assert worker is not None
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert await exit_of(pool, worker) == shim.NO_ORDER
            process.returncode = shim.NO_ORDER  # the pool has reaped it

    run(test)
    assert [worker.ran for worker in heard] == [False]


def test_who_waits_for_a_worker_that_was_ready_before_it_was_adopted_does_not_wait(
    pool: Pool, store: Store, process: subprocess.Popen[bytes]
) -> None:
    """As a rollout waits for a template."""

    async def test() -> None:
        worker = pool.adopt(row(store, process.pid, State.READY), RELEASE, ())
        assert worker is not None
        await worker.started.wait()
        pool.retire(worker, now=True)
        await worker.ended.wait()

    run(test)
