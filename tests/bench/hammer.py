"""Closed loop of requests, as fast as the server answers: python -m tests.bench.hammer ADDRESS SECONDS CONNECTIONS

One epoll loop over keep-alive connections, far cheaper a request than any server measured here, so that the server
is what limits. An answer's length is learnt once for each connection: pages here do not change. Prints requests/s.
With --short each connection is for one request, and another is made in its place: connections/s.
"""

from __future__ import annotations

import argparse
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.load import REPO, parse_address, parse_answer

REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
CONNECT_LIMIT_S = 5.0
READ_SIZE = 65536


@dataclass
class Client:
    sock: socket.socket
    size: int  # of one answer
    got: int = 0


def requests_per_second(address: str, seconds: float, connections: int) -> float:
    """In a process of its own: wrk where it is installed, else this file."""
    wrk = shutil.which("wrk")
    if wrk is None or not address.startswith("tcp:"):
        words = [sys.executable, "-m", "tests.bench.hammer", address, str(seconds), str(connections)]
        return float(_run(words, seconds))
    url = address.replace("tcp:", "http:") + "/"
    found = re.search(
        r"Requests/sec:\s*([\d.]+)", _run([wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", url], seconds)
    )
    assert found is not None
    return float(found[1])


def connections_per_second(address: str, seconds: float, connections: int) -> float:
    """Short ones, `connections` at a time; in a process of its own."""
    words = [sys.executable, "-m", "tests.bench.hammer", address, str(seconds), str(connections), "--short"]
    return float(_run(words, seconds))


def name() -> str:
    return "wrk" if shutil.which("wrk") else "tests/bench/hammer.py"


def _run(words: list[str], seconds: float) -> str:
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=seconds + 30, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def hammer(address: str, seconds: float, connections: int) -> float:
    poll = select.epoll()
    clients = {}
    for _ in range(connections):
        client = first_exchange(address)
        clients[client.sock.fileno()] = client
        poll.register(client.sock, select.EPOLLIN)
    for client in clients.values():
        client.sock.send(REQUEST)
    answered, began = 0, time.perf_counter()
    end = began + seconds
    while time.perf_counter() < end:
        for number, _ in poll.poll(1.0):
            answered += take(clients[number])
    return answered / (time.perf_counter() - began)


def _connected(address: str) -> socket.socket:
    family, target = parse_address(address)
    sock = socket.socket(family)
    sock.settimeout(CONNECT_LIMIT_S)
    sock.connect(target)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def first_exchange(address: str) -> Client:
    sock = _connected(address)
    sock.sendall(REQUEST)
    data = bytearray()
    while (answer := parse_answer(data)) is None:
        data += sock.recv(READ_SIZE)
    sock.setblocking(False)
    return Client(sock, answer.size)


def take(client: Client) -> int:
    """Read what came; when the answer is whole, ask again."""
    data = client.sock.recv(READ_SIZE)
    if not data:
        raise ConnectionError("the server closed a connection under load")
    client.got += len(data)
    if client.got < client.size:
        return 0
    client.got = 0
    client.sock.send(REQUEST)
    return 1


def hammer_short(address: str, seconds: float, connections: int) -> float:
    poll = select.epoll()
    visits: dict[int, tuple[socket.socket, bytearray]] = {}

    def begin() -> None:
        sock = _connected(address)
        visits[sock.fileno()] = sock, bytearray()
        sock.sendall(CLOSING)
        poll.register(sock, select.EPOLLIN)

    for _ in range(connections):
        begin()
    answered, began = 0, time.perf_counter()
    end = began + seconds
    while time.perf_counter() < end:
        for number, _ in poll.poll(1.0):
            sock, data = visits[number]
            part = sock.recv(READ_SIZE)
            data += part
            if part:
                continue
            if not data.startswith(b"HTTP/1.1 200") or b"\r\n\r\n" not in data:
                raise ConnectionError(f"closed without an answer, after {bytes(data)[:40]!r}")
            answered += 1
            del visits[number]
            sock.close()
            begin()
    return answered / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hammer")
    parser.add_argument("address")
    parser.add_argument("seconds", type=float)
    parser.add_argument("connections", type=int)
    parser.add_argument("--short", action="store_true")
    words = parser.parse_args()
    print((hammer_short if words.short else hammer)(words.address, words.seconds, words.connections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
