"""Load as visitors make it, and a strict count of the requests that were lost.

A request is lost when it was sent (a byte of it was accepted by an established connection, or the connection
could not be made) and was not answered whole: status line, headers and the full body by Content-Length or
chunks. Answers outside 2xx are whole, so they are not lost; they are counted apart as errors. A client may
close what it likes, and a server may close a connection on which no request waits: neither loses anything.

The generator speaks HTTP over raw sockets on purpose: every HTTP library retries, pools or hides something.
It looks at the socket (MSG_PEEK) in the instant before it sends, so that what is left of the keep-alive race
is the server's part of it and not the client's event loop.

    async with Load("tcp://127.0.0.1:8000", keepalive=16, fresh=4) as load: ...   asyncio tests
    with LoadThread("unix:/run/app.sock", keepalive=4) as load: ...               synchronous tests
    with LoadProcess("tcp://127.0.0.1:8000", keepalive=16) as load: ...           no GIL shared with the caller
    python -m tests.load --address tcp://127.0.0.1:8000 --seconds 10 --json       by hand

Each has mark(step), more(n) (wait until n more answers came) and report().
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import json
import random
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

REQUEST_TIMEOUT_S = 15.0  # from connecting to the last byte; later is lost. Also bounds how long stopping takes
AFTER_LOSS_PAUSE_S = 0.02  # a refused client must not spin: the machine has other work
UNIX_RETRY_S = 0.005  # unix sockets say EAGAIN when the queue is full, where TCP would wait
STOP_LIMIT_S = REQUEST_TIMEOUT_S + 5.0
READ_SIZE = 65536
CLOSED_EARLY = "closed before the answer was whole"
RACE_ENDS = (CLOSED_EARLY, "ECONNRESET", "EPIPE")  # a request that met the closing of an idle connection
REPO = Path(__file__).resolve().parent.parent


# -- what is reported ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """One lost request: when (epoch), which client, what happened and how far it had come."""

    at: float
    step: str
    kind: str
    what: str
    keepalive_race: bool  # a reused connection ended without a byte of the answer
    sent: int
    received: int
    pid: str  # of the worker that last answered on this connection, "" for a new one
    port: int = 0  # our end of the connection: its server may have told whose it was; 0 of a unix socket, or of none

    def __str__(self) -> str:
        race = " [keep-alive race]" if self.keepalive_race else ""
        return (
            f"{self.at:.3f} {self.step!r} {self.kind}: {self.what}; sent {self.sent} bytes, "
            f"received {self.received}, last pid {self.pid or '-'}{race}"
        )


@dataclass(frozen=True)
class Sighting:
    """A worker seen in answers' headers: first and last time (epoch) and how often."""

    release: str
    worker: str
    pid: str
    first: float
    last: float
    requests: int


@dataclass(frozen=True)
class Tally:
    """Counts of one step or one kind of client; a step's percentiles leave out the slow requests."""

    name: str
    seconds: float
    requests: int
    lost: int
    lost_keepalive_race: int
    errors: int
    p50_s: float
    p99_s: float
    max_s: float
    releases: dict[str, int]


@dataclass(frozen=True)
class LoadReport:
    """All that happened. `lost` includes `lost_keepalive_race`; `requests` includes the lost ones."""

    started_at: float
    seconds: float
    requests: int
    lost: int
    lost_keepalive_race: int
    errors: int
    idle_closes: int  # connections the server ended while no request waited: no loss
    idle_resets: int  # the same, but by a reset: no loss either, and not polite
    p50_s: float
    p99_s: float
    max_s: float
    by_step: dict[str, Tally]
    by_kind: dict[str, Tally]
    losses: tuple[Loss, ...]
    releases_seen: tuple[Sighting, ...]

    def __str__(self) -> str:
        head = (
            f"{self.requests} requests in {self.seconds:.1f} s, {self.lost} lost "
            f"({self.lost_keepalive_race} keep-alive race), {self.errors} errors, "
            f"p50 {self.p50_s * 1000:.1f} ms, p99 {self.p99_s * 1000:.1f} ms"
        )
        return "\n".join([head, *(f"  lost: {loss}" for loss in self.losses[:20])])

    @classmethod
    def from_json(cls, text: str) -> LoadReport:
        raw = json.loads(text)
        raw["by_step"] = {name: Tally(**tally) for name, tally in raw["by_step"].items()}
        raw["by_kind"] = {name: Tally(**tally) for name, tally in raw["by_kind"].items()}
        raw["losses"] = tuple(Loss(**loss) for loss in raw["losses"])
        raw["releases_seen"] = tuple(Sighting(**seen) for seen in raw["releases_seen"])
        return cls(**raw)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


# -- one answer, one connection -----------------------------------------------------------------------------


class BrokenAnswerError(Exception):
    """What came is not an answer, or one whose end nobody can tell."""


class UnansweredError(Exception):
    """A request that was sent and not answered whole."""

    def __init__(self, what: str, sent: int = 0, received: int = 0) -> None:
        super().__init__(what)
        self.what, self.sent, self.received = what, sent, received


class ClosedBeforeSendError(Exception):
    """The server ended the connection before a byte of the request was accepted: nothing was sent."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    size: int  # bytes taken from the stream

    @property
    def closes(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()


def parse_answer(data: bytes | bytearray) -> Answer | None:
    """The whole answer at the start of `data`, or None while more must come."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise BrokenAnswerError(f"not a status line: {lines[0][:60]!r}")
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    status, start = int(rest[:3]), end + 4
    if version == "HTTP/1.0" and "connection" not in headers:
        headers["connection"] = "close"
    found = _body(data, start, status, headers)
    if found is None:
        return None
    body, size = found
    return Answer(status, headers, body, size)


def _body(data: bytes | bytearray, start: int, status: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
    """The body and where it ends in `data`, or None while more must come."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return _chunks(data, start)
    if status in (204, 304) or status < 200:
        return b"", start
    if "content-length" not in headers:
        raise BrokenAnswerError("neither Content-Length nor chunked: nobody can tell whether it is whole")
    end = start + int(headers["content-length"])
    return (bytes(data[start:end]), end) if len(data) >= end else None


def _chunks(data: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    body = bytearray()
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        try:
            size = int(bytes(data[at:line_end]).split(b";")[0], 16)
        except ValueError:
            raise BrokenAnswerError(f"not a chunk size: {bytes(data[at:line_end])[:20]!r}") from None
        at = line_end + 2 + size
        if len(data) < at + 2:
            return None
        if data[at : at + 2] != b"\r\n":
            raise BrokenAnswerError("a chunk does not end where it should")  # trailers are not used by our servers
        body += data[line_end + 2 : at]
        at += 2
        if size == 0:
            return bytes(body), at


def parse_address(address: str) -> tuple[socket.AddressFamily, Any]:
    """`tcp://127.0.0.1:8000`, `tcp://[::1]:8000` or `unix:/path` for socket.connect."""
    if address.startswith("unix:"):
        return socket.AF_UNIX, address.removeprefix("unix:").removeprefix("//")
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    return family, (host.strip("[]"), int(port))


class Connection:
    """One connection of one client. Every way it can fail has a name."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.answers = 0
        self.pid = ""
        self.port: int = 0 if sock.family == socket.AF_UNIX else sock.getsockname()[1]

    @classmethod
    async def open(cls, address: str, limit: float) -> Self:
        """Connect before `limit` (the loop's time)."""
        family, target = parse_address(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout_at(limit):
                await _connect(sock, target)
        except TimeoutError:
            sock.close()
            raise UnansweredError("cannot connect: timed out") from None
        except OSError as error:
            sock.close()
            raise UnansweredError(f"cannot connect: {_name(error)}") from None
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def ended(self) -> str | None:
        """How the server ended this idle connection ("close", "reset"), or None while it is open."""
        try:
            early = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return "reset"
        return "close" if not early else "unasked"

    async def exchange(self, request: bytes, limit: float) -> Answer:
        """Send and wait for the whole answer. ClosedBeforeSendError: try anew; UnansweredError: lost."""
        buffer = bytearray()
        sent = self._send(request)
        try:
            async with asyncio.timeout_at(limit):
                if sent < len(request):
                    await asyncio.get_running_loop().sock_sendall(self._sock, request[sent:])
                answer = await self._receive(buffer)
        except TimeoutError:
            raise UnansweredError("no whole answer in time", sent, len(buffer)) from None
        except EOFError:
            raise UnansweredError(CLOSED_EARLY, sent, len(buffer)) from None
        except OSError as error:
            raise UnansweredError(_name(error), sent, len(buffer)) from None
        except BrokenAnswerError as error:
            raise UnansweredError(str(error), sent, len(buffer)) from None
        self.answers += 1
        self.pid = answer.headers.get("x-pid", "")
        return answer

    def _send(self, request: bytes) -> int:
        """The kernel takes a request of this size whole, or refuses it before its first byte."""
        try:
            return self._sock.send(request)
        except OSError as error:
            if self.answers:
                raise ClosedBeforeSendError from error
            raise UnansweredError(_name(error)) from None

    async def _receive(self, buffer: bytearray) -> Answer:
        loop = asyncio.get_running_loop()
        while (answer := parse_answer(buffer)) is None:
            part = await loop.sock_recv(self._sock, READ_SIZE)
            if not part:
                raise EOFError
            buffer += part
        if len(buffer) > answer.size:
            raise BrokenAnswerError(f"{len(buffer) - answer.size} bytes after the answer")
        return answer

    def close(self) -> None:
        self._sock.close()


async def _connect(sock: socket.socket, target: Any) -> None:
    if sock.family != socket.AF_UNIX:
        await asyncio.get_running_loop().sock_connect(sock, target)
        return
    # asyncio takes EAGAIN of a full unix queue for "in progress" and then for success: wait for room here.
    while True:
        try:
            sock.connect(target)
        except BlockingIOError:
            await asyncio.sleep(UNIX_RETRY_S)
        else:
            return


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


# -- the clients --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How a sort of visitor behaves."""

    name: str
    path: str
    reuse: bool
    think_s: tuple[float, float]


@dataclass
class _Counts:
    """What one kind of client saw in one step."""

    requests: int = 0
    errors: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    releases: Counter[str] = field(default_factory=Counter)


@dataclass
class _Step:
    name: str
    seconds: float = 0.0
    kinds: dict[str, _Counts] = field(default_factory=dict)

    def of(self, kind: str) -> _Counts:
        return self.kinds.setdefault(kind, _Counts())


class Load:
    """Clients of several kinds against one address, for as long as the `async with` lasts."""

    def __init__(
        self,
        address: str,
        *,
        keepalive: int = 16,
        fresh: int = 4,
        slow: int = 4,
        idle: int = 0,
        slow_keepalive: int = 0,
        path: str = "/",
        slow_path: str = "/slow?s=1",
        think_s: float = 0.02,
        seed: int | None = None,
    ) -> None:
        quick = (0.0, 2 * think_s)
        self._clients = [
            (Kind("keepalive", path, True, quick), keepalive),
            (Kind("fresh", path, False, quick), fresh),
            (Kind("slow", slow_path, False, quick), slow),
            (Kind("idle", path, True, (0.5, 4.0)), idle),
            (Kind("slow_keepalive", slow_path, True, quick), slow_keepalive),
        ]
        self._address = address
        self._random = random.Random(seed)
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._busy: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._started_at, self._started = time.time(), time.monotonic()
        self._ended: float | None = None
        self._step_since = self._started
        self._step = _Step("start")
        self._steps = {"start": self._step}
        self._losses: list[Loss] = []
        self._seen: dict[tuple[str, str, str], Sighting] = {}
        self._idle_ends: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        for kind, number in self._clients:
            for index in range(number):
                task = asyncio.create_task(self._visit(kind, index))
                self._tasks[task] = kind.name
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let every client finish the request it has sent; those that merely think end at once."""
        self._stopping = True
        tasks = set(self._tasks)
        for task in tasks - self._busy:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_LIMIT_S)
            assert not late, "a client outlived its own request's time limit"
        self._ended = time.monotonic()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error  # a mistake of the generator, not of the server

    def mark(self, name: str) -> None:
        """Requests sent from now on are counted under `name`; a name used before goes on counting."""
        now = time.monotonic()
        self._step.seconds += now - self._step_since
        self._step_since = now
        self._step = self._steps.setdefault(name, _Step(name))

    @property
    def answered(self) -> int:
        return sum(len(counts.latencies) for step in self._steps.values() for counts in step.kinds.values())

    async def more(self, number: int, timeout_s: float = 60.0) -> None:
        """Wait until `number` more requests were answered."""
        wanted, limit = self.answered + number, time.monotonic() + timeout_s
        while self.answered < wanted:
            if time.monotonic() > limit:
                raise TimeoutError(f"{self.answered} of {wanted} answers in {timeout_s} s: {self.report()}")
            await asyncio.sleep(0.005)

    async def _visit(self, kind: Kind, index: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        visitor = Visitor(self._address, kind, closing=index % 2 == 0)
        try:
            while not self._stopping:
                self._busy.add(task)
                pause = await self._request(visitor)
                self._busy.discard(task)
                if not self._stopping:
                    await asyncio.sleep(pause)
        except asyncio.CancelledError:
            if task in self._busy:
                raise  # nobody but the end of the test's loop cancels a request
        finally:
            self._busy.discard(task)
            visitor.close()

    async def _request(self, visitor: Visitor) -> float:
        """One request and its entry in the books; the pause before the next."""
        step, kind, began = self._step, visitor.kind, time.monotonic()
        counts = step.of(kind.name)
        counts.requests += 1
        try:
            answer = await visitor.request(self._idle_ends)
        except UnansweredError as loss:
            self._losses.append(
                Loss(
                    at=time.time(),
                    step=step.name,
                    kind=kind.name,
                    what=loss.what,
                    keepalive_race=visitor.reused and loss.received == 0 and loss.what in RACE_ENDS,
                    sent=loss.sent,
                    received=loss.received,
                    pid=visitor.last_pid,
                    port=visitor.port,
                )
            )
            visitor.close()
            return AFTER_LOSS_PAUSE_S
        counts.latencies.append(time.monotonic() - began)
        counts.errors += not 200 <= answer.status < 300
        self._saw(answer, counts)
        return self._random.uniform(*kind.think_s)

    def _saw(self, answer: Answer, counts: _Counts) -> None:
        release, worker, pid = (answer.headers.get(f"x-{name}", "") for name in ("release", "worker", "pid"))
        counts.releases[release] += 1
        now, old = time.time(), self._seen.get((release, worker, pid))
        first, requests = (now, 0) if old is None else (old.first, old.requests)
        self._seen[release, worker, pid] = Sighting(release, worker, pid, first, now, requests + 1)

    def report(self) -> LoadReport:
        """What happened until now; callable while the load runs."""
        now = self._ended or time.monotonic()
        kinds = [kind.name for kind, number in self._clients if number]
        every = list(self._steps.values())
        by_step = [self._tally(s.name, [s], kinds, self._losses_of("step", s.name)) for s in every]
        by_kind = [self._tally(kind, every, [kind], self._losses_of("kind", kind)) for kind in kinds]
        whole = self._tally("all", every, kinds, self._losses)
        return LoadReport(
            started_at=self._started_at,
            seconds=now - self._started,
            requests=whole.requests,
            lost=whole.lost,
            lost_keepalive_race=whole.lost_keepalive_race,
            errors=whole.errors,
            idle_closes=self._idle_ends["close"],
            idle_resets=self._idle_ends["reset"],
            p50_s=whole.p50_s,
            p99_s=whole.p99_s,
            max_s=whole.max_s,
            by_step={tally.name: tally for tally in by_step if tally.requests or tally.name != "start"},
            by_kind={tally.name: tally for tally in by_kind},
            losses=tuple(self._losses),
            releases_seen=tuple(sorted(self._seen.values(), key=lambda seen: seen.first)),
        )

    def _losses_of(self, attribute: str, value: str) -> list[Loss]:
        return [loss for loss in self._losses if getattr(loss, attribute) == value]

    def _tally(self, name: str, steps: Iterable[_Step], kinds: list[str], losses: list[Loss]) -> Tally:
        parts = [(kind, step.kinds[kind]) for step in steps for kind in kinds if kind in step.kinds]
        timed = [part for part in parts if not part[0].startswith("slow")] or parts
        latencies = sorted(second for _, counts in timed for second in counts.latencies)
        running = (self._ended or time.monotonic()) - self._step_since
        return Tally(
            name=name,
            seconds=sum(step.seconds + (running if step is self._step else 0.0) for step in steps),
            requests=sum(counts.requests for _, counts in parts),
            lost=len(losses),
            lost_keepalive_race=sum(loss.keepalive_race for loss in losses),
            errors=sum(counts.errors for _, counts in parts),
            p50_s=percentile(latencies, 0.50),
            p99_s=percentile(latencies, 0.99),
            max_s=latencies[-1] if latencies else 0.0,
            releases=dict(sum((counts.releases for _, counts in parts), Counter())),
        )


class Visitor:
    """One client: keeps or drops its connection as its kind does, and honours `Connection: close`."""

    def __init__(self, address: str, kind: Kind, closing: bool) -> None:
        self.kind = kind
        self._address = address
        self._connection: Connection | None = None
        self._closing = closing  # of the clients that do not reuse, every other request says so

    @property
    def reused(self) -> bool:
        return self._connection is not None and self._connection.answers > 0

    @property
    def last_pid(self) -> str:
        return "" if self._connection is None else self._connection.pid

    @property
    def port(self) -> int:
        return 0 if self._connection is None else self._connection.port

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def request(self, idle_ends: Counter[str]) -> Answer:
        if self._connection is not None and (how := self._connection.ended()) is not None:
            idle_ends[how] += 1
            self.close()
        limit = asyncio.get_running_loop().time() + REQUEST_TIMEOUT_S
        try:
            answer = await self._exchange(limit)
        except ClosedBeforeSendError:
            idle_ends["close"] += 1
            self.close()
            answer = await self._exchange(limit)
        if answer.closes or not self.kind.reuse:
            self.close()
        return answer

    async def _exchange(self, limit: float) -> Answer:
        if self._connection is None:
            self._connection = await Connection.open(self._address, limit)
        closing = ""
        if not self.kind.reuse:
            closing = "Connection: close\r\n" if self._closing else ""
            self._closing = not self._closing
        request = f"GET {self.kind.path} HTTP/1.1\r\nHost: load\r\n{closing}\r\n"
        return await self._connection.exchange(request.encode(), limit)


def percentile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the ordered values lie; 0.0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


# -- from synchronous code ----------------------------------------------------------------------------------


class LoadThread:
    """The same load in a thread with its own event loop."""

    def __init__(self, address: str, **options: Any) -> None:
        self._make: Callable[[], Load] = lambda: Load(address, **options)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="load", daemon=True)
        self._running = threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._running.wait(30), "the load's thread did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._load = self._make()
        try:
            async with self._load:
                self._running.set()
                await self._stop.wait()
        except BaseException as error:
            self._error = error

    def _ask(self, work: Coroutine[Any, Any, Any], limit_s: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s)

    def mark(self, name: str) -> None:
        async def mark() -> None:
            self._load.mark(name)

        self._ask(mark())

    def more(self, number: int, timeout_s: float = 60.0) -> None:
        self._ask(self._load.more(number, timeout_s), timeout_s + 5)

    def report(self) -> LoadReport:
        if not self._thread.is_alive():
            return self._load.report()

        async def report() -> LoadReport:
            return self._load.report()

        result: LoadReport = self._ask(report())
        return result

    def stop(self) -> LoadReport:
        """Finish what was sent, and say how it went. Harmless when called again."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_LIMIT_S + 5)
            assert not self._thread.is_alive(), "the load did not stop"
        if self._error is not None:
            raise self._error
        return self._load.report()


class LoadProcess:
    """The same load in a process of its own, driven by lines on its stdin; it ends when its caller dies."""

    def __init__(self, address: str, **options: float | str) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        program = [sys.executable, "-m", "tests.load", "--commands", "--json"]
        self._command = [*program, f"--address={address}", *flags]
        self._process: subprocess.Popen[str] | None = None
        self._last: LoadReport | None = None

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        # A session of its own: Ctrl-C is for the caller, who then stops the load in order.
        self._process = subprocess.Popen(
            self._command, cwd=REPO, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        self._ask("report")
        return self

    def __exit__(self, error: object, *_: object) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # After an error (Ctrl-C amid a question) the pipes are out of step and nobody wants the report.
            if self._last is None and error is None:
                self.stop()
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

    def _ask(self, line: str) -> str:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer or answer.startswith("error"):
            raise RuntimeError(f"the load process answered {answer!r} to {line!r}")
        return answer

    def mark(self, name: str) -> None:
        self._ask(f"mark {name}")

    def more(self, number: int, timeout_s: float = 60.0) -> None:
        self._ask(f"more {number} {timeout_s}")

    def report(self) -> LoadReport:
        return self._last or LoadReport.from_json(self._ask("report"))

    def stop(self) -> LoadReport:
        """Finish what was sent, and say how it went."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._last = LoadReport.from_json(self._process.stdout.readline())
        self._process.wait(STOP_LIMIT_S)
        return self._last


def _obey(load: LoadThread, commands: TextIO) -> None:
    for line in commands:
        verb, _, rest = line.strip().partition(" ")
        try:
            if verb == "mark":
                load.mark(rest)
            elif verb == "more":
                number, _, timeout_s = rest.partition(" ")
                load.more(int(number), float(timeout_s or 60))
            print(load.report().to_json() if verb == "report" else "done", flush=True)
        except TimeoutError as error:
            print("error", str(error).splitlines()[0], flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Load, and what was lost of it.")
    parser.add_argument("--address", required=True, help="tcp://127.0.0.1:8000 or unix:/path")
    for name, number in (("keepalive", 16), ("fresh", 4), ("slow", 4), ("idle", 0), ("slow-keepalive", 0)):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"clients of this kind ({number})")
    parser.add_argument("--path", default="/")
    parser.add_argument("--slow-path", default="/slow?s=1")
    parser.add_argument("--think-s", type=float, default=0.02, help="mean pause of quick clients")
    parser.add_argument("--seconds", type=float, help="until Ctrl-C when left out")
    parser.add_argument("--json", action="store_true", help="the whole report as one JSON object")
    parser.add_argument("--commands", action="store_true", help="obey mark NAME, more N, report on stdin")
    return parser


def main() -> int:
    arguments = vars(_parser().parse_args())
    address, seconds = arguments.pop("address"), arguments.pop("seconds")
    as_json, commands = arguments.pop("json"), arguments.pop("commands")
    with LoadThread(address, **arguments) as load, contextlib.suppress(KeyboardInterrupt):
        if commands:
            _obey(load, sys.stdin)
        else:
            threading.Event().wait(seconds)
    report = load.report()
    print(report.to_json() if as_json else report, flush=True)
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
