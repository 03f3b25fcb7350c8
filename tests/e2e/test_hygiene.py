"""Workers that are too large, too old or stuck: found, replaced start-first, one at a time, and the reason is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deployer.runtime.scoreboard import Row, Scoreboard
from tests.apps import App
from tests.cluster import wait_until
from tests.e2e.conftest import FAILED
from tests.e2e.shop import Shop, alive
from tests.load import LoadReport, LoadThread

ASGI = """
import asyncio, os, time
HELD = []
time.sleep({boot_s})
if os.path.exists("../../../fat"):
    HELD.append(bytearray(os.urandom(1)) * {fat_mb} * 1024 * 1024)
def stuck_in_the_loop():
    time.sleep(10000)
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    path = scope["path"]
    if path == "/block":
        stuck_in_the_loop()
    if path == "/leak":
        HELD.append(bytearray(os.urandom(1)) * 64 * 1024 * 1024)
    if path == "/family":
        import subprocess
        HELD.append(subprocess.Popen(["python3", "-c", "x = bytearray(b'1') * (64 << 20); input()"],
                                     stdin=subprocess.PIPE))
    headers = [(b"content-length", b"5"), (b"x-pid", str(os.getpid()).encode()),
               (b"x-release", os.environ["DEPLOYER_RELEASE"].encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": b"hello"}})
"""
WSGI = """
import os, threading, time
def drips():
    for _ in range(20):
        time.sleep(0.3)
        yield b"."
def stuck_in_a_thread():
    threading.Event().wait()
def app(environ, start_response):
    if environ["PATH_INFO"] == "/block":
        stuck_in_a_thread()
    if environ["PATH_INFO"] == "/drip":
        start_response("200 OK", [("Content-Length", "20")])
        return drips()
    start_response("200 OK", [("Content-Length", "5"), ("X-Pid", str(os.getpid())),
                              ("X-Release", os.environ["DEPLOYER_RELEASE"])])
    return [b"hello"]
"""
FRESH: dict[str, Any] = {"keepalive": 0, "fresh": 4, "slow": 0}
GENTLE: dict[str, Any] = {"keepalive": 3, "fresh": 2, "slow": 0}


class Leaky(Shop):
    """A cluster of two workers of `[worker] app`."""

    def __init__(self, source: str, limits: str, **options: Any) -> None:
        self.source, self.boot_s = source, options.pop("boot_s", 0)
        super().__init__(worker_extra=limits, soak=options.pop("soak", "100ms"), ready_timeout="20s", **options)

    def write(self, behaviour: str = "good", label: str = "hello", **options: Any) -> App:
        self.directory.mkdir(exist_ok=True)
        fields = {"boot_s": self.boot_s, "fat_mb": 200, "label": label}
        source = self.source.format(**fields) if self.source is ASGI else self.source
        (self.directory / "app.py").write_text(f"{source}# {label}\n")
        app = App(self.directory, "", "notify")
        lines = app.toml(self.address, **self.toml).replace('http = "/healthz"', "").splitlines()
        text = "\n".join('app = "app:app"' if line.startswith("command") else line for line in lines)
        (self.directory / "deployer.toml").write_text(text)
        for name, old, new in self.edits:
            self.edit(name, old, new)
        return app

    def row(self, pid: int) -> Row:
        with Scoreboard.open(self.root / "run" / "scoreboard") as board:
            return next(row for row in board.rows() if row.pid == pid)

    def log(self, pid: int) -> str:
        lines = [json.loads(line) for line in (self.root / "logs" / "app.log").read_text().splitlines()]
        return "\n".join(line["line"] for line in lines if line["pid"] == pid)

    def order(self, after: int) -> list[str]:
        """What became of workers in slots since the event `after`."""
        words = ("starting", "ready", "draining")
        found = [e for e in self.events() if e["seq"] > after and e["event"].startswith("worker.") and e["slot"]]
        return [word for e in found if (word := e["event"].removeprefix("worker.")) in words]


@pytest.fixture
def leaky(request: pytest.FixtureRequest) -> Iterator[Callable[..., Leaky]]:
    made: list[Leaky] = []

    def make(source: str, limits: str, **options: Any) -> Leaky:
        made.append(Leaky(source, limits, **options))
        return made[-1]

    yield make
    failed = request.node.stash.get(FAILED, False)
    for cluster in made:
        if failed:
            print(f"{cluster.base}: deployer.log\n{cluster.log_tail(40)}")
        cluster.close(check=not failed)


@contextlib.contextmanager
def asked(cluster: Shop, path: str, times: int = 1) -> Iterator[int]:
    """Requests that get no answer, all on one worker; its pid. The kernel chooses the first one's worker."""
    with contextlib.ExitStack() as stack:
        before = {pid: busy(cluster, pid) for pid in cluster.pids()}
        hit: dict[int, int] = {}
        while not hit or max(hit.values()) < times:
            sock: socket.socket = stack.enter_context(cluster.connect(60))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            known = sum(hit.values())
            hit = wait_until(lambda known=known: moved(cluster, before, known), "somebody took it")  # type: ignore[misc]
        yield max(hit, key=lambda pid: hit[pid])


def busy(cluster: Shop, pid: int) -> int:
    with Scoreboard.open(cluster.root / "run" / "scoreboard") as board:
        return next(row.accepted for row in board.rows() if row.pid == pid)


def moved(cluster: Shop, before: dict[int, int], known: int) -> dict[int, int] | None:
    now = {pid: busy(cluster, pid) - count for pid, count in before.items()}
    return now if sum(now.values()) > known else None


def recycled(cluster: Shop, pid: int, timeout: float = 60) -> dict[str, Any]:
    """The event, once the worker is gone, and the manager knows."""
    wait_until(lambda: pid in {e["pid"] for e in cluster.events("worker.exited")}, f"{pid} is gone", timeout, 0.1)
    (event,) = [e for e in cluster.events("worker.recycled") if e["pid"] == pid]
    return event


def assert_lost_only_there(report: LoadReport, hung: Row) -> None:
    """Nothing but what the hung worker had taken."""
    assert report.lost <= hung.connections, f"{report}\n{hung.connections} connections were on the hung worker"
    assert report.errors == 0, str(report)
    assert report.requests > 20


def test_one_that_leaks_is_replaced_and_its_children_count(leaky: Callable[..., Leaky]) -> None:
    cluster = leaky(ASGI, 'memory_limit = "100M"\n')
    cluster.up()
    slots = cluster.assert_serves("v1")
    seq = cluster.events()[-1]["seq"]
    with LoadThread(cluster.address, **GENTLE) as load:
        load.more(20)
        for path in ("/leak", "/family", "/leak", "/family"):  # 64 MB each: one of two workers gets two of them
            cluster.get(path)
        fat = wait_until(lambda: cluster.events("worker.recycled"), "one is too large", pause=0.1)[0]["pid"]
        event = recycled(cluster, fat)
        load.more(20)
        report = load.stop()
    assert report.lost == 0, str(report)
    status = cluster.settled()
    assert event["reason"] == "memory"
    assert event["text"].endswith("memory_limit is 100 MB")
    assert cluster.order(seq)[:3] == ["starting", "ready", "draining"]
    ends = {e["pid"]: (e["code"], e["expected"]) for e in cluster.events("worker.exited") if e["slot"]}
    assert ends[fat] == (0, True), "it drained in order"
    slot = next(slot for slot, pid in slots.items() if pid == fat)
    worker = next(worker for worker in status["workers"] if worker["slot"] == slot)
    assert (worker["restarts"], worker["last_exit"]) == (0, None), "that is no death"
    assert (worker["recycled"]["pid"], worker["recycled"]["reason"]) == (fat, "memory")
    assert f"pid {fat} replaced (memory)" in cluster.run("status", code=0).out
    assert f"pid {fat} is replaced (memory): it uses " in cluster.run("events", code=0).out


def test_a_release_that_is_too_large_at_once_is_not_replaced_again_and_again(leaky: Callable[..., Leaky]) -> None:
    """The first is replaced, the second serves on for a while, with a warning; a limit changed by a deploy helps."""
    cluster = leaky(ASGI, 'memory_limit = "150M"\n', count=1)
    cluster.up()
    (cluster.directory / "fat").touch()
    cluster.run("restart", code=0)
    event = wait_until(lambda: cluster.events("worker.over_limit"), "a warning", pause=0.2)[0]
    (first,) = cluster.events("worker.recycled")
    assert first["reason"] == "memory"
    assert "right after its start: replaced in" in event["text"]
    assert cluster.pids() == [event["pid"]], "it serves"
    assert "right after its start" in cluster.run("status", code=0).out
    assert "warning: v1 pid" in cluster.run("events", code=0).out
    cluster.edits = [("deployer.toml", '"150M"', '"900M"')]
    cluster.deploy(label="second", code=0)
    assert cluster.settled()["workers"][0]["why"] is None


def test_all_are_replaced_when_they_are_old_one_after_the_other(leaky: Callable[..., Leaky]) -> None:
    cluster = leaky(ASGI, 'max_age = "3s"\n')
    cluster.up()
    seq, slots = cluster.events()[-1]["seq"], cluster.assert_serves("v1")
    with LoadThread(cluster.address, **GENTLE) as load:
        for pid in slots.values():
            event = recycled(cluster, pid)
            assert event["reason"] == "max_age"
            assert event["text"].endswith("max_age is 3.0s")
        load.more(20)
        report = load.stop()
    assert report.lost == 0, str(report)
    assert cluster.order(seq)[:6] == ["starting", "ready", "draining"] * 2


@pytest.mark.parametrize(
    ("source", "times", "what", "where"),
    [(ASGI, 1, "its event loop has", "stuck_in_the_loop"), (WSGI, 8, "all its threads have", "stuck_in_a_thread")],
    ids=["asgi", "wsgi"],
)
def test_a_stuck_one_is_replaced_with_its_stacks_in_the_log(
    leaky: Callable[..., Leaky], source: str, times: int, what: str, where: str
) -> None:
    cluster = leaky(source, 'watchdog = "2s"\n')
    cluster.up()
    slots = cluster.assert_serves("v1")
    seq = cluster.events()[-1]["seq"]
    with asked(cluster, "/block", times) as pid, LoadThread(cluster.address, **FRESH) as load:
        event = recycled(cluster, pid)
        load.more(20)
        report = load.stop()
    assert_lost_only_there(report, cluster.row(pid))
    assert event["reason"] == "hung"
    assert event["text"].startswith(f"{what} been stuck for ")
    assert event["text"].endswith(", watchdog is 2.0s")
    assert cluster.order(seq)[:3] == ["starting", "ready", "draining"], "its replacement was there first"
    (end,) = [e for e in cluster.events("worker.exited") if e["pid"] == pid]
    assert (end["signal"], end["expected"]) == ("SIGABRT", True)
    stacks = cluster.run("logs", "--lines", "500", code=0).out
    assert "Fatal Python error: Aborted" in stacks
    assert stacks.count(where) >= times
    status = cluster.settled()
    assert [worker["restarts"] for worker in status["workers"]] == [0, 0]
    untouched = {slot: each for slot, each in slots.items() if each != pid}
    cluster.assert_serves("v1", untouched)


def test_threads_that_are_busy_with_slow_answers_are_not_stuck(leaky: Callable[..., Leaky]) -> None:
    """All of them, for three times as long as the watchdog: each part that moves is a sign of life."""
    cluster = leaky(WSGI, 'watchdog = "2s"\nthreads = 2\n', count=1)
    cluster.up()
    slots = cluster.assert_serves("v1")
    answers: list[bytes] = []
    askers = [threading.Thread(target=lambda: answers.append(cluster.get("/drip", 30)[2])) for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(40)
    assert answers == [b"." * 20] * 2
    assert cluster.events("worker.recycled") == []
    cluster.assert_serves("v1", slots)


def test_one_that_was_stopped_is_killed_when_it_prints_nothing(leaky: Callable[..., Leaky]) -> None:
    """SIGABRT waits for SIGCONT; SIGKILL does not."""
    cluster = leaky(ASGI, 'watchdog = "2s"\n')
    cluster.up()
    pid = cluster.pids()[0]
    os.kill(pid, signal.SIGSTOP)
    event = recycled(cluster, pid)
    assert event["reason"] == "hung"
    (end,) = [e for e in cluster.events("worker.exited") if e["pid"] == pid]
    assert (end["signal"], end["expected"]) == ("SIGKILL", True)
    cluster.assert_serves("v1")


def test_a_cluster_that_was_stopped_and_goes_on_is_not_hung(leaky: Callable[..., Leaky]) -> None:
    """As a laptop that slept: keeper, manager and workers stand still for longer than the watchdog."""
    cluster = leaky(ASGI, 'watchdog = "2s"\n')
    cluster.up()
    slots = cluster.assert_serves("v1")
    processes = [cluster.keeper_pid(), cluster.manager_pid(), *slots.values()]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    since = cluster.row(slots[1]).heartbeat
    wait_until(lambda: time.monotonic() - since > 5, "five seconds later")
    assert cluster.row(slots[1]).heartbeat == since
    for pid in reversed(processes):  # the manager before the workers: it sees nothing but old pulses
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: cluster.row(slots[1]).heartbeat > since, "the worker beats again")
    seen = cluster.row(slots[1]).heartbeat
    wait_until(lambda: cluster.row(slots[1]).heartbeat > seen + 4, "it has beaten for four seconds")
    assert cluster.events("worker.recycled") == []
    cluster.assert_serves("v1", slots)


def test_the_next_manager_finds_the_same_again(leaky: Callable[..., Leaky]) -> None:
    """kill -9 of the manager while the replacement of a hung worker boots."""
    cluster = leaky(ASGI, 'watchdog = "2s"\n', boot_s=3)
    cluster.up()
    with asked(cluster, "/block") as pid:
        wait_until(lambda: cluster.events("worker.recycled"), "it is found", pause=0.1)
        assert alive(pid)
        cluster.kill_manager()
        assert alive(pid)
        event = recycled(cluster, pid)
    assert event["reason"] == "hung"
    (end,) = [e for e in cluster.events("worker.exited") if e["pid"] == pid]
    assert end["signal"] == "SIGABRT"
    assert "stuck_in_the_loop" in cluster.log(pid)
    cluster.assert_serves("v1")


def test_a_hung_canary_is_a_failure_of_its_rollout_and_a_hung_old_worker_waits(leaky: Callable[..., Leaky]) -> None:
    cluster = leaky(ASGI, 'watchdog = "2s"\n', soak="20s")
    cluster.up()
    slots = cluster.assert_serves("v1")
    cluster.write(label="second")
    with cluster.begin("deploy") as deploy:
        deploy.until("soak.started")
        with contextlib.ExitStack() as stack:
            hung: set[int] = set()
            while not any(cluster.row(pid).release == 2 for pid in hung):
                hung.add(stack.enter_context(asked_any(cluster)))
            assert deploy.finish() == 3
    assert deploy.last["reason"] == "hung"
    assert "stuck" in deploy.last["problem"]["cause"]
    old = hung & set(slots.values())
    finished = next(e for e in cluster.events("rollout.finished") if e["rollout"] == 2)
    for pid in old:
        assert recycled(cluster, pid)["seq"] > finished["seq"], "it waited"
    (canary,) = hung - old
    wait_until(lambda: not alive(canary), "the canary is gone")
    assert "stuck_in_the_loop" in cluster.log(canary)
    cluster.assert_serves("v1")


@contextlib.contextmanager
def asked_any(cluster: Leaky) -> Iterator[int]:
    """A request that blocks whichever worker takes it; its pid."""
    with Scoreboard.open(cluster.root / "run" / "scoreboard") as board:
        before = {row.pid: row.accepted for row in board.rows() if row.alive}

        def taken() -> int | None:
            rows = (row for row in board.rows() if row.pid in before)
            return next((row.pid for row in rows if row.accepted > before[row.pid]), None)

        with cluster.connect(60) as sock:
            sock.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
            yield wait_until(taken, "somebody took it")
