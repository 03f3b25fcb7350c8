"""`deployer down`: everything of this cluster ends, and the command says so only when it has."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated

import typer

from deployer.cli.session import Session
from deployer.errors import DeniedError, DeployerError, Exit, UnavailableError
from deployer.launch import keeper_pid, keeper_runs
from deployer.units import format_duration
from deployer.wire.schema import Status, StopRequest

STOP_LIMIT_S = 600.0
"""More than any sane drain_timeout; the stop goes on without us."""
REMINDER_S = 10.0
MANAGER_BACK_LIMIT_S = 10.0
"""A manager that just died is restarted by its keeper well within this."""
POLL_S = 0.1


@dataclass
class Process:
    """One process of the cluster, held by pidfd so that a pid used again cannot fool us."""

    name: str
    pid: int
    fd: int


def run(
    session: Session,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for open requests.")] = False,
) -> int:
    """Stop the workers and the supervisor.

    Workers finish their open requests first. State and releases stay: `deployer up` goes on from there.
    """
    out = session.out
    status = _status(session)
    if status is None:
        _refuse_orphans(session)
        if out.style.json:
            out.result_json({"ended": [], "running": False})
        else:
            out.result(f"{session.app} is not running")
        return 0
    with ExitStack() as stack:
        processes = list(hold(status, stack))
        session.client.stop(StopRequest(who=session.who, now=now))
        await_end(session, processes)
    ended = [{"name": process.name, "pid": process.pid} for process in processes]
    if out.style.json:
        out.result_json({"ended": ended, "running": False})
    else:
        workers = sum(process.name.startswith("slot") for process in processes)
        took = format_duration(monotonic() - session.started)
        out.result(f"{session.app} is down: {workers} worker{'' if workers == 1 else 's'} ended, in {took}")
    return 0


def _status(session: Session) -> Status | None:
    """Status, waiting for a manager that its keeper is just restarting; None when nothing runs."""
    give_up = monotonic() + MANAGER_BACK_LIMIT_S
    while True:
        try:
            return session.client.status()
        except UnavailableError:
            if not keeper_runs(session.layout):
                return None
            if monotonic() >= give_up:
                raise _manager_stays_away(keeper_pid(session.layout)) from None
        sleep(POLL_S)


def _manager_stays_away(keeper: int) -> DeployerError:
    return UnavailableError(
        f"the keeper (pid {keeper}) runs, but no manager answers",
        cause=f"it did not come back in {MANAGER_BACK_LIMIT_S:.0f}s",
        hint="deployer up",
    )


def _refuse_orphans(session: Session) -> None:
    """Workers whose supervisor was killed still serve: "not running" would be untrue."""
    orphans = list(_workers_of(session.layout.root))
    if not orphans:
        return
    pids = " ".join(map(str, orphans))
    one = len(orphans) == 1
    count, verb = f"{len(orphans)} process{'' if one else 'es'}", "s" if one else ""
    raise UnavailableError(
        f"no supervisor runs, but {count} of the cluster still serve{verb}",
        cause=f"the supervisor was killed; pids {pids}",
        hint="deployer up && deployer down",
    )


def _workers_of(root: Path) -> Iterator[int]:
    mark = b"DEPLOYER_ROOT=" + os.fsencode(root)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue  # ended meanwhile, or another user's
            if mark in environment.split(b"\0"):
                yield int(entry.name)


def hold(status: Status, stack: ExitStack) -> Iterator[Process]:
    named = [(f"slot {worker.slot}", worker.pid) for worker in status.workers]
    for name, pid in [*named, ("manager", status.manager.pid), ("keeper", status.keeper.pid)]:
        if pid is None:
            continue
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise DeniedError(f"pid {pid} cannot be watched", cause=error.strerror) from error
        stack.callback(os.close, fd)
        yield Process(name, pid, fd)


def await_end(session: Session, processes: list[Process]) -> None:
    """Wait for every process, naming each as it ends and, now and then, those that are still there."""
    poller = select.poll()
    left = {process.fd: process for process in processes}
    for fd in left:
        poller.register(fd, select.POLLIN)
    give_up = monotonic() + STOP_LIMIT_S
    while left:
        ready = poller.poll(REMINDER_S * 1000)
        for fd, _ in ready:
            poller.unregister(fd)
            process = left.pop(fd)
            session.out.note(f"{process.name} pid {process.pid} ended")
        if left and not ready:
            session.out.note(f"still finishing requests: {_names(left.values())}")
        if left and monotonic() >= give_up:
            raise DeployerError(
                f"not down after {STOP_LIMIT_S:.0f}s: {_names(left.values())}",
                cause="the stop goes on",
                hint="deployer down --now",
                exit_code=Exit.TIMEOUT,
                reason="timeout",
            )


def _names(processes: Iterable[Process]) -> str:
    return ", ".join(f"{process.name} pid {process.pid}" for process in processes)
