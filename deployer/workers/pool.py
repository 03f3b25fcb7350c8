"""All worker processes: starting them, hearing from them, ending them. No decisions are made here.

A worker's row is in state.db before its program runs and until its end has been noted there, so that no manager,
killed at whatever line, leaves one behind that the next does not know.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from deployer.clock import uptime
from deployer.keeper.link import KeeperLink
from deployer.logs.applog import AppLog
from deployer.logs.capture import LineReader
from deployer.osutil.process import describe_exit, kill_escaped, kill_group, open_pidfd, signal_pidfd, start_ticks
from deployer.osutil.tasks import watched
from deployer.paths import Layout
from deployer.releases.release import Release, is_dev
from deployer.rollout.events import Failure
from deployer.runtime.scoreboard import Scoreboard
from deployer.state.store import Store, WorkerRow
from deployer.units import parse_duration
from deployer.wire.schema import BLANK_SLOT, PREFLIGHT_SLOT, TEMPLATE_SLOT, WARM_SLOT, LogLine
from deployer.workers import cut, forking, order, start
from deployer.workers.board import Board
from deployer.workers.kept import Kept
from deployer.workers.messages import Messages
from deployer.workers.readiness import until_ready
from deployer.workers.start import STREAMS
from deployer.workers.worker import Exit, Listener, State, Worker

log = structlog.get_logger()

MOVE_LIMIT_S = 10.0  # how long a worker that was proven may take to accept on the sockets it is handed
DUMP_S = 5.0  # for a worker that hangs to print its stacks, before SIGKILL
KEEPER_TELLS_S = 1.0  # how long the keeper may take to report a worker that it reaped


class Pool:
    """The workers there are. `on_ready`, `on_never_ready` and `on_exit` tell whoever decides, `on_draining` who
    watches."""

    def __init__(
        self, *, app: str, store: Store, keeper: KeeperLink, layout: Layout, log: AppLog, base_env: Mapping[str, str]
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self.messages = Messages(self.workers)
        self.on_ready: Callable[[Worker], None] = lambda worker: None
        self.on_never_ready: Callable[[Worker, Failure], None] = lambda worker, failure: None
        self.on_exit: Callable[[Worker], None] = lambda worker: None
        self.on_draining: Callable[[], None] = lambda: None
        self._store, self._keeper = store, keeper
        self._layout, self._log, self._base_env = layout, log, base_env
        self._where = {"DEPLOYER_APP": app, "DEPLOYER_ROOT": str(layout.root)}
        self.board = Board(layout.scoreboard)
        self._kept = Kept(keeper)

    # Starting

    def spawn(
        self, slot: int, generation: int, release: Release, listeners: Sequence[Listener], *, as_slot: int | None = None
    ) -> Worker:
        """Start a worker, by a template where one is ready. What its program makes of it is heard later.
        OSError: it cannot be started. `as_slot`: what it is told, where that is to become its slot."""
        limits = order.limits(release.config.worker, self._base_env)
        if release.config.worker.app is not None:
            owner = [-1 if limits[key] is None else limits[key] for key in ("uid", "gid")]
            Scoreboard.create(self._layout.scoreboard, uid=owner[0], gid=owner[1])
        waiting, forked = self._begin(slot, release, [listener.sock.fileno() for listener in listeners])
        try:
            worker = self._record(slot, generation, release, listeners, waiting.pid)
        except BaseException:
            waiting.cancel()
            raise
        worker.notify, worker.channel = waiting.notify, waiting.channel
        self.workers[worker.id] = worker
        self._kept.keep(worker, waiting.held)
        what = self._order(worker, slot if as_slot is None else as_slot, forked=forked)
        worker.ordered = True
        waiting.order({**what, **limits, "hold": waiting.held, "channel": waiting.line})
        self._attach(worker, waiting.held)
        return worker

    def spawn_template(self, generation: int, release: Release) -> Worker:
        """Start the process that workers of `release` are to be forked from."""
        return self.spawn(TEMPLATE_SLOT, generation, release, ())

    def spawn_warm(self, release: Release, names: Sequence[str]) -> Worker:
        """Start one that workers of this and like releases are to be forked from, with these modules imported.
        OSError as from `spawn`."""
        worker = self._spawn_blank(WARM_SLOT, 0, release)
        try:
            forking.tell_names(worker, names)
        except OSError:
            self.retire(worker)
            raise
        return worker

    def spawn_blank(self, generation: int, release: Release) -> Worker:
        """Start one that can become the template of a release like this."""
        return self._spawn_blank(BLANK_SLOT, generation, release)

    def _spawn_blank(self, slot: int, generation: int, release: Release) -> Worker:
        worker = self.spawn(slot, generation, release, ())
        worker.fit = order.fit(release, self._base_env)
        return worker

    def make_template(self, blank: Worker, release: Release) -> None:
        """It becomes the template of `release`, as if it had been started now. Committed first: the next manager tells
        it again."""
        blank.slot, blank.release, blank.spawned_at = TEMPLATE_SLOT, release, uptime()
        blank.ready_deadline = blank.spawned_at + parse_duration(release.config.worker.ready_timeout)
        with self._store.transaction():
            place = {"slot": TEMPLATE_SLOT, "release": release.name, "spawned_at": blank.spawned_at}
            self._store.update("workers", "id", blank.id, **place)
            self._emit(blank, "starting")
        forking.tell_template(blank, self._order(blank, blank.slot, forked=True))

    def template(self, release: str) -> Worker | None:
        """The one that workers of `release` can be forked from now."""
        return forking.template_of(release, self.workers.values())

    def warm_for(self, release: Release) -> Worker | None:
        """The warm template that workers of a save can be forked from now."""
        if not is_dev(release.name) or release.config.worker.app is None:
            return None
        return forking.warm_of(order.fit(release, self._base_env), self.workers.values())

    def fits(self, blank: Worker, release: Release) -> bool:
        """Would it be the same, started for this release? OSError as from `spawn`."""
        return blank.fit == order.fit(release, self._base_env)

    def _begin(self, slot: int, release: Release, sockets: Sequence[int]) -> tuple[start.Waiting, bool]:
        """A process that waits for its order, and whether it was forked from a template."""
        serves = slot >= PREFLIGHT_SLOT
        template = (self.template(release.name) or self.warm_for(release)) if serves else None
        if template is not None and template.channel is not None:
            try:
                fork = start.fork_from(template.channel)
                return start.begin(self._layout.notify, sockets, fork, channel=True), True
            except start.CannotForkError as error:
                log.error("template.cannot_fork", release=release.name, pid=template.pid, error=str(error))
                self.retire(template, now=True)  # it is made anew; this worker boots on its own
        has_channel = release.config.worker.app is not None
        return start.begin(self._layout.notify, sockets, start.spawn, channel=has_channel), False

    def _order(self, worker: Worker, slot: int, *, forked: bool) -> dict[str, Any]:
        return order.of(worker, slot, self._where, self._base_env, forked=forked)

    def _record(self, slot: int, generation: int, release: Release, listeners: Sequence[Listener], pid: int) -> Worker:
        """Commit that it is there; only then it gets its order."""
        values = {"slot": slot, "generation": generation, "release": release.name, "pid": pid}
        with self._store.transaction():
            row = self._store.add_worker(
                **values, ticks=start_ticks(pid) or 0, state=State.STARTING, spawned_at=uptime()
            )
            worker = Worker.of_row(row, release, listeners, os.pidfd_open(pid))
            self._emit(worker, "starting")
        return worker

    # From the preflight into a slot

    def move(self, worker: Worker, slot: int, listeners: Sequence[Listener]) -> None:
        """Make the preflight's worker that of a slot: it is handed the sockets that visitors come to, and says READY=1
        once more when it accepts there. Committed first: the next manager hands them over again."""
        worker.slot, worker.listeners, worker.state = slot, tuple(listeners), State.STARTING
        worker.ready_said.clear()
        worker.started.clear()
        worker.ready_deadline = uptime() + MOVE_LIMIT_S
        with self._store.transaction():
            self._store.update("workers", "id", worker.id, slot=slot, state=State.STARTING, notified=0)
            self._emit(worker, "starting")
        self._hand_over(worker)
        worker.tasks.append(watched(self._watch_start(worker)))

    def _hand_over(self, worker: Worker) -> None:
        """Does no harm to a worker that has the sockets already."""
        if worker.channel is not None:
            sockets = [listener.sock.fileno() for listener in worker.listeners]
            worker.channel.send({"op": "serve", "slot": worker.slot}, sockets)

    # Taking over from a manager that died

    def adopt(self, row: WorkerRow, release: Release, listeners: Sequence[Listener]) -> Worker | None:
        """The running worker of a row, or None when it has ended."""
        pidfd = open_pidfd(row.pid, row.ticks)
        if pidfd is None:
            return None
        worker = Worker.of_row(row, release, listeners, pidfd)
        self.workers[row.id] = worker
        self._kept.take(worker)
        held = self._kept.take_pipes(worker)
        self._kept.keep(worker, held)
        self._attach(worker, held)
        if worker.state is State.STARTING and worker.in_slot:
            worker.ready_deadline = max(worker.ready_deadline, uptime() + MOVE_LIMIT_S)
            self._hand_over(worker)
        if worker.state is State.STARTING and worker.slot == TEMPLATE_SLOT:
            forking.tell_template(worker, self._order(worker, worker.slot, forked=True))
        if worker.state is State.DRAINING and worker.drain_at is None:
            worker.drain_at = uptime()
            self._ask_to_stop(worker)
        elif worker.state is State.DRAINING:
            self._schedule_kill(worker)
            self.on_draining()
        return worker

    def bury(self, row: WorkerRow, release: Release) -> None:
        """Note the end of a worker that died while no manager looked; the keeper has its exit code."""
        status = self._keeper.exit_of(row.pid)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        worker = Worker.of_row(row, release, (), -1)
        worker.exit = Exit(code)
        self._kept.take(worker)
        for number, fd in self._kept.left_in_pipes(worker):  # what it printed last
            LineReader(fd, self._line_taker(worker, number)).finish()
        self._kill_escaped(worker)
        self.messages.hear(worker)
        self._kept.release(worker)
        with self._store.transaction():
            self.note_exit(worker, code)
            self.on_exit(worker)
        self._keeper.seen(row.pid)

    # Hearing from workers

    def _attach(self, worker: Worker, held: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        worker.readers = [LineReader(fd, self._line_taker(worker, number)) for number, fd in enumerate(held)]
        if worker.notify is not None:
            loop.add_reader(worker.notify, self._on_notify, worker)
        if worker.channel is not None:
            loop.add_reader(worker.channel.fileno(), self.messages.hear, worker)
        loop.add_reader(worker.pidfd, self._on_pidfd, worker)
        if worker.state is State.STARTING:
            worker.tasks.append(watched(self._watch_start(worker)))
        else:
            worker.started.set()

    async def _watch_start(self, worker: Worker) -> None:
        failure = await until_ready(worker)
        if worker.state is not State.STARTING or worker.exit is not None:
            return
        if failure is not None:
            worker.failure = failure
            worker.started.set()
            self.on_never_ready(worker, failure)
            return
        worker.state, worker.ready_at = State.READY, uptime()
        for listener in worker.listeners:
            listener.sock.listen(listener.backlog)  # a server may have shrunk the queue that all share
        seconds = round(worker.ready_at - worker.spawned_at, 3)
        with self._store.transaction():
            self._store.update("workers", "id", worker.id, state=State.READY, ready_at=worker.ready_at)
            self._emit(worker, "ready", seconds=seconds)
        worker.started.set()
        self.on_ready(worker)

    def _line_taker(self, worker: Worker, number: int) -> Callable[[str], None]:
        def take(line: str) -> None:
            worker.tail.append(line)
            where = {"slot": worker.slot, "pid": worker.pid, "release": worker.release.name}
            self._log.write(
                msgspec.convert({"ts": time.time(), **where, "stream": STREAMS[number], "line": line}, LogLine)
            )

        return take

    def _on_notify(self, worker: Worker) -> None:
        """sd_notify(3): assignments, one a line. READY=1 comes once: it is committed before the socket gives it up."""
        if worker.notify is None:
            return
        try:
            data = worker.notify.recv(8192, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return
        for line in data.decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key == "READY" and value == "1":
                self._store.update("workers", "id", worker.id, notified=1)
                worker.ready_said.set()
            elif key == "STATUS":
                worker.status_text = value
            elif key == "EXTEND_TIMEOUT_USEC" and value.isdigit():
                worker.ready_deadline = max(worker.ready_deadline, uptime() + int(value) / 1e6)
        worker.notify.recv(8192, socket.MSG_DONTWAIT)

    # Ending

    def retire(self, worker: Worker, *, now: bool = False, rollout: int | None = None) -> None:
        """Ask the worker to finish and go; after its drain timeout, or `now`, its whole group is killed. `rollout`:
        what it goes for, and what is told of anything it cuts."""
        if worker.exit is not None:
            return
        now = now or worker.forks  # it has nothing to finish, and may not hear a signal
        if worker.state is not State.DRAINING:
            worker.state, worker.drain_at, worker.retired_by = State.DRAINING, uptime(), rollout
            with self._store.transaction():
                self._store.update("workers", "id", worker.id, state=State.DRAINING, retired_by=rollout)
                self._emit(worker, "draining")
            if not now:
                self._ask_to_stop(worker)
        if now:
            self._kill(worker)

    def _ask_to_stop(self, worker: Worker) -> None:
        """`drain_at` is written after the signal: a draining worker without it may not have been told.

        One that hangs could finish nothing: SIGABRT makes the runtime print where each of its threads is.
        """
        config = worker.release.config.worker
        if self._hangs(worker):
            signal_pidfd(worker.pidfd, signal.SIGABRT)
            worker.drain_limit = DUMP_S
        else:
            signal_pidfd(worker.pidfd, signal.Signals[config.stop_signal])
        self._store.update("workers", "id", worker.id, drain_at=worker.drain_at)
        self._schedule_kill(worker)
        self.on_draining()

    def _hangs(self, worker: Worker) -> bool:
        """It was found hung, and nothing has moved since."""
        if worker.hung is None:
            return False
        pulse = self.board.pulses().get((worker.pid, worker.ticks))
        return pulse is not None and getattr(pulse, worker.hung[0]) == worker.hung[1]

    def _schedule_kill(self, worker: Worker) -> None:
        worker.tasks.append(watched(self._kill_when_late(worker)))

    async def _kill_when_late(self, worker: Worker) -> None:
        timeout = worker.drain_limit
        if timeout is None:
            timeout = parse_duration(worker.release.config.worker.drain_timeout)
        await asyncio.sleep(max(0.0, (worker.drain_at or 0.0) + timeout - uptime()))
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        kill_group(worker.pid)
        signal_pidfd(worker.pidfd, signal.SIGKILL)

    def _on_pidfd(self, worker: Worker) -> None:
        asyncio.get_running_loop().remove_reader(worker.pidfd)
        worker.tasks.append(watched(self._take_leave(worker)))

    async def _take_leave(self, worker: Worker) -> None:
        """Note the end in state.db first, and only then reap: a manager killed in between loses no exit code."""
        code, ours = await self._exit_code(worker)
        worker.exit = Exit(code)
        if ours:  # else the keeper did, before it reaped: the pid may be another's by now
            kill_group(worker.pid)
        self._kill_escaped(worker)
        self.messages.hear(worker)  # its last word
        for reader in worker.readers:
            reader.finish()
        with self._store.transaction():  # the end and what is made of it are one commit
            self.note_exit(worker, code)
            self.on_exit(worker)
        if ours:
            os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED)
        self._keeper.seen(worker.pid)
        self._forget(worker)

    def _kill_escaped(self, worker: Worker) -> None:
        """What the worker started outside of its process group: it carries the worker's own NOTIFY_SOCKET."""
        if worker.notify is None or self._keeper.pid is None or not self._keeper.alive:
            return
        if worker.forks:
            return  # /proc shows its variables for the workers that were forked from it, too
        killed = kill_escaped(self._keeper.pid, os.getpid(), "NOTIFY_SOCKET", worker.notify.getsockname())
        if killed:
            log.warning("worker.left_behind", slot=worker.slot, pid=worker.pid, killed=killed)

    async def _exit_code(self, worker: Worker) -> tuple[int | None, bool]:
        """(code, whether we are the parent). Workers of an earlier manager are the keeper's children."""
        try:
            info = os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            info = None
        if info is not None:
            died = info.si_code == os.CLD_EXITED
            return (info.si_status if died else -info.si_status), True
        deadline = time.monotonic() + KEEPER_TELLS_S
        while worker.pid not in self._keeper.exits and self._keeper.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        status = self._keeper.exits.get(worker.pid)
        return (None if status is None else os.waitstatus_to_exitcode(status)), False

    def note_exit(self, worker: Worker, code: int | None) -> None:
        number, name, text = describe_exit(code)
        since = worker.drain_at or worker.spawned_at
        lost = cut.of(worker, self.board.row(worker.pid, worker.ticks))
        with self._store.transaction():
            self._store.delete("workers", "id", worker.id)
            cut.add(self._store, worker.retired_by, lost)
            self._emit(
                worker,
                "exited",
                code=number,
                signal=name,
                text=text,
                expected=worker.state is State.DRAINING,
                seconds=round(uptime() - since, 3),
                tail=list(worker.tail),
                **cut.fields(lost),
            )

    def _emit(self, worker: Worker, what: str, **facts: Any) -> None:
        """A template is no worker to those who watch."""
        kind = {TEMPLATE_SLOT: "template", WARM_SLOT: "warm", BLANK_SLOT: "blank"}.get(worker.slot, "worker")
        self._store.emit(f"{kind}.{what}", slot=worker.slot, pid=worker.pid, release=worker.release.name, **facts)

    def _forget(self, worker: Worker) -> None:
        del self.workers[worker.id]
        current = asyncio.current_task()
        for task in worker.tasks:
            if task is not current:
                task.cancel()
        if worker.notify is not None:
            asyncio.get_running_loop().remove_reader(worker.notify)
        if worker.channel is not None:
            asyncio.get_running_loop().remove_reader(worker.channel.fileno())
        self._kept.release(worker)
        os.close(worker.pidfd)
        worker.ended.set()

    def on_foreign_exit(self, pid: int) -> None:
        """The keeper reaped something: a worker's exit is noted with the worker, anything else is forgotten here."""
        if all(worker.pid != pid for worker in self.workers.values()):
            self._keeper.seen(pid)
