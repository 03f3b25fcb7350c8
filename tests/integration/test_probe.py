"""One health request, to servers that answer in every way a server can, well or badly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployer.health.probe import BODY_SHOWN, Answer, connect, get
from deployer.sockets.address import Address
from deployer.sockets.bind import inode
from tests.cluster import wait_until

LIMIT_S = 30.0


class Server:
    """Does `serve` with each connection, in a thread, one after the other."""

    def __init__(self, sock: socket.socket, address: Address, serve: Callable[[socket.socket], None]) -> None:
        self.sock, self.address, self.serve = sock, address, serve
        self.requests: list[bytes] = []
        self.inodes: list[int] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(LIMIT_S)
                self.inodes.append(inode(connection))
                self.requests.append(connection.recv(65536))
                self.serve(connection)

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def serving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts a server on a socket of each kind."""
    started: list[Server] = []

    def start(serve: Callable[[socket.socket], None] | bytes) -> Server:
        if request.param == "unix":
            path = str(tmp_path / "sock")
            sock, address = socket.socket(socket.AF_UNIX), Address("unix", path=path)
            sock.bind(path)
            sock.listen()
        else:
            host, family = ("127.0.0.1", socket.AF_INET) if request.param == "tcp" else ("::1", socket.AF_INET6)
            sock = socket.create_server((host, 0), family=family)
            address = Address("tcp", host=host, port=sock.getsockname()[1])
        does = (lambda connection: connection.sendall(serve)) if isinstance(serve, bytes) else serve
        started.append(Server(sock, address, does))
        return started[-1]

    yield start
    for server in started:
        server.close()


def ask(server: Server, timeout: float = LIMIT_S, **keys: Any) -> Answer:
    return asyncio.run(get(server.address, "/healthz?x=1", timeout, **keys))


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def wait_for_close(connection: socket.socket) -> None:
    """The visitor goes first."""
    connection.recv(1)


def test_a_good_answer_is_its_status_and_text(serving: Callable[..., Server]) -> None:
    server = serving(http("200 OK", b"  fine\n"))
    assert ask(server) == Answer(200, "fine", None)
    request = server.requests[0].decode()
    assert request.startswith("GET /healthz?x=1 HTTP/1.1\r\n")
    host = "localhost" if server.address.kind == "unix" else str(server.address).removeprefix("tcp://")
    assert f"Host: {host}\r\n" in request
    assert "deployer-probe: 1\r\n" in request, "deployer's runtime does not count it as a visitor"
    assert "Connection: close" not in request, "who answered is asked while the connection is open"


@pytest.mark.parametrize("status", [204, 302, 404, 500, 503])
def test_any_status_is_an_answer(serving: Callable[..., Server], status: int) -> None:
    """Redirects are not followed: what the check expects is compared with what the server itself said."""
    head = f"HTTP/1.1 {status} X\r\nLocation: /x\r\n".encode()
    server = serving(head + (b"\r\n" if status == 204 else b"Content-Length: 4\r\n\r\nsick"))
    answer = ask(server)
    assert (answer.status, answer.text) == (status, "" if status == 204 else "sick")
    assert answer.describe() == ("204" if status == 204 else f"{status} 'sick'")


def test_who_answered_is_asked_while_the_connection_is_open(serving: Callable[..., Server]) -> None:
    """The inode is the server's own end."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(http("200 OK"))
        wait_for_close(connection)

    server = serving(serve)
    asked: list[int] = []

    def identify(number: int) -> int:
        asked.append(number)
        return 42

    assert ask(server, identify=identify) == Answer(200, "", 42)
    assert set(asked) == set(server.inodes)


def test_a_long_body_is_cut_and_a_chunked_one_put_together(serving: Callable[..., Server]) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(text), text) for text in (b"a" * 200, b"b" * 200, b"c" * 70000))
    server = serving(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert ask(server).text == "a" * 200 + "b" * (BODY_SHOWN - 200)


def test_an_answer_that_comes_byte_by_byte_is_an_answer(serving: Callable[..., Server]) -> None:
    def serve(connection: socket.socket) -> None:
        for byte in http("200 OK", b"ok"):
            connection.sendall(bytes([byte]))

    assert ask(serving(serve)).status == 200


def test_the_time_limit_is_for_all_of_it(serving: Callable[..., Server]) -> None:
    """A server that goes on sending, but never ends, is no healthier than one that is silent."""

    def trickle(connection: socket.socket) -> None:
        connection.settimeout(0.02)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            try:
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue

    began = time.monotonic()
    answer = ask(serving(trickle), timeout=0.3)
    assert (answer.status, answer.text) == (None, "no answer within 0.3 s")
    assert 0.3 <= time.monotonic() - began < 20


def test_silence_is_no_answer_and_says_who_was_silent(serving: Callable[..., Server]) -> None:
    """The worker that hangs has accepted: it can be named."""
    server = serving(wait_for_close)
    answer = ask(server, timeout=1, identify=lambda number: number)
    assert answer == Answer(None, "no answer within 1 s", server.inodes[0])
    assert answer.describe() == "no answer within 1 s"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
    ],
    ids=["bytes", "ssh", "status", "length", "chunk", "upgrade", "no line end", "endless head"],
)
def test_garbage_is_called_what_it_is(serving: Callable[..., Server], garbage: bytes) -> None:
    answer = ask(serving(garbage))
    assert answer.status is None
    assert answer.text.startswith("not HTTP: ")


def test_an_answer_that_is_cut_is_not_an_answer(serving: Callable[..., Server]) -> None:
    answer = ask(serving(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))
    assert answer.status is None
    assert "not HTTP" in answer.text


def test_a_connection_closed_without_a_word_is_told(serving: Callable[..., Server]) -> None:
    answer = ask(serving(lambda connection: None))
    assert answer.status is None
    assert "closed" in answer.text


def test_a_reset_is_told_as_the_kernel_tells_it(serving: Callable[..., Server]) -> None:
    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server = serving(reset)
    answer = ask(server)
    assert answer.status is None
    expected = ("closed",) if server.address.kind == "unix" else ("Connection reset by peer",)
    assert any(words in answer.text for words in expected)


def test_nobody_there_is_told(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen: nobody else does there either
        for address, words in (
            (Address("tcp", host="127.0.0.1", port=sock.getsockname()[1]), "Connection refused"),
            (Address("unix", path=str(tmp_path / "none")), "No such file or directory"),
        ):
            assert asyncio.run(get(address, "/", LIMIT_S)) == Answer(None, words, None)


def test_no_descriptor_is_left_open(serving: Callable[..., Server]) -> None:
    server = serving(http("200 OK"))
    ask(server)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ask(server)
    gc.collect()  # the test's own server may still hold a connection that ended
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "as many descriptors as before")


def test_a_connection_stands_before_anybody_accepts(tmp_path: Path) -> None:
    """What `serves` builds on: the kernel queues it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = Address("tcp", host="127.0.0.1", port=sock.getsockname()[1])
        asyncio.run(connect(address)).close()
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(connect(address))
