"""Real applications, unchanged, served by the runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.sync.client import connect

from deployer.runtime.counting import PROBE
from tests.rawclient import Client
from tests.runtimekit import Workers, until

APPS = ["star:app", "fast:create_app()", "flasky:app", "djangoed:asgi", "djangoed:wsgi"]
Serve = Callable[..., Workers]


@pytest.mark.parametrize("app", APPS)
def test_pages_streams_uploads_and_errors(serve: Serve, app: str) -> None:
    workers = serve(app)
    big = bytes(range(256)) * 40_000  # 10 MB
    with Client(workers) as client:
        assert client.get("/").body == b"hello"
        assert client.get("/stream").body == b"".join(b"part %d\n" % number for number in range(5))
        client.send("/upload", "POST", f"Content-Length: {len(big)}", body=big)
        found = json.loads(client.answer().body)
        assert found == {"size": len(big), "sha256": hashlib.sha256(big).hexdigest()}
        assert client.get("/fail").status == 500
    if "django" not in app:  # which logs to its admins
        until(lambda: "RuntimeError: on purpose" in workers.log(), "the traceback is in the log")
    until(lambda: not workers.row().connections, "all is counted")
    row = workers.row()
    assert (row.status_2xx, row.status_5xx, row.accepted, sum(row.histogram)) == (3, 1, 1, 4)
    assert workers.stop() == 0


@pytest.mark.parametrize("app", APPS)
def test_the_managers_own_probes_are_no_visitors(serve: Serve, app: str) -> None:
    """They are answered like any other, and are on no count; what a proxy sends on is a visitor's whatever it says."""
    workers = serve(app)
    probe = f"{PROBE.decode()}: 1"
    with Client(workers) as client:
        assert client.get("/", probe).body == b"hello"
        assert client.get("/fail", probe).status == 500
    until(lambda: not workers.row().connections, "all is counted")
    row = workers.row()
    assert (row.requests, sum(row.histogram), row.error) == (0, 0, "")
    with Client(workers) as client:
        assert client.get("/", probe, "X-Forwarded-For: 10.0.0.1").status == 200
        assert client.get("/").status == 200
    until(lambda: not workers.row().connections, "all is counted")
    row = workers.row()
    assert (row.requests, row.status_2xx, sum(row.histogram)) == (2, 2, 2)


@pytest.mark.parametrize("app", APPS)
def test_over_a_unix_socket(serve: Serve, app: str) -> None:
    with Client(serve(app, unix=True)) as client:
        assert client.get("/").body == b"hello"


@pytest.mark.parametrize("app", ["star:app", "fast:create_app()"])
def test_lifespan_and_websockets(serve: Serve, app: str) -> None:
    workers = serve(app)
    assert "lifespan: started" in workers.log()
    with connect(workers.address.replace("tcp:", "ws:") + "/ws") as websocket:
        websocket.send("one")
        assert websocket.recv(30) == "echo one"
        until(lambda: workers.row().websockets == 1, "the websocket is on the scoreboard")
    assert workers.stop() == 0
    assert workers.log().count("lifespan: ended") == 1


def test_headers_with_an_underscore_cannot_forge_those_with_a_hyphen(serve: Serve) -> None:
    """Both would be HTTP_X_REAL_IP to a WSGI application."""
    with Client(serve("flasky:app")) as client:
        found = json.loads(client.get("/headers", "X-Real-Ip: true", "X_Real_Ip: forged").body)
        assert found["X-Real-Ip"] == "true"


def test_a_wsgi_worker_answers_as_many_at_once_as_it_has_threads(serve: Serve) -> None:
    workers = serve("flasky:app", options=["--threads=3"])
    assert workers.row().threads == 3


def test_a_failed_startup_ends_the_worker(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no database'})\n"
    )
    with pytest.raises(AssertionError, match=r"exit 1: .*no database"):
        serve("shop:app", directory=tmp_path)
