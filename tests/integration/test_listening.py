"""Does a process wait for connections? Asked about real processes in each of the ways there are to wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from deployer.sockets.bind import inode
from deployer.workers.listening import holder_of, listens
from tests.cluster import wait_until

LIMIT_S = 60.0
START = "import os, select, socket, sys, threading, time\nsock = socket.socket(fileno=int(sys.argv[1]))\n"
SAY = "print('here', flush=True)\n"

WAITING = {
    "accept": "sock.accept()",
    "accept with a time limit (poll)": "sock.settimeout(60); sock.accept()",
    "poll": "p = select.poll(); p.register(sock, select.POLLIN); p.poll()",
    "poll among others": (
        "r, w = os.pipe(); p = select.poll(); p.register(r); p.register(sock, select.POLLIN); p.poll(60000)"
    ),
    "select": "select.select([sock], [], [])",
    "select with a high descriptor": "os.dup2(sock.fileno(), 900); select.select([900], [], [], 60)",
    "epoll": "e = select.epoll(); e.register(sock, select.EPOLLIN); e.poll()",
    "epoll, busy with a request": "e = select.epoll(); e.register(sock, select.EPOLLIN); time.sleep(60)",
    "asyncio": (
        "import asyncio\n"
        "async def main():\n"
        "    await asyncio.start_server(lambda r, w: None, sock=sock)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    ),
    "a thread": "threading.Thread(target=sock.accept, daemon=True).start(); time.sleep(60)",
    "a child": "os.fork() or sock.accept(); time.sleep(60)",
    "a child of a child": "os.fork() or (os.fork() or sock.accept()); time.sleep(60)",
}

NOT_WAITING = {
    "it only holds the socket": "time.sleep(60)",
    "it waits for something else": "r, w = os.pipe(); select.select([r], [], [])",
    "its epoll has something else": ("r, w = os.pipe(); e = select.epoll(); e.register(r, select.EPOLLIN); e.poll()"),
    "it waits to write": "select.select([], [sock], [sock], 60)",
    "it reads a pipe": "r, w = os.pipe(); os.read(r, 1)",
    "it has a socket of its own": "own = socket.create_server(('127.0.0.1', 0)); sock.close(); own.accept()",
}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


class Started:
    def __init__(self, code: str, sock: socket.socket) -> None:
        fd = sock.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", START + code, str(fd)],
            pass_fds=[fd],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def heard(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"here\n"


@pytest.mark.parametrize("way", WAITING)
def test_a_process_that_waits_for_connections_is_seen(listener: socket.socket, way: str) -> None:
    with Started(WAITING[way], listener) as started:
        wait_until(lambda: listens(started.process.pid, {inode(listener)}), f"it is seen to wait by {way}", LIMIT_S)
        assert not listens(started.process.pid, {1}), "on another socket"
        assert not listens(started.process.pid, set())


@pytest.mark.parametrize("way", NOT_WAITING)
def test_a_process_that_does_not_wait_is_not_taken_for_one(listener: socket.socket, way: str) -> None:
    """As a master that holds the socket for its children: connections are not answered yet."""
    setup, _, last = NOT_WAITING[way].rpartition(";")
    with Started(f"{setup}\n{SAY}{last.strip()}", listener) as started:
        started.heard()
        process = psutil.Process(started.process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_SLEEPING, "it sleeps", LIMIT_S)
        assert not listens(started.process.pid, {inode(listener)})


@pytest.mark.parametrize("kind", ["tcp6", "unix"])
def test_other_kinds_of_sockets_are_seen_too(tmp_path: os.PathLike[str], kind: str) -> None:
    family = socket.AF_INET6 if kind == "tcp6" else socket.AF_UNIX
    with socket.socket(family) as sock:
        sock.bind(("::1", 0) if kind == "tcp6" else os.path.join(tmp_path, "s"))
        sock.listen()
        with Started("sock = socket.socket(fileno=os.dup(sock.detach()))\nsock.accept()", sock) as started:
            wait_until(lambda: listens(started.process.pid, {inode(sock)}), "it is seen", LIMIT_S)


def test_a_process_that_is_gone_does_not_listen(listener: socket.socket) -> None:
    with Started("sock.accept()", listener) as started:
        wait_until(lambda: listens(started.process.pid, {inode(listener)}), "it is seen", LIMIT_S)
        started.process.kill()
        wait_until(lambda: not listens(started.process.pid, {inode(listener)}), "its zombie is not", LIMIT_S)
    assert not listens(started.process.pid, {inode(listener)})


def test_the_holder_of_a_socket_is_found_among_those_asked_about(listener: socket.socket) -> None:
    with (
        Started(SAY + "sock.close(); time.sleep(60)", listener) as without,
        Started(SAY + "time.sleep(60)", listener) as it,
    ):
        without.heard()
        it.heard()
        pids = [without.process.pid, it.process.pid]
        wait_until(lambda: holder_of(inode(listener), pids[:1]) is None, "it has closed the socket", LIMIT_S)
        assert holder_of(inode(listener), pids) == it.process.pid
        assert holder_of(inode(listener), []) is None
        assert holder_of(1, pids) is None
