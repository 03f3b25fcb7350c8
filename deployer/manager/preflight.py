"""One worker of the new release on sockets that no visitor knows: readiness, that it serves, its health check, and the
requests that warm it up. A worker of an `app` that passes goes on as the canary; another one has to boot once more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deployer.config.model import Health
from deployer.health.probe import get
from deployer.manager import verdict
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.sockets.bind import bind_private
from deployer.units import parse_duration
from deployer.wire.schema import PREFLIGHT_SLOT
from deployer.workers.pool import Pool
from deployer.workers.readiness import health_of, serves
from deployer.workers.worker import Listener, Worker

SERVES_S = 5.0  # how long a ready worker may take to accept a connection
SERVER_ERROR = 500
HEALTH_PAUSE_S = 0.2  # between tries of the health check: `unhealthy_after` of them decide


@dataclass(frozen=True)
class Passed:
    """What was found good, in words; and the worker, where it can go on as the canary."""

    checks: list[str]
    worker: Worker | None


async def check(
    pool: Pool, generation: int, release: Release, listeners: Sequence[Listener], directory: Path, slot: int
) -> Failure | Passed:
    """`slot` is the canary's. Unless it is in the answer the worker is on its way out."""
    private = [_private(listener, directory, number) for number, listener in enumerate(listeners)]
    movable = release.config.worker.app is not None
    passed = False
    try:
        worker = pool.spawn(PREFLIGHT_SLOT, generation, release, private, as_slot=slot if movable else None)
        try:
            found = await _check(worker)
            passed = not isinstance(found, Failure)
        finally:
            if not (passed and movable):
                pool.retire(worker)
    finally:
        _close(private)
    return found if isinstance(found, Failure) else Passed(found, worker if movable else None)


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
    if worker.release.config.health.http is None:
        checks.append("accepts connections")
        failure = None if await serves(worker, SERVES_S) else verdict.failure_of_silence(worker, SERVES_S)
    else:
        failure = await _healthy(worker, worker.release.config.health, checks)
    return failure or await _warm(worker, checks)


async def _healthy(worker: Worker, health: Health, checks: list[str]) -> Failure | None:
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


async def _warm(worker: Worker, checks: list[str]) -> Failure | None:
    """What fills caches; an application that has no answer, or 5xx, is not fit for visitors."""
    paths = worker.release.config.rollout.warmup
    for path in paths:
        answer = await get(
            worker.listeners[0].address, path, parse_duration(worker.release.config.worker.ready_timeout)
        )
        if answer.status is None or answer.status >= SERVER_ERROR:
            return verdict.failure_of_warmup(worker, path, answer)
    if paths:
        checks.append(f"{len(paths)} warm-up request{'' if len(paths) == 1 else 's'}")
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
