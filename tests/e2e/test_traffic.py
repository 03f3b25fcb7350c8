"""What `status`, /metrics and the end of a deploy tell of visitors, against what was really sent."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.apps import App
from tests.cluster import wait_until
from tests.e2e.shop import Shop

APP = """
import asyncio, os, time
import deployer.runtime

deployer.runtime.report("cache is warm")
WHO = [(b"x-pid", str(os.getpid()).encode()), (b"x-release", os.environ["DEPLOYER_RELEASE"].encode())]
STATUS = {{"/missing": 404, "/sorry": 500, "/moved": 302}}

async def app(scope, receive, send):
    path = scope["path"]
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({{"type": "lifespan.startup.complete"}})
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    if path == "/fail":
        raise ValueError("on purpose")
    if path in ("/slow", "/stuck"):
        await asyncio.sleep(60 if path == "/slow" else 1)
        if path == "/stuck":
            time.sleep(60)  # the loop itself: a SIGTERM is not heard
    body = b"{label}"
    headers = [(b"content-length", str(len(body)).encode()), *WHO]
    await send({{"type": "http.response.start", "status": STATUS.get(path, 200), "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""
SENT = {"/": 60, "/missing": 11, "/sorry": 4, "/moved": 3}
RAISED = 2


class Counted(Shop):
    """A served application that nobody visits but the test: no health check comes between."""

    def write(self, behaviour: str = "good", label: str = "hello", **options: object) -> App:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "app.py").write_text(APP.format(label=label))
        app = App(self.directory, "", "notify")
        text = app.toml(self.address, soak="0s", interval="1h", ready_timeout="20s", **self.toml)
        lines = text.splitlines()
        text = "\n".join('app = "app:app"' if line.startswith("command") else line for line in lines)
        (self.directory / "deployer.toml").write_text(text)
        return app

    def traffic(self) -> dict[int, dict[str, Any]]:
        """By pid."""
        return {worker["pid"]: worker["traffic"] for worker in self.status()["workers"]}

    def metrics(self) -> dict[str, Metric]:
        with contextlib.closing(http.client.HTTPConnection("localhost", timeout=20)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.root / "run" / "control.sock"))
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("content-type")) == (
                200,
                "text/plain; version=0.0.4; charset=utf-8",
            )
            return {family.name: family for family in text_string_to_metric_families(answer.read().decode())}


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[..., Counted]:
    def make(**options: object) -> Counted:
        made = Counted(server="sample", **options)
        request.addfinalizer(made.close)
        return made

    return make


def values(family: Metric, name: str = "") -> dict[tuple[str, ...], float]:
    """By the values of the labels, in the order of their names."""
    found = [sample for sample in family.samples if sample.name == (name or family.name)]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in found}


def send(cluster: Counted) -> Counter[tuple[str, str]]:
    """(pid, class) -> how many answers; the worker of those that were raised is not known."""
    seen: Counter[tuple[str, str]] = Counter()
    for path, number in SENT.items():
        for _ in range(number):
            status, headers, _ = cluster.get(path)
            seen[headers["x-pid"], f"{status // 100}xx"] += 1
    for _ in range(RAISED):
        assert cluster.get("/fail")[0] == 500
    return seen


def test_every_answer_is_counted_once_where_it_was_given(counted: Callable[..., Counted]) -> None:
    cluster = counted(count=2)
    cluster.up()
    before = cluster.traffic()
    assert [traffic["requests"] for traffic in before.values()] == [0, 0]
    sent = send(cluster)
    found = wait_until(lambda: _quiet(cluster.traffic()), "all connections are closed")
    assert found.keys() == before.keys()
    for pid, traffic in found.items():
        for name in ("2xx", "3xx", "4xx"):
            assert traffic[f"status_{name}"] == sent[str(pid), name], (pid, name)
        assert traffic["report"] == "cache is warm"
        assert 0 < traffic["p50_ms"] <= traffic["p99_ms"] < 10_000
        assert traffic["requests_per_s"] > 0
    assert sum(traffic["status_5xx"] for traffic in found.values()) == SENT["/sorry"] + RAISED
    assert sum(traffic["requests"] for traffic in found.values()) == sum(SENT.values()) + RAISED
    assert "ValueError: on purpose" in [traffic["last_error"] for traffic in found.values()]
    shown = cluster.run("status", code=0).out
    assert "REQ/S" in shown
    assert "says: cache is warm" in shown
    assert "ago: ValueError: on purpose" in shown
    _agrees(cluster, cluster.metrics(), sent)


def _quiet(traffic: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]] | None:
    return None if any(one["connections"] or one["in_flight"] for one in traffic.values()) else traffic


def _agrees(cluster: Counted, metrics: dict[str, Metric], sent: Counter[tuple[str, str]]) -> None:
    told = values(metrics["deployer_worker_requests"], "deployer_worker_requests_total")
    by_class = {(pid, name): number for (pid, _, _, name), number in told.items() if number and name != "5xx"}
    assert by_class == {key: number for key, number in sent.items() if key[1] != "5xx"}
    assert {release for _, release, _, _ in told} == {"v1"}
    latency = metrics["deployer_worker_latency_seconds"]
    counts = values(latency, "deployer_worker_latency_seconds_count")
    assert {pid: count for (pid, _, _), count in counts.items()} == _by_pid(sent)
    for (pid, _, _), seconds in values(latency, "deployer_worker_latency_seconds_sum").items():
        assert 0 < seconds < 10 * _by_pid(sent)[pid]
    for pid in map(str, cluster.pids()):
        buckets = [s.value for s in latency.samples if s.name.endswith("_bucket") and s.labels["pid"] == pid]
        assert buckets == sorted(buckets)
        assert buckets[-1] == _by_pid(sent)[pid]
    up = values(metrics["deployer_worker_up"])
    assert {(pid, slot, state): value for (pid, _, slot, state), value in up.items()} == {
        (str(worker["pid"]), str(worker["slot"]), "ready"): 1.0 for worker in cluster.workers()
    }
    assert set(values(metrics["deployer_worker_connections"]).values()) == {0.0}
    assert all(number > 1e6 for number in values(metrics["deployer_worker_resident_memory_bytes"]).values())
    assert values(metrics["deployer_rollouts"], "deployer_rollouts_total") == {("deploy", "promoted"): 1.0}
    assert values(metrics["deployer_release_info"]) == {("", "v1"): 1.0}


def _by_pid(sent: Counter[tuple[str, str]]) -> dict[str, int]:
    """An answer that was raised has no latency: the application never gave its head."""
    found: Counter[str] = Counter()
    for (pid, _), number in sent.items():
        found[pid] += number
    return dict(found)


def test_totals_outlive_their_worker(counted: Callable[..., Counted]) -> None:
    """What was counted after the last scrape is told by the next one, and never less than before."""
    cluster = counted(count=1)
    cluster.up()
    (old,) = cluster.pids()
    for _ in range(7):
        cluster.get()
    cluster.run("restart", code=0)
    cluster.settled()
    cluster.get()
    (new,) = cluster.pids()
    metrics = cluster.metrics()
    told = values(metrics["deployer_worker_requests"], "deployer_worker_requests_total")
    assert {pid: number for (pid, _, _, name), number in told.items() if name == "2xx"} == {str(old): 7, str(new): 1}
    assert {pid for pid, _, _ in values(metrics["deployer_worker_connections"])} == {str(new)}
    assert values(metrics["deployer_worker_restarts"], "deployer_worker_restarts_total") == {("1",): 0.0}
    assert ("restart", "promoted") in values(metrics["deployer_rollouts"], "deployer_rollouts_total")


@contextlib.contextmanager
def visitors(cluster: Counted, path: str, busy: int) -> Iterator[int]:
    """Requests that nobody answers, until `busy` workers have one; their number."""
    with contextlib.ExitStack() as stack:
        number = 0

        def all_busy() -> bool:
            return sum(traffic["in_flight"] > 0 for traffic in cluster.traffic().values()) == busy

        while number < 2 or not all_busy():
            sock = stack.enter_context(cluster.connect())
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            number += 1
            wait_until(lambda: _in_flight(cluster) == number, f"{number} requests are under way")  # noqa: B023
        yield number


def _in_flight(cluster: Counted) -> int:
    return sum(traffic["in_flight"] for traffic in cluster.traffic().values())


def test_a_request_longer_than_the_drain_is_counted_and_told(counted: Callable[..., Counted]) -> None:
    """The hook holds the rollout until the old workers have come to their end."""
    cluster = counted(count=2, drain_timeout="8s")
    cluster.up()
    hooks = cluster.root / "hooks"
    hooks.mkdir(exist_ok=True)
    (hooks / "after_rollout").write_text("#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.05; done\n")
    (hooks / "after_rollout").chmod(0o755)
    cluster.write(label="second")
    with visitors(cluster, "/slow", busy=2) as number:
        deploy = cluster.start("deploy")
        wait_until(lambda: _drains_of_slots(cluster) == [1, 2], "both old workers drain")
        shown = cluster.run("status", code=0).out
        wait_until(lambda: _cut(cluster) == number, "both have been cut")
        (cluster.root / "releases" / "v2" / "go").touch()
        _, told = deploy.communicate(timeout=60)
    assert deploy.returncode == 0
    assert " draining: " in shown
    words = f"{number} requests were cut at the end of drain_timeout = 8s"
    assert f"warning: {words}" in told
    assert "still drain" not in told
    assert sum(line.endswith(" draining") for line in told.splitlines() if " slot " in line) == 2
    assert not any("draining:" in line for line in told.splitlines())
    told_of = cluster.events("worker.drain")
    first = {event["pid"]: event["requests"] for event in reversed(told_of) if event["slot"]}
    assert sum(first.values()) == number, told_of
    assert f": {words}" in cluster.run("history", code=0).out
    assert cluster.history()[0]["cut"] == {
        "requests": number,
        "connections": 0,
        "drain_timeout": "8s",
        "estimated": False,
    }
    metrics = cluster.metrics()
    assert values(metrics["deployer_cut_requests"], "deployer_cut_requests_total") == {(): float(number)}
    quiet = cluster.run("restart", code=0)
    assert "were cut" not in quiet.text
    wait_until(lambda: not cluster.history()[0]["draining"], "its old workers have gone")
    assert cluster.history()[0]["cut"] is None


def _drains_of_slots(cluster: Counted) -> list[int]:
    """Apart from the preflight worker."""
    return [event["slot"] for event in cluster.events("worker.draining") if event["slot"]]


def _cut(cluster: Counted) -> int:
    return sum(event.get("cut_requests", 0) for event in cluster.events("worker.exited"))


def test_what_a_killed_worker_last_said_counts_as_cut(counted: Callable[..., Counted]) -> None:
    """It hears no SIGTERM; the rollout is over long before its end, and so is the manager that told it to go."""
    cluster = counted(count=1, drain_timeout="6s")
    cluster.up()
    with cluster.connect() as sock:
        sock.sendall(b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: _in_flight(cluster) == 1, "it is under way")
        told = cluster.run("restart", code=0)
        assert "1 old worker still drains (deployer status)" in told.err
        assert "were cut" not in told.err
        cluster.kill_manager()
        found = wait_until(lambda: cluster.history()[0]["cut"], "the old worker was killed")
    assert found == {"requests": 1, "connections": 0, "drain_timeout": "6s", "estimated": True}
    (ended,) = [event for event in cluster.events("worker.exited") if event.get("cut_estimated")]
    assert (ended["signal"], ended["cut_requests"], ended["cut_connections"]) == ("SIGKILL", 1, 0)
    followed = cluster.run("follow", code=0)
    assert "warning: 1 request was cut at the end of drain_timeout = 6s (as last seen" in followed.err
