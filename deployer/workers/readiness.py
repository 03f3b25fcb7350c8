"""When is a worker ready? One coroutine for each `[worker] ready`, all bounded by `ready_timeout`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from deployer.clock import uptime
from deployer.config.model import Ready
from deployer.health.probe import Answer, connect, get
from deployer.osutil.process import descendants
from deployer.rollout.events import Failure
from deployer.sockets.bind import inode
from deployer.sockets.peers import peer_inode
from deployer.units import parse_duration
from deployer.wire.schema import BLANK_SLOT, TEMPLATE_SLOT, WARM_SLOT
from deployer.workers.listening import holder_of, listens
from deployer.workers.worker import Worker

POLL_FIRST_S = 0.01
POLL_MAX_S = 0.1
POLL_GROWTH = 1.02  # seen at most 2 % of the boot late: a rollout waits for one boot after another
SHARED_PROBES = 20  # tries to meet one worker on a socket that others share


async def until_ready(worker: Worker) -> Failure | None:
    """None when the worker is ready; a Failure (`never_ready`) when its time is over."""
    waiting = asyncio.create_task(_WAYS[_readiness(worker)](worker))
    try:
        while not waiting.done():
            left = worker.ready_deadline - uptime()  # it may have been extended meanwhile
            if left <= 0:
                return _too_late(worker)
            await asyncio.wait([waiting], timeout=left)
        waiting.result()
        return None
    finally:
        waiting.cancel()


def _readiness(worker: Worker) -> Ready:
    """A template serves nobody: it tells when it has imported the application."""
    return Ready.NOTIFY if worker.forks else worker.release.config.worker.readiness


async def serves(worker: Worker, timeout: float) -> bool:
    """Does the worker accept a connection on its first (private) socket within `timeout` seconds?"""
    sock = await connect(worker.listeners[0].address)
    try:
        async with asyncio.timeout(timeout):
            async for _ in _polls():
                if _accepted(worker, sock):
                    break
        return True
    except TimeoutError:
        return False
    finally:
        sock.close()


def shares_socket(worker: Worker) -> bool:
    return worker.in_slot


async def health_of(worker: Worker, patience: float = 0.0) -> Answer | None:
    """What the worker answers to its health check; None when, on the shared socket, others answered each time.

    The kernel prefers those that have waited longest: a newcomer beside five others meets 1 to 4 of 100 connections,
    so who must know tries for `patience` seconds.
    """
    health = worker.release.config.health
    if health.http is None:
        return None
    pids = descendants(worker.pid)
    tries, until = 0, uptime() + patience
    while tries < SHARED_PROBES or uptime() < until:
        address, timeout = worker.listeners[0].address, parse_duration(health.timeout)
        answer = await get(address, health.http, timeout, lambda inode: holder_of(inode, pids))
        if not shares_socket(worker) or answer.holder is not None:
            return answer
        tries += 1
    return None


def waits_for_visitors(worker: Worker) -> bool:
    """Seen from outside: the worker waits on one of its sockets."""
    return listens(worker.pid, {inode(listener.sock) for listener in worker.listeners})


async def _notified(worker: Worker) -> None:
    await worker.ready_said.wait()


async def _delayed(worker: Worker) -> None:
    ready_at = worker.spawned_at + parse_duration(worker.release.config.worker.ready_delay)
    await asyncio.sleep(max(0.0, ready_at - uptime()))


async def _listening(worker: Worker) -> None:
    async for _ in _polls():
        if waits_for_visitors(worker):
            return


async def _answering(worker: Worker) -> None:
    """A good answer of the worker itself. On the shared socket it may never be met: then that it listens must do,
    the answer having been proven on the preflight's private socket."""
    if shares_socket(worker):
        await _listening(worker)
    async for _ in _polls():
        answer = await health_of(worker)
        if answer is None or answer.status == worker.release.config.health.expect:
            return
        worker.status_text = f"last health answer: {answer.describe()}"


async def _polls() -> AsyncIterator[None]:
    """Yields now and again, more slowly with time."""
    pause = POLL_FIRST_S
    while True:
        yield
        await asyncio.sleep(pause)
        pause = min(pause * POLL_GROWTH, POLL_MAX_S)


def _accepted(worker: Worker, sock: socket.socket) -> bool:
    peer = peer_inode(sock)
    return peer is not None and holder_of(peer, descendants(worker.pid)) is not None


def _too_late(worker: Worker) -> Failure:
    config = worker.release.config.worker
    if config.app is not None and not worker.ready_said.is_set():
        return _not_started(worker, config.app)
    expected = {
        Ready.NOTIFY: "did not send READY=1",
        Ready.HTTP: f"did not answer GET {worker.release.config.health.http} as expected",
        Ready.LISTEN: "did not wait for connections on its socket",
        Ready.DELAY: "was not given enough time (ready_delay is longer than ready_timeout)",
    }[_readiness(worker)]
    return Failure(
        reason="never_ready",
        what=f"{worker.name} {expected} within {config.ready_timeout}",
        cause=worker.status_text or None,
        hint="raise [worker] ready_timeout if it starts slowly, or check [worker] ready",
        slot=worker.slot,
        tail=tuple(worker.tail),
    )


def _not_started(worker: Worker, app: str) -> Failure:
    """deployer's own runtime never came to serve it: the import hangs, or the application's startup (lifespan). One
    that was ready before hangs since then."""
    doing = f"{'importing' if worker.slot == TEMPLATE_SLOT else 'starting'} {app}"
    doing = "importing what the saves have in common" if worker.slot == WARM_SLOT else doing
    doing = "waiting for the end of staging" if worker.slot == BLANK_SLOT else doing
    what = f"{worker.name} did not finish {doing} within {worker.release.config.worker.ready_timeout}"
    hint = "raise [worker] ready_timeout if it only is slow; deployer check --preload shows where an import hangs"
    if worker.ready_at is not None:
        what = f"{worker.name} passed its preflight, but did not accept visitors in time: its event loop is stuck"
        hint = f"deployer logs --release {worker.release.name}"
    return Failure(
        reason="never_ready",
        what=what,
        cause=worker.status_text or None,
        hint=hint,
        slot=worker.slot,
        tail=tuple(worker.tail),
    )


_WAYS = {Ready.NOTIFY: _notified, Ready.HTTP: _answering, Ready.LISTEN: _listening, Ready.DELAY: _delayed}
