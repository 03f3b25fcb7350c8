"""The sample app's sessions: shared by the workers, and kept through deploys, rollbacks and the death of workers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import wait_until
from tests.e2e.shop import Shop
from tests.remotes import need
from tests.visitor import Visitor

SERVED_BY_US = ("deployer.toml", f"command = {json.dumps(f'{sys.executable} serve.py')}", 'app = "app:app"')
HALTED = 3
SHARED = '[release]\nshared = ["sessions/"]\n'


@pytest.fixture
def redis() -> Iterator[str]:
    """The URL of a Redis that nobody else has, which keeps nothing on disk."""
    need("redis-server", "sessions in Redis")
    scratch = Path(tempfile.mkdtemp(prefix="dep-redis-", dir="/tmp"))
    path = scratch / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(scratch)]
    with open(scratch / "log", "wb") as log:
        process = subprocess.Popen(["redis-server", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(path), f"Redis answers; {(scratch / 'log').read_text()}")
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(scratch)


def answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(b"PING\r\n")
        return sock.recv(100).startswith(b"+PONG")
    return False


@pytest.mark.parametrize(("store", "by"), [("sqlite", "deployer"), ("redis", "deployer"), ("sqlite", "serve.py")])
def test_a_session_survives_whatever_happens_to_workers(
    shop: Callable[..., Shop], request: pytest.FixtureRequest, store: str, by: str
) -> None:
    redis_url = request.getfixturevalue("redis") if store == "redis" else None
    env = f"env = {{ REDIS_URL = {json.dumps(redis_url)} }}\n" if redis_url else ""
    edits = [SERVED_BY_US] if by == "deployer" else []
    cluster = shop(server="sample", edits=edits, worker_extra=env, extra=SHARED, ready_timeout="20s")
    cluster.up()
    with Visitor(cluster.address) as visitor:
        assert visitor.until_served_by("v1")
        cluster.deploy(label="second", code=0)
        assert visitor.until_served_by("v2")
        cluster.run("rollback", code=0)
        assert visitor.until_served_by("v1")
        cluster.settled()
        assert visitor.complaints() == []
        for slot, pid in cluster.assert_serves("v1").items():
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda slot=slot, pid=pid: is_another(cluster, slot, pid), "the worker is replaced")
        before = visitor.count
        wait_until(lambda: visitor.count > before + 20, "the visitor goes on")
    assert visitor.went_back == []
    assert visitor.releases == ["v1", "v2", "v1"]
    shared = cluster.root / "shared" / "sessions"
    assert (cluster.root / "current" / "sessions").resolve() == shared
    if redis_url is None:
        with contextlib.closing(sqlite3.connect(shared / "sessions.sqlite3")) as database:
            assert database.execute("select count(*) from session where expires > ?", [time.time()]).fetchone() == (1,)
    else:
        assert list(shared.iterdir()) == []


def is_another(cluster: Shop, slot: int, pid: int) -> bool:
    found = {worker["slot"]: worker["pid"] for worker in cluster.workers() if worker["state"] == "ready"}
    return found.get(slot, pid) != pid


def test_both_workers_count_the_same_visits(shop: Callable[..., Shop]) -> None:
    """A connection a visit: whoever takes it knows how often the visitor came."""
    cluster = shop(server="sample", edits=[SERVED_BY_US], extra=SHARED, ready_timeout="20s")
    cluster.up()
    visitor, slots = Visitor(cluster.address), set()
    for number in range(1, 41):
        found = visitor.visit()
        visitor.hang_up()
        assert found["visits"] == number
        slots.add(found["slot"])
    assert slots == {"1", "2"}
    another = Visitor(cluster.address)
    assert another.visit()["visits"] == 1
    another.hang_up()


def test_a_release_that_cannot_reach_its_redis_halts(shop: Callable[..., Shop]) -> None:
    nowhere = '[worker]\nenv = { REDIS_URL = "unix:///nowhere/redis.sock" }\n'
    cluster = shop(server="sample", edits=[SERVED_BY_US], extra=SHARED, ready_timeout="20s")
    cluster.up()
    cluster.edits.append(("deployer.toml", "[worker]\n", nowhere))
    done = cluster.deploy(label="second", code=HALTED)
    assert any("/nowhere/redis.sock" in line for line in done.last["tail"])
    cluster.assert_serves("v1")
