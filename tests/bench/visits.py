"""Visitors that ask which worker they met (X-Pid), and how evenly those are shared."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter

from tests.bench import hammer
from tests.load import parse_address, parse_answer

LONG, SHORT, AT_ONCE = 64, 2000, 8
LIMIT_S = 10.0


def spread(pids: Counter[str], workers: int) -> float:
    """Busiest over idlest; a worker that got nobody counts as one."""
    counts = [*pids.values(), *[1] * (workers - len(pids))]
    return max(counts) / min(counts)


def one_by_one(address: str) -> Counter[str]:
    """LONG connections that stay open, each made when the one before has its answer."""
    with contextlib.ExitStack() as stack:
        return Counter(ask(stack.enter_context(connect(address))) for _ in range(LONG))


def all_at_once(address: str) -> Counter[str]:
    """LONG connections that stay open, all of them made before the first asks for anything."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(address)) for _ in range(LONG)]
        return Counter(ask(sock) for sock in socks)


def short(address: str) -> Counter[str]:
    """SHORT connections of one request each, AT_ONCE at a time."""
    pids: Counter[str] = Counter()
    lock = threading.Lock()

    def visit() -> None:
        for _ in range(SHORT // AT_ONCE):
            with connect(address) as sock:
                pid = ask(sock, hammer.CLOSING)
            with lock:
                pids[pid] += 1

    threads = [threading.Thread(target=visit) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if pids.total() < SHORT:
        raise ConnectionError(f"{SHORT - pids.total()} of {SHORT} short visits were not answered")
    return pids


def one_by_one_after_short(address: str) -> Counter[str]:
    short(address)
    return one_by_one(address)


def meet(address: str, workers: int, limit_s: float) -> set[str]:
    """The pids of those who answer, many connections at once, until there are as many as there should be."""
    deadline, pids = time.monotonic() + limit_s, set[str]()
    while len(pids) < workers and time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            for _ in range(4 * workers):
                with contextlib.suppress(OSError):
                    pids.add(ask(stack.enter_context(connect(address))))
        time.sleep(0.05)
    return pids


def connect(address: str) -> socket.socket:
    family, target = parse_address(address)
    sock = socket.socket(family)
    sock.settimeout(LIMIT_S)
    try:
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock


def ask(sock: socket.socket, request: bytes = hammer.REQUEST) -> str:
    """The pid of the worker that answers. ConnectionError when nobody does."""
    sock.sendall(request)
    data = bytearray()
    while (found := parse_answer(data)) is None:
        part = sock.recv(4096)
        if not part:
            raise ConnectionError("closed without an answer")
        data += part
    return found.headers["x-pid"]
