"""deployer's runtime beside `uvicorn --workers`: who gets the visitors, and how many are served.

Both run the same plain ASGI app on the same loop and parser (whatever uvicorn chooses here), without an access log.
"No rule" is the runtime with --greedy: workers that take whatever they are woken for. Systems are loaded in
turn, round after round, so that what else the machine does meets all alike.

python -m tests.bench.fairness [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import hammer
from tests.bench.bare import answer
from tests.bench.table import end_with, machine, median, met, say, show
from tests.cluster import free_port
from tests.load import parse_address, parse_answer
from tests.runtimekit import Workers

WORKERS = 4
LONG, SHORT, AT_ONCE = 64, 2000, 8
CONNECTIONS = 16
SPREAD_TARGET = 1.15
RULE_TARGET, UVICORN_TARGET = 0.97, 1.0
APP = """
import os
PID = str(os.getpid()).encode()
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    headers = [(b"content-length", b"5"), (b"x-pid", PID)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})
"""
CLOSING = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
NAMES = ("deployer's runtime", "the same, no rule", "uvicorn --workers")


def one_visit(address: str, request: bytes = hammer.REQUEST) -> tuple[socket.socket, str]:
    """A connection, and the pid of the worker that answered on it."""
    family, target = parse_address(address)
    sock = socket.socket(family)
    sock.settimeout(10)
    sock.connect(target)
    sock.sendall(request)
    data = bytearray()
    while (found := parse_answer(data)) is None:
        data += sock.recv(4096)
    return sock, found.headers["x-pid"]


def spread(pids: Counter[str]) -> float:
    """Busiest over idlest; a worker that got nobody counts as one."""
    counts = [*pids.values(), *[1] * (WORKERS - len(pids))]
    return max(counts) / min(counts)


def long_lived(address: str) -> float:
    """LONG connections that stay open."""
    pids: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        for _ in range(LONG):
            sock, pid = one_visit(address)
            stack.enter_context(sock)
            pids[pid] += 1
    return spread(pids)


def short_lived(address: str) -> tuple[float, float]:
    """SHORT connections of one request each, AT_ONCE at a time: the spread, and connections a second."""
    pids: Counter[str] = Counter()
    lock = threading.Lock()

    def visit() -> None:
        for _ in range(SHORT // AT_ONCE):
            sock, pid = one_visit(address, CLOSING)
            sock.close()
            with lock:
                pids[pid] += 1

    began = time.perf_counter()
    threads = [threading.Thread(target=visit) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return spread(pids), SHORT / (time.perf_counter() - began)


@contextlib.contextmanager
def uvicorn_workers(directory: Path) -> Iterator[str]:
    """The address of a `uvicorn --workers`; nothing of it is left after."""
    port = free_port()
    words = ["--workers", str(WORKERS), "--port", str(port), "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *words, "--timeout-keep-alive", "75", "app:app"],
        cwd=directory,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"tcp://127.0.0.1:{port}"
    try:
        _until_all_serve(address)
        yield address
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _until_all_serve(address: str) -> None:
    """All WORKERS have answered: a new connection each time, many at once."""
    deadline, pids = time.monotonic() + 20, set()
    while len(pids) < WORKERS and time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS):
                with contextlib.suppress(OSError):
                    sock, pid = one_visit(address)
                    stack.enter_context(sock)
                    pids.add(pid)
        time.sleep(0.1)
    answer(address, 1.0)


class Figures:
    """What was measured of one system, a number a round."""

    def __init__(self) -> None:
        self.long: list[float] = []
        self.short: list[float] = []
        self.visits: list[float] = []
        self.requests: list[float] = []

    def measure(self, address: str, seconds: float) -> None:
        self.long.append(long_lived(address))
        found, rate = short_lived(address)
        self.short.append(found)
        self.visits.append(rate)
        self.requests.append(hammer.requests_per_second(address, seconds, CONNECTIONS))


def compare(rounds: int, seconds: float) -> dict[str, Figures]:
    """All three at once, loaded in turn."""
    figures = {name: Figures() for name in NAMES}
    with tempfile.TemporaryDirectory(prefix="dep-bench-", dir="/tmp") as scratch, contextlib.ExitStack() as stack:
        directory = Path(scratch)
        (directory / "app.py").write_text(APP)
        ours = stack.enter_context(Workers(directory, "app:app", WORKERS))
        plain = stack.enter_context(Workers(directory, "app:app", WORKERS, options=["--greedy"]))
        theirs = stack.enter_context(uvicorn_workers(directory))
        addresses = dict(zip(NAMES, (ours.address, plain.address, theirs), strict=True))
        for number in range(rounds):
            for name in NAMES if number % 2 == 0 else reversed(NAMES):
                figures[name].measure(addresses[name], seconds)
            last = ", ".join(f"{name} {figures[name].requests[-1]:.0f}/s" for name in NAMES)
            say(f"round {number + 1}: {last}")
    return figures


def ratio(mine: list[float], other: list[float]) -> float:
    return median([one / two for one, two in zip(mine, other, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each loading (2)")
    words = parser.parse_args()
    figures = compare(words.rounds, words.seconds)
    ours, plain, theirs = (figures[name] for name in NAMES)
    rows: list[list[object]] = []
    for name in NAMES:
        found = figures[name]
        worst: Callable[[list[float]], str] = lambda numbers: f"{median(numbers):.2f} ({max(numbers):.2f})"  # noqa: E731
        rates = [f"{median(found.visits):.0f}", f"{median(found.requests):.0f}"]
        rows.append([name, worst(found.long), worst(found.short), *rates])
    head = ("system", f"{LONG} long-lived", f"{SHORT} short", "connections/s", "requests/s")
    goals = [
        f"long-lived, median <= {SPREAD_TARGET}: {met(median(ours.long) <= SPREAD_TARGET)}",
        f"short, median <= {SPREAD_TARGET}: {met(median(ours.short) <= SPREAD_TARGET)}",
        *_goal("requests/s beside no rule", ratio(ours.requests, plain.requests), RULE_TARGET),
        *_goal("connections/s beside no rule", ratio(ours.visits, plain.visits), RULE_TARGET),
        *_goal("requests/s beside uvicorn --workers", ratio(ours.requests, theirs.requests), UVICORN_TARGET),
        *_goal("connections/s beside uvicorn --workers", ratio(ours.visits, theirs.visits), UVICORN_TARGET),
        f"{words.rounds} rounds of {words.seconds:g} s, in turn; {CONNECTIONS} connections by {hammer.name()}",
        f"machine: {machine()}",
    ]
    show(f"Fairness of {WORKERS} workers: busiest / idlest, median (worst) of the rounds", head, rows, goals)
    return 0


def _goal(what: str, found: float, target: float) -> list[str]:
    return [f"{what}, median of the rounds' ratios: {found:.3f}, >= {target}: {met(found >= target)}"]


if __name__ == "__main__":
    end_with(main)
