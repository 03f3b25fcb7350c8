"""One worker process, as the manager knows it."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from deployer.logs.capture import LineReader
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.runtime.channel import Channel
from deployer.sockets.address import Address
from deployer.state.store import WorkerRow
from deployer.units import parse_duration
from deployer.wire.schema import BLANK_SLOT, PREFLIGHT_SLOT, TEMPLATE_SLOT, WARM_SLOT
from deployer.workers.shim import NO_ORDER

TAIL_LINES = 50


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True)
class Listener:
    """A listening socket with the name that workers see in LISTEN_FDNAMES."""

    name: str
    address: Address
    sock: socket.socket
    backlog: int


@dataclass(frozen=True)
class Exit:
    """How a process ended: `code` as subprocess has it (negative: signal), None when nobody could see."""

    code: int | None


@dataclass(frozen=True)
class Fit:
    """What a warm template has in common with the workers that can be forked from it: see `order.fit`."""

    environment: Path | None
    env: Mapping[str, str]
    limits: Mapping[str, Any]
    packages: tuple[int, ...]


@dataclass(eq=False)
class Worker:
    """A process that runs, or has ended and is being taken leave of. Changed only by the pool."""

    id: int
    slot: int  # from 1 on; PREFLIGHT_SLOT, TEMPLATE_SLOT, WARM_SLOT, BLANK_SLOT
    generation: int
    release: Release
    listeners: tuple[Listener, ...]
    pid: int
    ticks: int
    pidfd: int
    spawned_at: float  # `clock.uptime`, as all times here
    state: State = State.STARTING
    ready_at: float | None = None
    drain_at: float | None = None
    retired_by: int | None = None  # the rollout that it goes for
    condemned: str | None = None  # why it is to be replaced although it runs
    ailment: str = "unhealthy"  # of one that is condemned: unhealthy, hung, or (it serves well) recycling
    drain_limit: float | None = None  # other than its `drain_timeout`
    hung: tuple[str, float] | None = None  # which field of its `Pulse` stands still, and where
    warning: str | None = None  # what somebody should know of it
    failure: Failure | None = None  # why it never became ready
    started: asyncio.Event = field(default_factory=asyncio.Event)  # ready, or too late for that
    status_text: str = ""  # its last sd_notify STATUS=
    ready_said: asyncio.Event = field(default_factory=asyncio.Event)
    ready_deadline: float = 0.0  # EXTEND_TIMEOUT_USEC moves it
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    readers: list[LineReader] = field(default_factory=list)
    notify: socket.socket | None = None
    channel: Channel | None = None  # of an `app`
    deaf: bool = False  # there was no room in it for the last message
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    exit: Exit | None = None
    fit: Fit | None = None  # of a warm or blank template: what workers it can be forked for
    ordered: bool = False  # by us; whether a manager that died came to that, nobody knows

    @classmethod
    def of_row(cls, row: WorkerRow, release: Release, listeners: Sequence[Listener], pidfd: int) -> Worker:
        worker = cls(
            id=row.id,
            slot=row.slot,
            generation=row.generation,
            release=release,
            listeners=tuple(listeners),
            pid=row.pid,
            ticks=row.ticks,
            pidfd=pidfd,
            spawned_at=row.spawned_at,
            state=State(row.state),
            ready_at=row.ready_at,
            drain_at=row.drain_at,
            retired_by=row.retired_by,
            ready_deadline=row.spawned_at + parse_duration(release.config.worker.ready_timeout),
        )
        if row.notified:
            worker.ready_said.set()
        return worker

    @property
    def ran(self) -> bool:
        """Did its program ever run? One that got no order (its manager died too early) says nothing about its
        release by its end, and is started again."""
        no_order = self.exit is not None and self.exit.code == NO_ORDER
        return self.ordered or self.state is not State.STARTING or not no_order

    @property
    def in_slot(self) -> bool:
        """Does it serve visitors, or is it meant to?"""
        return self.slot > 0

    @property
    def forks(self) -> bool:
        """Is it there for others to be forked from, now or later?"""
        return self.slot in (TEMPLATE_SLOT, WARM_SLOT, BLANK_SLOT)

    @property
    def can_fork(self) -> bool:
        return self.forks and self.state is State.READY and self.exit is None and self.channel is not None

    @property
    def name(self) -> str:
        names = {
            PREFLIGHT_SLOT: "the preflight worker",
            TEMPLATE_SLOT: "the template",
            WARM_SLOT: "the warm template",
            BLANK_SLOT: "the template to come",
        }
        return names.get(self.slot, f"worker {self.slot}")
