"""The repository's hooks of a rollout, run as deployer runs them, against real servers and a real lock."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster

HOOKS = Path(__file__).resolve().parents[3] / "hooks"
CONTEXT: dict[str, Any] = {
    "stage": "after_rollout",
    "app": "shop",
    "kind": "deploy",
    "release": "v8",
    "previous": "v7",
    "serving": "v8",
    "commit": "1a2b3c4d5e6f",
    "who": "ann",
    "message": "add the <cart>",
    "outcome": "promoted",
    "reason": None,
    "problem": None,
}


def run(name: str, *words: str, cwd: Path | None = None, context: dict[str, Any] | None = None, **env: str) -> Any:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [str(HOOKS / name), *words],
        cwd=cwd,
        env={"PATH": path} | env,
        input=json.dumps(context or CONTEXT),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Server(http.server.ThreadingHTTPServer):
    """Answers POST by noting it, GET /302 with that status."""

    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.release, self.pause, self.status = "v8", 0.0, 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        time.sleep(self.server.pause)
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(self.server.status)

    def do_GET(self) -> None:
        self.answer(int(self.path[1:]) if self.path[1:].isdecimal() else 200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("X-Release", self.server.release)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


# notify-webhook


def test_the_webhook_is_told_all_that_the_hook_was_told_and_a_sentence(server: Server) -> None:
    done = run("notify-webhook", WEBHOOK_URL=f"{server.url}/x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the webhook was told\n", "")
    assert server.posted == [CONTEXT | {"text": "shop: v8 (1a2b3c4) is live, deployed by ann: add the <cart>"}]


def test_slack_is_told_the_sentence_without_marks_it_would_obey(server: Server) -> None:
    context = CONTEXT | {"outcome": "reverted", "serving": "v7", "problem": "worker 1 died <!here>"}
    assert run("notify-webhook", WEBHOOK_URL=server.url, WEBHOOK_FORMAT="slack", context=context).returncode == 0
    text = "shop: deploy of v8 (1a2b3c4) by ann reverted: worker 1 died &lt;!here&gt;; v7 serves"
    assert server.posted == [{"text": text}]


@pytest.mark.parametrize("strict", ["", "1"])
@pytest.mark.parametrize("trouble", ["slow", "refused", "500", "file"])
def test_a_message_that_cannot_be_sent_is_a_warning_without_the_address(
    server: Server, trouble: str, strict: str
) -> None:
    url = {"refused": "http://127.0.0.1:1", "file": "file:///etc/passwd"}.get(trouble, server.url) + "/secret"
    server.pause, server.status = (2.0, 200) if trouble == "slow" else (0.0, 500)
    began = time.monotonic()
    done = run("notify-webhook", WEBHOOK_URL=url, WEBHOOK_TIMEOUT="0.5", WEBHOOK_STRICT=strict)
    assert time.monotonic() - began < 10
    assert (done.returncode, done.stderr) == (1 if strict else 0, "")
    assert done.stdout.startswith("warning: the webhook was not told: ")
    assert "secret" not in done.stdout


def test_without_an_address_nobody_is_told() -> None:
    assert run("notify-webhook").stdout == "notify-webhook: WEBHOOK_URL is not set, nobody is told\n"


# smoke-http


def test_each_path_has_its_status(server: Server) -> None:
    done = run("smoke-http", "/", "/302=302", SMOKE_URL=server.url)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("smoke-http", SMOKE_URL=server.url, SMOKE_PATHS="/ /404 /302=301")
    assert done.returncode == 1
    assert "FAILED /404: it should answer 200, and answered 404" in done.stdout
    assert "FAILED /302: it should answer 301, and answered 302" in done.stdout


def test_only_answers_of_the_new_release_count_where_it_names_itself(server: Server) -> None:
    env = {"SMOKE_URL": server.url, "SMOKE_HEADER": "X-Release", "DEPLOYER_STAGE": "after_canary"}
    assert run("smoke-http", "/", DEPLOYER_RELEASE="v8", **env).returncode == 0
    done = run("smoke-http", "/", DEPLOYER_RELEASE="v9", **env)
    assert done.returncode == 1
    assert "no answer came from v9" in done.stdout


def test_nobody_there_and_nothing_to_ask_for_are_failures() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen: nobody else does there either
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        done = run("smoke-http", "/", SMOKE_URL=url)
        assert (done.returncode, done.stderr) == (1, "")
        assert "FAILED /: " in done.stdout
        assert run("smoke-http", SMOKE_URL=url).returncode == 1


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_in_a_rollout_it_finds_the_cluster_and_judges_the_canary(unix: bool) -> None:
    """`error_500`: healthy by its own word, and every page answers 500. Only the smoke test notices."""
    command = f"SMOKE_HEADER=X-Release {HOOKS}/smoke-http / /healthz"
    with Cluster(unix=unix, count=2, extra=f"\n[hooks]\nafter_canary = {json.dumps(command)}\n") as cluster:
        cluster.up()
        done = cluster.deploy("error_500", "two", code=3)
        lines = [line for e in done.events if e["event"] == "hook.output" for line in e["lines"]]
        assert "FAILED /: it should answer 200, and answered 500" in lines
        assert done.last["reason"] == "hook"
        assert cluster.release_served() == "v1"
        cluster.deploy("good", "three", code=0)
        assert cluster.release_served() == "v3"


# migration-guard


class Database:
    """A release's directory, and a migration tool: `applied` lists what is in the database, `wanted` what should be."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "root"
        (self.root / "run").mkdir(parents=True)
        self.wanted, self.applied, self.calls = base / "wanted", base / "applied", base / "calls"
        self.wanted.write_text("1\n2\n")
        self.applied.write_text("1\n")

    def run(self, **env: str) -> Any:
        check = f"cmp -s {self.wanted} {self.applied} || {{ echo '2 is pending'; exit 1; }}"
        apply = f"echo apply >> {self.calls}; sleep 0.3; cp {self.wanted} {self.applied}"
        tools = {"MIGRATIONS_CHECK": check, "MIGRATIONS_APPLY": apply, "DEPLOYER_ROOT": str(self.root)}
        return run("migration-guard", cwd=self.base, **(tools | env))


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path)


def test_pending_migrations_refuse_the_rollout(database: Database) -> None:
    done = database.run()
    assert done.returncode == 1
    assert "2 is pending" in done.stdout
    assert "[migrate]" in done.stdout
    assert not database.calls.exists()
    database.applied.write_text("1\n2\n")
    done = database.run()
    assert (done.returncode, done.stdout) == (0, "no migrations are pending\n")


@pytest.mark.parametrize("how", ["message", "environment", "once"])
def test_allowed_migrations_are_applied_before_the_first_worker(database: Database, how: str) -> None:
    once = database.root / "allow-migrations"
    env = {"message": {"DEPLOYER_MESSAGE": "orders [migrate]"}, "environment": {"ALLOW_MIGRATIONS": "1"}}.get(how, {})
    if how == "once":
        once.touch()
    done = database.run(**env)
    assert done.returncode == 0, done.stdout
    assert f"allowed by {how}" in done.stdout
    assert database.applied.read_text() == "1\n2\n"
    assert not once.exists()
    database.applied.write_text("1\n")
    assert database.run().returncode == 1


def test_two_at_once_apply_them_once(database: Database) -> None:
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(database.run(ALLOW_MIGRATIONS="1").returncode)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0]
    assert database.calls.read_text() == "apply\n"


def test_migrations_that_fail_stop_the_rollout(database: Database) -> None:
    done = database.run(ALLOW_MIGRATIONS="1", MIGRATIONS_APPLY="exit 4")
    assert done.returncode == 1
    assert "migrations failed" in done.stdout


@pytest.mark.parametrize(
    ("file", "tool", "said"), [("manage.py", "python", "migrate --check"), ("alembic.ini", "alembic", "current")]
)
def test_django_and_alembic_are_found_by_themselves(database: Database, file: str, tool: str, said: str) -> None:
    (database.base / file).touch()
    programs = database.base / "bin"
    programs.mkdir()
    (programs / tool).write_text(f'#!/bin/sh\necho "$@" >> {database.calls}\n')
    (programs / tool).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    env = {"MIGRATIONS_CHECK": "", "MIGRATIONS_APPLY": "", "PATH": path}
    assert database.run(**env).returncode == 0
    assert said in database.calls.read_text()
    (database.base / file).unlink()
    assert database.run(**env).returncode == 1
