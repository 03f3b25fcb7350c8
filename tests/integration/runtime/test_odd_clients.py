"""Clients with odd habits around the start of a drain, over TCP and a unix socket, on both engines.

Lost is a request that was sent whole and not answered whole, to a client that honours `Connection: close`.
"""

from __future__ import annotations

import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from habits import DEAF_HABITS, HABITS, LATE_HABITS, LATE_TIMEOUT_S, MEETING_S, WEBSOCKET_HABITS, Habit, Visit, get
from more_habits import sleeps_before_an_answer

from deployer.runtime.scoreboard import DRAINING, GONE
from tests.rawclient import Client
from tests.runtimekit import Workers, until

pytestmark = pytest.mark.serial  # they are about seconds

Serve = Callable[..., Workers]
SEED = random.randrange(10**6)


@dataclass
class Scene:
    """One worker and those who visit it, each in a thread of its own; SIGTERM when all are ready."""

    workers: Workers
    habits: Sequence[Habit]
    cut: int = 0
    failures: list[str] = field(default_factory=list)

    def play(self) -> None:
        ready, begun = threading.Barrier(len(self.habits) + 1), threading.Event()
        threads = [threading.Thread(target=self._visit, args=[habit, ready, begun]) for habit in self.habits]
        for thread in threads:
            thread.start()
        try:
            ready.wait(MEETING_S)
            begin_drain(self.workers)
        except threading.BrokenBarrierError:
            pass  # a visitor failed before, and says why
        finally:
            begun.set()
            for thread in threads:
                thread.join()

    def judge(self) -> None:
        assert not self.failures, "\n".join([*self.failures, self.workers.log()])
        process = self.workers.processes[0]
        assert process.wait(60) == 0
        row = self.workers.row(process)
        assert (row.cut_requests, row.cut_connections) == (0, self.cut), self.workers.log()

    def _visit(self, habit: Habit, ready: threading.Barrier, begun: threading.Event) -> None:
        try:
            with ExitStack() as stack:
                habit(Visit(self.workers, stack, ready, begun))
        except BaseException:
            self.failures.append(f"{habit.__name__}\n{traceback.format_exc()}")
            ready.abort()


def begin_drain(workers: Workers) -> None:
    process = workers.processes[0]
    process.send_signal(signal.SIGTERM)
    until(lambda: workers.row(process).state in (DRAINING, GONE), "the worker drains")


def test_nobody_is_lost(serve: Serve, engine: dict[str, Any]) -> None:
    options = engine.get("options", [])
    late = {**engine, "options": [*options, f"--drain-timeout={LATE_TIMEOUT_S:g}"]}
    threads = {**engine, "options": [*options, f"--threads={len(HABITS)}"]}
    scenes = [
        Scene(serve("odd:app", **engine), HABITS + WEBSOCKET_HABITS),
        Scene(serve("odd:app", unix=True, **engine), HABITS + WEBSOCKET_HABITS),
        Scene(serve("odd_wsgi:app", **threads), HABITS),
        Scene(serve("odd:app", **late), LATE_HABITS),
        Scene(serve("odd:app", unix=True, **late), LATE_HABITS),
        Scene(serve("odd:app", **engine), DEAF_HABITS, cut=len(DEAF_HABITS)),
        Scene(serve("odd:app", unix=True, **late), [sleeps_before_an_answer]),
    ]
    with ThreadPoolExecutor(len(scenes)) as pool:
        list(pool.map(Scene.play, scenes))
    for scene in scenes:
        scene.judge()


def test_an_event_stream_of_wsgi_ends_with_its_client_and_with_the_drain(serve: Serve) -> None:
    """Its thread, too: a2wsgi would go on for ever, and eight clients that left had taken a worker."""
    workers = serve("odd_wsgi:app")
    with Client(workers) as gone:
        gone.send("/events")
        gone.read_until(b"data: 2\n")
    until(lambda: "events: closed" in workers.log(), "the first ended")
    with Client(workers) as there:
        there.send("/events")
        there.read_until(b"data: 2\n")
        begin_drain(workers)
        assert there.read_until(b"0\r\n\r\n").endswith(b"\n\r\n0\r\n\r\n")
    assert workers.processes[0].wait(30) == 0
    assert workers.log().count("events: closed") == 2
    assert workers.row().cut_requests == 0


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_requests_at_the_very_moment_of_the_drain(serve: Serve, engine: dict[str, Any], unix: bool) -> None:
    """From connections that were idle, some milliseconds before or after SIGTERM, to three workers in turn."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    workers = serve("odd:app", 4, unix=unix, **engine)
    lost: list[str] = []
    clients = [Client(workers) for _ in range(48)]
    for client in clients:
        client.get("/")

    def ask(number: int, at: float, kind: str) -> None:
        time.sleep(max(0.0, at - time.monotonic()))
        try:
            if kind == "fresh":
                clients[number].sock.close()
                clients[number] = Client(workers)
            asked = 3 if kind == "pipelining" else 1
            clients[number].sock.sendall(b"".join(get(f"/?n={n}") for n in range(asked)))
            answers = [clients[number].answer() for _ in range(asked)]
            assert [answer.body for answer in answers] == [b"%d" % n for n in range(asked)]
            if answers[-1].closes:
                clients[number].sock.close()
                clients[number] = Client(workers)
        except (OSError, AssertionError) as error:
            lost.append(f"{kind}: {error!r}")

    with ThreadPoolExecutor(len(clients)) as pool:
        for process in workers.processes[:3]:
            moment = time.monotonic() + 0.2
            asking = []
            for number in range(len(clients)):
                kind = chance.choice(("idle", "idle", "pipelining", "fresh"))
                asking.append(pool.submit(ask, number, moment + chance.uniform(-0.03, 0.03), kind))
            time.sleep(max(0.0, moment - time.monotonic()))
            process.send_signal(signal.SIGTERM)
            for one in asking:
                one.result()
    for client in clients:
        client.sock.close()
    assert not lost, lost
    assert [process.wait(60) for process in workers.processes[:3]] == [0, 0, 0]


def test_connections_that_no_worker_had_accepted(serve: Serve, engine: dict[str, Any]) -> None:
    """They wait in the kernel's queue, with their requests, until the next worker takes them."""
    workers = serve("odd:app", **engine)
    old = workers.processes[0]
    old.send_signal(signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(workers)) for _ in range(60)]
        for number, client in enumerate(clients):
            client.send(f"/?n={number}")
        old.send_signal(signal.SIGTERM)
        old.send_signal(signal.SIGCONT)
        workers.until_serving(workers.start("v2"))
        assert [client.answer().body for client in clients] == [b"%d" % number for number in range(60)]
    assert old.wait(60) == 0
