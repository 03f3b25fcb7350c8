"""Closed loop of requests, as fast as the server answers: python -m tests.bench.hammer ADDRESS SECONDS CONNECTIONS

One epoll loop over keep-alive connections, far cheaper a request than any server measured here, so that the server
is what limits. An answer's length is learnt once for each connection: pages here do not change. Prints requests/s.
"""

from __future__ import annotations

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


def first_exchange(address: str) -> Client:
    family, target = parse_address(address)
    sock = socket.socket(family)
    sock.settimeout(CONNECT_LIMIT_S)
    sock.connect(target)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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


def main() -> int:
    address, seconds, connections = sys.argv[1:]
    print(hammer(address, float(seconds), int(connections)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
