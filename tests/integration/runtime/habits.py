"""Odd habits of clients that honour `Connection: close`: each sends requests around the start of a drain, and must get
every one that it sent whole answered whole.

A habit is a function of a `Visit`. It calls `visit.drain()` once, which returns when the worker drains.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from deployer.runtime.scoreboard import GONE
from tests.load import Answer
from tests.rawclient import Client
from tests.runtimekit import Workers, until

MEETING_S = 30.0
BIG = 5_000_000
MB = 1_000_000
LATE_TIMEOUT_S = 7.0


class Visit:
    """One client of a habit: its connections, and the moment at which the drain begins."""

    after_linger = 2.5  # seconds, of LATE_TIMEOUT_S

    def __init__(self, workers: Workers, stack: ExitStack, ready: threading.Barrier, begun: threading.Event) -> None:
        self._workers, self._stack, self._ready, self._begun = workers, stack, ready, begun

    def client(self) -> Client:
        return self._stack.enter_context(Client(self._workers))

    def drain(self) -> None:
        self._ready.wait(MEETING_S)
        assert self._begun.wait(MEETING_S)

    def until_answered(self) -> None:
        """The worker has begun the one answer that there is."""
        until(lambda: self._workers.row().requests == 1, "the request is answered")

    def until_gone(self) -> None:
        """The worker has drained, long before its time is over."""
        until(lambda: self._workers.row().state == GONE, "the worker waits for nobody")


Habit = Callable[[Visit], None]
LATE_HABITS: list[Habit] = []
"""Those that last longer than the linger time of a drain of LATE_TIMEOUT_S."""
DEAF_HABITS: list[Habit] = []
"""Those who read nothing of what never ends, and are given up."""
HABITS: list[Habit] = []
"""Of the paths of tests/apps/served/odd.py and odd_wsgi.py."""
WEBSOCKET_HABITS: list[Habit] = []


def get(path: str = "/", *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *lines, "", ""]).encode()


def expect(answer: Answer, body: bytes | int, *, closes: bool | None = None) -> None:
    assert answer.status == 200, answer
    assert body in (answer.body, len(answer.body)), (len(answer.body), answer.body[:50])
    assert closes is None or answer.closes is closes, answer.headers


def last(client: Client, body: bytes | int) -> None:
    """The answer that says that it is the last one, and is."""
    expect(client.answer(), body, closes=True)
    assert client.ends()


# Pipelining


@HABITS.append
def pipelines_in_one_segment(visit: Visit) -> None:
    client = visit.client()
    expect(client.get("/"), b"hello")
    visit.drain()
    client.sock.sendall(b"".join(get(f"/?n={n}") for n in range(50)))
    answers = [client.answer() for _ in range(50)]
    assert [answer.body for answer in answers] == [str(n).encode() for n in range(50)]
    assert [answer.closes for answer in answers] == [False] * 49 + [True]
    assert client.ends()


@HABITS.append
def pipelines_before_the_drain(visit: Visit) -> None:
    client = visit.client()
    client.sock.sendall(get("/held") + b"".join(get(f"/?n={n}") for n in range(30)) + get("/slow?s=0.2"))
    visit.drain()
    expect(client.answer(), b"held", closes=False)
    for n in range(30):
        expect(client.answer(), str(n).encode(), closes=False)
    last(client, b"slow")


@HABITS.append
def pipelines_and_splits_a_head(visit: Visit) -> None:
    """The second head has come in part when the first is answered: it was begun before anybody said close."""
    client = visit.client()
    second = get("/?n=2", "X-Long: " + "y" * 500)
    client.sock.sendall(get("/held") + second[:100])
    visit.drain()
    expect(client.answer(), b"held", closes=False)
    time.sleep(0.3)
    client.sock.sendall(second[100:])
    last(client, b"2")


@HABITS.append
def pipelines_and_splits_a_method(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.sock.sendall(get("/?n=1") + b"G")
    expect(client.answer(), b"1", closes=False)
    time.sleep(0.3)
    client.sock.sendall(get("/?n=2")[1:])
    last(client, b"2")


@HABITS.append
def pipelines_uploads(visit: Visit) -> None:
    client = visit.client()
    body = b"u" * 200_000
    upload = get("/upload", f"Content-Length: {len(body)}", method="POST") + body
    sender = threading.Thread(target=client.sock.sendall, args=[get("/held") + upload * 5 + get("/?n=end")])
    sender.start()
    visit.drain()
    expect(client.answer(), b"held", closes=False)
    for _ in range(5):
        expect(client.answer(), b"200000", closes=False)
    last(client, b"end")
    sender.join()


@HABITS.append
def pipelines_large_answers(visit: Visit) -> None:
    client = visit.client()
    client.sock.sendall(get(f"/big?bytes={BIG}") + get("/held") + get(f"/big?bytes={BIG}") + get("/"))
    visit.drain()
    expect(client.answer(), BIG, closes=False)
    expect(client.answer(), b"held", closes=False)
    expect(client.answer(), BIG, closes=False)
    last(client, b"hello")


# Half-closed sockets


@HABITS.append
def half_closes_after_the_request(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.sock.sendall(get("/slow?s=0.3"))
    client.half_close()
    last(client, b"slow")


@HABITS.append
def half_closes_before_a_large_answer(visit: Visit) -> None:
    client = visit.client()
    client.sock.sendall(get("/held") + get(f"/big?bytes={BIG}"))
    client.half_close()
    visit.drain()
    expect(client.answer(), b"held", closes=False)
    read_slowly(client, 1.0)
    expect(client.answer(), BIG)
    assert client.ends()


@HABITS.append
def half_closes_after_an_upload(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.send("/upload", "POST", f"Content-Length: {BIG}", body=b"x" * BIG)
    client.half_close()
    last(client, str(BIG).encode())


@HABITS.append
def half_closes_after_pipelining(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.sock.sendall(b"".join(get(f"/?n={n}") for n in range(20)))
    client.half_close()
    for n in range(19):
        expect(client.answer(), str(n).encode())
    last(client, b"19")


# Slow readers and slow senders


def read_slowly(client: Client, seconds: float, rate: int = 100_000) -> None:
    """100 kB/s for a while, then as fast as one can."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client._data += client.sock.recv(rate // 20)
        time.sleep(0.05)


@LATE_HABITS.append
def reads_slowly_what_was_written_at_once(visit: Visit) -> None:
    """It was not told that the connection ends, and asks again when it has read all, which is after the linger."""
    client = visit.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.send(f"/big?bytes={BIG}")
    client.read_until(b"\r\n\r\n")
    visit.drain()
    size = BIG - len(client._data)
    client._data.clear()
    end = time.monotonic() + visit.after_linger
    while size:
        slowly = time.monotonic() < end
        part = client.sock.recv(5000 if slowly else min(size, 100_000))
        assert part
        size -= len(part)
        time.sleep(0.05 if slowly else 0.0)
    expect(client.get("/"), b"hello", closes=True)
    assert client.ends()


@HABITS.append
def reads_slowly_what_was_asked_in_the_drain(visit: Visit) -> None:
    client = visit.client()
    visit.drain()
    client.send(f"/big?bytes={BIG}")
    read_slowly(client, 3.0)
    last(client, BIG)


@HABITS.append
def sends_its_head_byte_by_byte(visit: Visit) -> None:
    client = visit.client()
    head = get("/?n=slowly")
    for number, byte in enumerate(head):
        client.sock.sendall(bytes([byte]))
        time.sleep(0.02)
        if number == len(head) // 2:
            visit.drain()
    last(client, b"slowly")


@HABITS.append
def sends_its_body_slowly(visit: Visit) -> None:
    client = visit.client()
    client.send("/upload", "POST", "Content-Length: 60")
    for number in range(60):
        client.sock.sendall(b"x")
        time.sleep(0.05)
        if number == 10:
            visit.drain()
    last(client, b"60")
