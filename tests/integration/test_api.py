"""The control API of a real cluster, over its socket: who is let in, what is refused in words, how streams go on."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import Cluster, wait_until

LIMIT_S = 30.0
NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(count=1, soak="100ms") as made:
        made.up()
        made.settled()
        yield made


class Connection(http.client.HTTPConnection):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self.path = str(cluster.root / "run" / "control.sock")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(self.path)


def ask(cluster: Cluster, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> tuple[int, Any]:
    """(HTTP status, decoded JSON)"""
    with contextlib.closing(Connection(cluster)) as connection:
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body)
        response = connection.getresponse()
        assert (response.getheader("content-type") or "").startswith("application/json"), response.read()
        return response.status, json.loads(response.read())


@contextlib.contextmanager
def stream(cluster: Cluster, path: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The objects of a stream, as they come; it is cut when the block is left."""
    with contextlib.closing(Connection(cluster)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("content-type") == "application/x-ndjson"
        yield (json.loads(line) for line in response if line.strip())


def events(cluster: Cluster, query: str = "") -> list[dict[str, Any]]:
    with stream(cluster, f"/v1/events?{query}") as lines:
        return list(lines)


def finished(cluster: Cluster, rollout: int) -> dict[str, Any]:
    return events(cluster, f"follow=1&rollout={rollout}")[-1]


# Who is let in


def test_the_socket_is_its_owners_alone(cluster: Cluster) -> None:
    path = cluster.root / "run" / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == os.geteuid()


KNOCK = """
import os, socket, sys
os.chdir(sys.argv[1])  # as root: the way there is not open to others
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    sock.connect("control.sock")
    sock.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print("answer", sock.recv(1000))
except OSError as error:
    print(type(error).__name__)
"""


def knock(cluster: Cluster, uid: int) -> str:
    """What another user gets to see."""
    command = [sys.executable, "-I", "-S", "-c", KNOCK, str(cluster.root / "run"), str(uid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout.strip()


@root_only
def test_another_user_is_refused_by_the_mode_of_the_socket(cluster: Cluster) -> None:
    assert knock(cluster, NOBODY) == "PermissionError"
    assert knock(cluster, 0).startswith("answer b'HTTP/1.1 200 OK")


@root_only
def test_another_user_is_refused_whatever_became_of_the_mode(cluster: Cluster) -> None:
    """The kernel says who it is; no byte is answered, and the refusal is logged."""
    path = cluster.root / "run" / "control.sock"
    path.chmod(0o666)
    try:
        assert knock(cluster, NOBODY) in ("answer b''", "ConnectionResetError", "BrokenPipeError")
    finally:
        path.chmod(0o600)
    lines = [json.loads(line) for line in cluster.log_tail().splitlines()]
    assert [line["uid"] for line in lines if line["event"] == "api.refused"] == [NOBODY]
    assert ask(cluster, "GET", "/v1/status")[0] == 200


# What it says


def test_the_openapi_page_is_served_and_names_what_is_there(cluster: Cluster) -> None:
    status, document = ask(cluster, "GET", "/openapi.json")
    assert status == 200
    assert document["openapi"] == "3.1.0"
    for path, item in document["paths"].items():
        if "get" in item and "{" not in path and path != "/v1/diff":  # which asks between which two
            with contextlib.closing(Connection(cluster)) as connection:
                connection.request("GET", path)
                assert connection.getresponse().status == 200, path


def test_the_page_for_people_is_html(cluster: Cluster) -> None:
    with contextlib.closing(Connection(cluster)) as connection:
        connection.request("GET", "/docs")
        response = connection.getresponse()
        assert (response.getheader("content-type") or "").startswith("text/html")
        assert b"/v1/deploy" in response.read()


def test_status_and_history_are_what_the_commands_show(cluster: Cluster) -> None:
    status = ask(cluster, "GET", "/v1/status")[1]
    assert (status["app"], status["release"], status["count"], status["rollout"]) == ("app", "v1", 1, None)
    assert [(w["slot"], w["state"], w["release"]) for w in status["workers"]] == [(1, "ready", "v1")]
    assert status["listen"] == [cluster.address]
    rollouts = ask(cluster, "GET", "/v1/rollouts?limit=1")[1]
    assert len(rollouts) == 1
    assert ask(cluster, "GET", f"/v1/rollouts/{rollouts[0]['id']}")[1] == rollouts[0]
    assert ask(cluster, "GET", "/v1/releases")[1][-1]["name"] == "v1"


def test_a_connection_is_used_again(cluster: Cluster) -> None:
    with contextlib.closing(Connection(cluster)) as connection:
        for _ in range(3):
            connection.request("GET", "/v1/status")
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (200, True)
            sock = connection.sock
        assert connection.sock is sock


# What it refuses


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{who: me}",
    "cut": b'{"who": "me"',
    "not UTF-8": b'{"who": "\xff"}',
    "no object": b"[]",
    "a field is missing": b"{}",
    "a wrong type": b'{"who": 7}',
    "null": b'{"who": null}',
}


@pytest.mark.parametrize("path", ["deploy", "rollback", "restart", "scale", "abort", "stop"])
@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_body_that_cannot_be_understood_is_refused_with_a_problem(cluster: Cluster, path: str, body: str) -> None:
    """400 and exit code 2; nothing is begun."""
    before = ask(cluster, "GET", "/v1/rollouts")[1]
    status, answer = ask(cluster, "POST", f"/v1/{path}", BAD_BODIES[body])
    assert status == 400
    problem = answer["error"]
    assert (problem["exit"], problem["reason"]) == (2, "usage")
    assert problem["what"].startswith("the request cannot be understood: ")
    assert "Traceback" not in problem["what"]
    assert ask(cluster, "GET", "/v1/rollouts")[1] == before


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "words"),
    [
        ("POST", "/v1/scale", {"who": "me", "count": 0}, 400, 2, "cannot scale to 0: 1 to 512 workers"),
        ("POST", "/v1/scale", {"who": "me", "count": 513}, 400, 2, "cannot scale to 513"),
        ("POST", "/v1/rollback", {"who": "me", "release": "v99"}, 400, 2, "there is no release v99"),
        ("POST", "/v1/rollback", {"who": "me", "release": "../x"}, 400, 2, "'../x' is not a release"),
        ("POST", "/v1/rollback", {"who": "me"}, 400, 2, "there is no release to roll back to"),
        ("POST", "/v1/abort", {"who": "me"}, 409, 0, "no rollout is running"),
        ("GET", "/v1/rollouts/99999", None, 400, 2, "there is no rollout 99999"),
        ("GET", "/v1/rollouts?limit=many", None, 400, 2, "limit must be a number, not 'many'"),
        ("GET", "/v1/events?after=-1", None, 400, 2, "after must be a number, not '-1'"),
        ("GET", "/v1/logs?lines=1e3", None, 400, 2, "lines must be a number, not '1e3'"),
        ("GET", "/v1/none", None, 404, 2, "there is no GET /v1/none"),
        ("GET", "/v1/rollouts/x", None, 404, 2, "there is no GET /v1/rollouts/x"),
        ("DELETE", "/v1/status", None, 405, 2, "there is no DELETE /v1/status"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_problem(
    cluster: Cluster, method: str, path: str, body: dict[str, Any] | None, status: int, code: int, words: str
) -> None:
    found, answer = ask(cluster, method, path, body)
    assert (found, answer["error"]["exit"]) == (status, code)
    assert answer["error"]["what"].startswith(words)


def test_what_is_not_http_harms_nobody(cluster: Cluster) -> None:
    pid = cluster.manager_pid()
    for data in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 100_000, b""):
        with contextlib.closing(Connection(cluster)) as connection:
            connection.connect()
            with contextlib.suppress(OSError):
                connection.sock.sendall(data)
                connection.sock.shutdown(socket.SHUT_WR)
                connection.sock.recv(1000)
    assert ask(cluster, "GET", "/v1/status")[1]["manager"]["pid"] == pid


def test_only_one_rollout_runs_at_a_time(cluster: Cluster) -> None:
    """409 and exit code 75, by whom and since when."""
    status, first = ask(cluster, "POST", "/v1/restart", {"who": "ann"})
    assert status == 202
    status, answer = ask(cluster, "POST", "/v1/restart", {"who": "bob"})
    assert (status, answer["error"]["exit"], answer["error"]["reason"]) == (409, 75, "busy")
    assert f"(rollout {first['id']}) is running, started by ann at " in answer["error"]["what"]
    assert finished(cluster, first["id"])["outcome"] == "promoted"


# Streams


def test_events_have_no_gaps_and_are_taken_up_anywhere(cluster: Cluster) -> None:
    cluster.settled()
    everything = events(cluster)
    assert [event["seq"] for event in everything] == list(range(1, len(everything) + 1))
    assert {"rollout.started", "worker.ready", "rollout.finished", "manager.started"} <= {
        e["event"] for e in everything
    }
    assert events(cluster, f"after={len(everything) - 5}") == everything[-5:]
    assert events(cluster, f"after={len(everything)}") == []


def test_a_rollout_is_followed_to_its_end_and_a_lost_stream_goes_on(cluster: Cluster) -> None:
    """Cut after each event, asked for again with `after`: the same events, each once, and then an end."""
    started = ask(cluster, "POST", "/v1/restart", {"who": "ann"})[1]
    query, found = f"/v1/events?follow=1&rollout={started['id']}", []
    while not found or found[-1]["event"] != "rollout.finished":
        after = found[-1]["seq"] if found else 0
        with stream(cluster, f"{query}&after={after}") as lines:
            found.append(next(lines))
    with stream(cluster, query) as lines:
        assert list(lines) == found
    names = [event["event"] for event in found]
    assert names[0] == "rollout.started"
    assert {"worker.starting", "worker.ready", "slot.moved", "worker.draining"} <= set(names)
    assert {event["rollout"] for event in found} == {started["id"]}
    assert (found[-1]["outcome"], found[-1]["exit_code"]) == ("promoted", 0)


def test_events_go_on_after_the_manager_was_killed(cluster: Cluster) -> None:
    """The stream breaks; the next manager has all that came before, and the numbers go on."""
    cluster.settled()
    before = events(cluster)[-1]["seq"]
    with stream(cluster, f"/v1/events?follow=1&after={before}") as lines:
        cluster.kill_manager()
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert list(lines) == []
    found = events(cluster, f"after={before}")
    assert [event["seq"] for event in found] == list(range(before + 1, before + 1 + len(found)))
    assert "manager.started" in [event["event"] for event in found]


def test_log_lines_are_followed(cluster: Cluster) -> None:
    """Those that are there, then each as it is printed, of the worker that was asked for."""
    with stream(cluster, "/v1/logs?lines=1") as lines:
        (last,) = lines
    assert set(last) == {"ts", "slot", "pid", "release", "stream", "line"}
    assert events(cluster, "after=0")
    with stream(cluster, "/v1/logs?follow=1&lines=0&slot=1") as lines:
        restarted = ask(cluster, "POST", "/v1/restart", {"who": "ann"})[1]
        line = next(lines)
        assert "worker 1 serves" in line["line"]
        assert abs(line["ts"] - time.time()) < 60
    assert finished(cluster, restarted["id"])["outcome"] == "promoted"
    with stream(cluster, "/v1/logs?release=v99") as lines:
        assert list(lines) == []


def test_followers_that_go_away_leave_nothing_behind(cluster: Cluster) -> None:
    """Descriptors of the manager: the same number after many were cut."""
    cluster.settled()
    fds = f"/proc/{cluster.manager_pid()}/fd"
    before = len(os.listdir(fds))
    for _ in range(10):
        with stream(cluster, "/v1/events?follow=1") as lines:
            next(lines)
        with stream(cluster, "/v1/logs?follow=1") as lines:
            next(lines)
    wait_until(lambda: len(os.listdir(fds)) <= before, "the connections are closed")


def test_stop_ends_a_stream_whole(cluster: Cluster) -> None:
    """The last test here. Who follows hears of the end and is let go; then the socket is gone."""
    with stream(cluster, "/v1/events?follow=1") as lines:
        assert ask(cluster, "POST", "/v1/stop", {"who": "ann"}) == (202, {})
        assert list(lines)[-1]["event"] == "manager.stopped"
    wait_until(lambda: not (cluster.root / "run" / "control.sock").exists(), "the socket is gone")
