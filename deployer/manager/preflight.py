"""One worker of the new release on sockets that no visitor knows: readiness, that it serves, and its health check."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deployer.manager import verdict
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.sockets.bind import bind_private
from deployer.units import parse_duration
from deployer.workers.pool import Pool
from deployer.workers.readiness import health_of, serves
from deployer.workers.worker import Listener, Worker

SERVES_S = 5.0  # how long a ready worker may take to accept a connection
HEALTH_PAUSE_S = 0.2  # between tries of the health check: `unhealthy_after` of them decide


async def check(
    pool: Pool, generation: int, release: Release, listeners: Sequence[Listener], directory: Path
) -> Failure | list[str]:
    """What was found good, in words; or the failure. The worker is on its way out in either case."""
    private = [_private(listener, directory, number) for number, listener in enumerate(listeners)]
    worker = pool.spawn(0, generation, release, private)
    try:
        return await _check(worker)
    finally:
        pool.retire(worker)
        _close(private)


async def _check(worker: Worker) -> Failure | list[str]:
    await _first(worker.started, worker.ended)
    checks = [f"ready ({worker.release.config.worker.readiness})"]
    checking = asyncio.create_task(_serving(worker, checks))
    ending = asyncio.create_task(worker.ended.wait())
    try:
        await asyncio.wait({checking, ending}, return_when=asyncio.FIRST_COMPLETED)
        if worker.ended.is_set():
            return verdict.failure_of_exit(worker)
        return checking.result() or checks
    finally:
        checking.cancel()
        ending.cancel()


async def _serving(worker: Worker, checks: list[str]) -> Failure | None:
    if worker.failure is not None:
        return worker.failure
    if not worker.listeners:
        return None
    health = worker.release.config.health
    if health.http is None:
        checks.append("accepts connections")
        return None if await serves(worker, SERVES_S) else verdict.failure_of_silence(worker, SERVES_S)
    checks.append(f"GET {health.http} -> {health.expect}")
    for tries_left in reversed(range(health.unhealthy_after)):
        answer = await health_of(worker)
        assert answer is not None  # on a private socket there is nobody else
        if answer.status == health.expect:
            return None
        if not tries_left:
            return verdict.failure_of_health(worker, answer)
        await asyncio.sleep(min(HEALTH_PAUSE_S, parse_duration(health.interval)))
    return None


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _private(listener: Listener, directory: Path, number: int) -> Listener:
    sock, address = bind_private(listener.address, directory, number)
    return replace(listener, sock=sock, address=address, backlog=16)


def _close(private: Sequence[Listener]) -> None:
    """The worker has descriptors of its own; ours are not needed any more."""
    for listener in private:
        listener.sock.close()
        if listener.address.kind == "unix":
            Path(listener.address.path).unlink(missing_ok=True)
