"""A worker that was told to stop, and clients of many habits. Both engines of uvicorn."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from deployer.releases.served import lent
from deployer.runtime.scoreboard import DRAINING, GONE
from tests.rawclient import Client
from tests.runtimekit import Workers, until

pytestmark = pytest.mark.serial  # they are about seconds: lingers, spreads, time-outs

Serve = Callable[..., Workers]
Engine = dict[str, Any]


def begin_drain(workers: Workers) -> subprocess.Popen[bytes]:
    """SIGTERM to the first worker, which drains when this returns."""
    process = workers.processes[0]
    process.send_signal(signal.SIGTERM)
    until(lambda: workers.row(process).state in (DRAINING, GONE), "the worker drains")
    return process


def drained(engine: Engine, timeout: float) -> Engine:
    return {**engine, "options": [*engine.get("options", []), f"--drain-timeout={timeout:g}"]}


def test_nothing_open_ends_at_once(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **engine)
    began = time.monotonic()
    assert workers.stop() == 0
    assert time.monotonic() - began < 4
    assert workers.row().state == GONE


def test_an_idle_connection_is_answered_and_told_to_close(serve: Serve, engine: Engine) -> None:
    """The request that comes on it after seconds, too: within the linger time nothing is closed."""
    workers = serve("bare:app", **engine)
    with Client(workers) as early, Client(workers) as late, Client(workers) as fresh:
        assert not early.get("/").closes
        assert not late.get("/").closes
        process = begin_drain(workers)
        answer = early.get("/")
        assert (answer.status, answer.closes, early.ends()) == (200, True, True)
        assert fresh.get("/").closes  # accepted before, silent until now
        time.sleep(4)
        assert late.get("/").closes
        assert late.ends()
    assert process.wait(30) == 0
    assert workers.row(process).cut_connections == 0


def test_idle_connections_are_closed_after_the_linger_time_one_after_another(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **drained(engine, 4))  # lingers 1.2 s
    clients = [Client(workers) for _ in range(10)]
    for client in clients:
        client.get("/")
    began = time.monotonic()
    process = begin_drain(workers)
    ends: list[float] = []

    def wait(client: Client) -> None:
        assert client.ends()
        ends.append(time.monotonic() - began)
        client.sock.close()

    threads = [threading.Thread(target=wait, args=[client]) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process.wait(30) == 0
    assert min(ends) >= 1.15
    assert max(ends) - min(ends) > 0.3


def test_requests_under_way_finish(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **engine)
    with Client(workers) as busy, Client(workers) as uploading:
        busy.send("/slow?s=1.5")
        uploading.send("/upload", "POST", "Content-Length: 100000", body=b"x" * 50_000)
        until(lambda: workers.row().in_flight == 2, "both are under way")
        process = begin_drain(workers)
        uploading.sock.sendall(b"x" * 50_000)
        answers = [uploading.answer(), busy.answer()]
        assert [(answer.body, answer.closes) for answer in answers] == [(b"100000", True), (b"slow", True)]
        assert busy.ends()
    assert process.wait(30) == 0


def test_a_download_whose_head_is_sent_goes_on_and_the_next_answer_closes(serve: Serve, engine: Engine) -> None:
    """The client was not told that the connection ends: it may ask again."""
    workers = serve("bare:app", **engine)
    with Client(workers) as slow_reader:
        slow_reader.send("/download?parts=256")
        slow_reader.read_until(b"\r\n\r\n")
        process = begin_drain(workers)
        size = 256 * 65536
        while size:
            size -= len(slow_reader.sock.recv(min(size, 1 << 20))) if not slow_reader._data else 0
            size -= len(slow_reader._data)
            slow_reader._data.clear()
            time.sleep(0.005)
        assert slow_reader.get("/").closes
    assert process.wait(30) == 0


def test_pipelined_requests_are_all_answered(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **engine)
    with Client(workers) as before, Client(workers) as during:
        during.get("/")
        before.sock.sendall(b"".join(request(f"/slow?s={s}") for s in ("0.5", "0.1", "0.1")))
        until(lambda: workers.row().in_flight == 1, "the first is under way")
        process = begin_drain(workers)
        during.sock.sendall(b"".join(request(f"/?n={n}") for n in range(4)))
        answers = [during.answer() for _ in range(4)]
        assert [answer.body for answer in answers] == [b"0", b"1", b"2", b"3"]
        assert [answer.closes for answer in answers] == [False, False, False, True]
        assert during.ends()
        answers = [before.answer() for _ in range(3)]
        assert [answer.closes for answer in answers] == [False, False, True]
    assert process.wait(30) == 0


def request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


def test_a_half_closed_client_gets_its_answers(serve: Serve, engine: Engine) -> None:
    """In a drain and without one; of pipelined requests all."""
    workers = serve("bare:app", **engine)
    with Client(workers) as client:
        client.sock.sendall(request("/slow?s=0.3") + request("/"))
        client.half_close()
        assert [client.answer().body, client.answer().body] == [b"slow", b"hello"]
        assert client.ends()
    with Client(workers) as client:
        client.send("/slow?s=0.5")
        client.half_close()
        until(lambda: workers.row().in_flight == 1, "it is under way")
        process = begin_drain(workers)
        assert client.answer().body == b"slow"
        assert client.ends()
    assert process.wait(30) == 0


def test_a_client_that_waits_for_100_continue(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **engine)
    with Client(workers) as client:
        client.get("/")
        process = begin_drain(workers)
        client.send("/upload", "POST", "Content-Length: 5", "Expect: 100-continue")
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sock.sendall(b"12345")
        assert client.answer().body == b"5"
    assert process.wait(30) == 0


def test_an_upload_refused_early_gets_its_answer_and_no_reset(serve: Serve, engine: Engine) -> None:
    """What it still sends is read and thrown away until it has seen the end."""
    workers = serve("bare:app", **engine)
    with Client(workers) as client:
        client.get("/")
        process = begin_drain(workers)
        client.send("/refuse", "POST", "Content-Length: 8000000")
        for _ in range(80):
            client.sock.sendall(b"x" * 100_000)
        answer = client.answer()
        assert (answer.status, answer.closes) == (413, True)
        assert client.ends()
    assert process.wait(30) == 0


def test_a_head_that_comes_slowly_is_waited_for(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **drained(engine, 8))  # lingers 2.4 s
    with Client(workers) as client:
        client.sock.sendall(b"GET / HTTP/1.1\r\nHo")
        until(lambda: workers.row().connections == 1, "it is connected")
        process = begin_drain(workers)
        time.sleep(3)
        client.sock.sendall(b"st: test\r\n\r\n")
        assert client.answer().closes
    assert process.wait(30) == 0


def test_an_event_stream_ends_with_a_whole_event_and_the_last_chunk(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **engine)
    with Client(workers) as client:
        client.send("/events")
        client.read_until(b"data: 3\n")
        process = begin_drain(workers)
        assert client.rest().endswith(b"\n\r\n0\r\n\r\n")
    assert process.wait(30) == 0
    assert "events: disconnected" in workers.log()
    assert workers.row(process).cut_requests == 0


def test_websockets_are_closed_with_1012_one_after_another(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **engine)
    address = workers.address.replace("tcp:", "ws:")
    ends: list[tuple[int | None, float]] = []

    def wait(websocket: Any) -> None:
        with pytest.raises(ConnectionClosedError) as caught:
            websocket.recv(30)
        assert caught.value.rcvd is not None
        ends.append((caught.value.rcvd.code, time.monotonic()))

    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(address)) for _ in range(12)]
        sockets[0].send("one")
        assert sockets[0].recv(30) == "echo one"
        process = begin_drain(workers)
        threads = [threading.Thread(target=wait, args=[websocket]) for websocket in sockets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert process.wait(30) == 0
    assert [code for code, _ in ends] == [1012] * 12
    assert ends[-1][1] - ends[0][1] > 0.3
    assert workers.log().count("websocket: 1012") == 12


def test_what_takes_too_long_is_cut_and_counted(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", **drained(engine, 1.5))
    with Client(workers) as slow, Client(workers) as stuck_reader:
        slow.send("/slow?s=30")
        stuck_reader.send("/download?parts=2000")
        until(lambda: workers.row().in_flight == 2, "both are under way")
        began = time.monotonic()
        process = begin_drain(workers)
        assert process.wait(30) == 0
        assert time.monotonic() - began < 15
    assert (workers.row(process).cut_requests, workers.row(process).cut_connections) == (2, 0)
    assert "cut 2 requests" in workers.log()


def test_a_thread_that_never_ends_does_not_keep_a_wsgi_worker(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import time, atexit\natexit.register(print, 'at exit', flush=True)\n"
        "def app(environ, start_response):\n    time.sleep(60)\n"
    )
    workers = serve("shop:app", directory=tmp_path, options=["--drain-timeout=1"])
    with Client(workers) as client:
        client.send("/")
        until(lambda: workers.row().in_flight == 1, "it is under way")
        process = begin_drain(workers)
        assert process.wait(30) == 0
    assert workers.row(process).cut_requests == 1
    assert "at exit" in workers.log()


def test_on_drain_callbacks_run_and_are_waited_for(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import asyncio\nfrom deployer.runtime import on_drain\n"
        "@on_drain\ndef plain():\n    print('plain', flush=True)\n"
        "@on_drain\nasync def slow():\n    await asyncio.sleep(0.5)\n    print('slow', flush=True)\n"
        "@on_drain\ndef broken():\n    raise ValueError('on purpose')\n"
        "async def app(scope, receive, send):\n    raise NotImplementedError\n"
    )
    workers = serve("shop:app", directory=tmp_path)
    assert workers.stop() == 0
    assert [line for line in workers.log().splitlines() if line in ("plain", "slow")] == ["plain", "slow"]
    assert "ValueError: on purpose" in workers.log()


def test_new_visitors_go_to_the_other_worker(serve: Serve, engine: Engine) -> None:
    workers = serve("bare:app", 2, **engine)
    with Client(workers) as busy, Client(workers) as other:
        busy.send("/slow?s=1")
        other.send("/slow?s=1")
        until(lambda: sum(row.in_flight for row in workers.rows()) == 2, "one each")
        process = begin_drain(workers)
        accepted = workers.row(process).accepted
        for _ in range(20):
            with Client(workers) as client:
                assert not client.get("/").closes
        assert workers.row(process).accepted == accepted
        assert busy.answer().body == other.answer().body == b"slow"
    assert process.wait(30) == 0


def test_a_stuck_worker_can_be_seen_and_says_where_it_is(serve: Serve, tmp_path: Path) -> None:
    """The heartbeat stops with the event loop; SIGABRT prints every thread's stack, even then."""
    (tmp_path / "shop.py").write_text(
        "import time\nasync def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n        deadlock()\n"
        "def deadlock():\n    time.sleep(60)\n"
    )
    workers = serve("shop:app", directory=tmp_path)
    with Client(workers) as client:
        client.send("/")
        until(lambda: time.monotonic() - workers.row().heartbeat > 0.6, "the heart stands still")
        workers.processes[0].send_signal(signal.SIGABRT)
        assert workers.processes[0].wait(30) == -signal.SIGABRT
    assert "in deadlock" in workers.log()


def test_stuck_threads_can_be_seen_though_the_loop_turns(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import time\ndef app(environ, start_response):\n    time.sleep(60)\n")
    workers = serve("shop:app", directory=tmp_path, options=["--threads=2", "--drain-timeout=1"])
    with Client(workers) as one, Client(workers) as two:
        one.send("/")
        two.send("/")
        until(lambda: time.monotonic() - workers.row().progress > 0.8, "nothing moves")
        until(lambda: time.monotonic() - workers.row().heartbeat < 0.6, "the heart beats")


def test_wsproto_closes_with_1012_too(serve: Serve, empty_python: str) -> None:
    without = [word for word in lent() if ":websockets=" not in word]
    workers = serve("bare:app", python=empty_python, options=without)
    with connect(workers.address.replace("tcp:", "ws:")) as websocket:
        websocket.send("one")
        assert websocket.recv(30) == "echo one"
        process = begin_drain(workers)
        with pytest.raises(ConnectionClosedError) as caught:
            websocket.recv(30)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1012
    assert process.wait(30) == 0
