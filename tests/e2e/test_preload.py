"""The preflight's worker goes on as the canary; `preload` forks the workers of an application that is imported once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import apps
from tests.cluster import wait_until
from tests.e2e.shop import Shop, alive
from tests.load import LoadProcess

HALTED = 3
CLIENTS: dict[str, float | str] = {"keepalive": 4, "fresh": 2, "slow": 1, "slow_path": "/slow?s=0.5"}
APP = """
import asyncio, json, os
import deployer.runtime as runtime

with open({imports!r}, "a") as file:
    print(os.environ["DEPLOYER_RELEASE"], os.getpid(), file=file)
{broken}
LABEL = {label!r}
heard = []
forked = []

@runtime.on_message
def on_message(message):
    heard.append(message)

def post_fork():
    forked.append(os.getpid()){post_fork}

async def lifespan(receive, send):
    while True:
        message = await receive()
        await send({{"type": message["type"] + ".complete"}})
        if message["type"] == "lifespan.shutdown":
            return

def answer(path, query):
    if path == "/crash":
        os._exit(3)
    if path == "/broadcast":
        return {{"sent": runtime.broadcast(query)}}
    if path == "/heard":
        return heard
    if path == "/forked":
        return [forked, os.getpid()]
    return LABEL

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    path, query = scope["path"], scope["query_string"].decode()
    if path == "/slow":
        await asyncio.sleep(0.5)
    body = json.dumps(answer(path, query)).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"x-release", runtime.release().encode()),
               (b"x-worker", str(runtime.slot()).encode()), (b"x-pid", str(os.getpid()).encode())]
    status = 500 if path == {fails!r} else 200
    await send({{"type": "http.response.start", "status": status, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


class Served(Shop):
    """An application of `[worker] app` that notes each import, one line: release and pid."""

    def __init__(self, *, rollout: str = "", preload: bool = True, worker: str = "", **options: Any) -> None:
        flags = f"preload = {json.dumps(preload)}\n{worker}"
        super().__init__(worker_extra=flags, extra=rollout, ready_timeout="20s", interval="1s", **options)

    def write(self, behaviour: str = "good", label: str = "hello", **values: Any) -> apps.App:
        self.directory.mkdir(exist_ok=True)
        text = {"broken": "", "post_fork": "", "fails": "", **values}
        (self.directory / "app.py").write_text(APP.format(imports=str(self.imports), label=label, **text))
        app = apps.App(self.directory, "", "notify")
        (self.directory / "deployer.toml").write_text(app.toml(self.address, **self.toml))
        self.edit("deployer.toml", 'command = ""', 'app = "app:app"')
        return app

    @property
    def imports(self) -> Path:
        return self.base / "imports"

    def imported(self, release: str) -> list[int]:
        """Pids that imported the application of a release."""
        return [int(pid) for name, pid in map(str.split, self.imports.read_text().splitlines()) if name == release]

    def templates(self) -> dict[str, dict[str, Any]]:
        return {template["release"]: template for template in self.status()["templates"]}

    def ask(self, path: str) -> Any:
        return json.loads(self.get(path)[2])


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Callable[..., Served]:
    def make(**options: Any) -> Served:
        made = Served(**options)
        request.addfinalizer(made.close)
        return made

    return make


# The preflight's worker becomes the canary


def test_the_worker_of_the_preflight_goes_on_as_the_canary(served: Callable[..., Served]) -> None:
    """One boot for both; it knows its slot, and answers on the public socket only."""
    cluster = served(preload=False, count=2)
    cluster.up()
    cluster.deploy(label="second", code=0)
    slots = cluster.assert_serves("v2")
    events = [event for event in cluster.events() if event["rollout"] == 2]
    (preflight,) = (e["pid"] for e in events if e["event"] == "worker.starting" and e["slot"] == 0)
    assert slots[1] == preflight
    assert len(cluster.imported("v2")) == 2, "as many boots as workers"
    assert [e["text"] for e in events if e["event"] == "worker.exited" and e["release"] == "v2"] == []
    by_pid = {str(pid): str(slot) for slot, pid in slots.items()}
    headers = [cluster.get("/")[1] for _ in range(20)]
    assert all(by_pid[h["x-pid"]] == h["x-worker"] for h in headers)


def test_warm_up_requests_are_answered_before_visitors_come(served: Callable[..., Served]) -> None:
    cluster = served(preload=False, count=1, rollout='warmup = ["/", "/api?x=1"]\n')
    cluster.up()
    (passed,) = cluster.events("preflight.passed")
    assert passed["checks"] == ["ready (notify)", "GET /healthz -> 200", "2 warm-up requests"]
    cluster.write(label="second", fails="/api")
    done = cluster.run("deploy", "--json", code=HALTED)
    assert done.last["reason"] == "health"
    assert "warm-up: GET /api?x=1" in done.last["problem"]["what"]
    assert "500" in done.last["problem"]["cause"]
    cluster.assert_serves("v1")


@pytest.mark.parametrize("preload", [False, True], ids=["separate", "preload"])
def test_managers_that_are_killed_at_any_moment_of_a_deploy(served: Callable[..., Served], preload: bool) -> None:
    """Also between the preflight's end and the word of the worker that it has the public sockets."""
    cluster = served(preload=preload, count=2, soak="100ms")
    cluster.up()
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    with LoadProcess(cluster.address, **CLIENTS) as load:
        for number in range(6):
            cluster.write(label=f"label {number}")
            child = cluster.start("deploy", "--json")
            time.sleep(moments.uniform(0.05, 1.0))  # the moment is what is tried
            cluster.kill_manager()
            child.communicate(timeout=60)
            wait_until(lambda: cluster.status()["rollout"] is None, f"the rollout is decided (seed {seed})", 60)
            wait_until(lambda: len(cluster.status()["workers"]) == 2, f"only its workers are left (seed {seed})", 60)
            live = cluster.status()["release"]
            cluster.assert_serves(live)
        report = load.stop()
    assert (report.lost, report.errors) == (0, 0), f"seed {seed}: {report}"


# Preload


def test_the_application_is_imported_once_for_all_workers(served: Callable[..., Served]) -> None:
    """Deploys, rollbacks, restarts and scaling under load; the canary is the template's first child."""
    cluster = served(count=3)
    cluster.up()
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(20)
        cluster.deploy(label="second", code=0)
        cluster.assert_serves("v2")
        template = cluster.templates()["v2"]
        assert cluster.imported("v2") == [template["pid"]]
        cluster.run("restart", code=0)
        cluster.run("scale", "4", code=0)
        cluster.assert_serves("v2")
        assert cluster.templates() == {"v2": {**template, "rss_bytes": cluster.templates()["v2"]["rss_bytes"]}}
        cluster.run("rollback", code=0)
        slots = cluster.assert_serves("v1")
        assert len(cluster.imported("v1")) == 2, "its template was ended with it, and made anew"
        report = load.stop()
    assert (report.lost, report.errors) == (0, 0), str(report)
    parents = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in slots.values()}
    assert parents == {str(cluster.keeper_pid())}, "a worker does not depend on its template"


def test_a_template_that_dies_is_made_anew_and_a_crash_in_a_worker_does_not_harm_it(
    served: Callable[..., Served],
) -> None:
    cluster = served(count=2)
    cluster.up()
    slots, template = cluster.assert_serves("v1"), cluster.templates()["v1"]["pid"]
    os.kill(template, signal.SIGKILL)

    def another() -> int:
        found = cluster.templates().get("v1", {})
        return int(found["pid"]) if found.get("state") == "ready" and found["pid"] != template else 0

    renewed = wait_until(another, "a new template")
    assert cluster.assert_serves("v1", slots) == slots
    with contextlib.suppress(OSError, IndexError):  # there is no answer
        cluster.get("/crash")
    wait_until(lambda: sum(w["restarts"] for w in cluster.status()["workers"]) == 1, "the crash was seen")
    cluster.assert_serves("v1")
    assert cluster.templates()["v1"]["pid"] == renewed
    assert cluster.imported("v1") == [template, renewed], "the worker that replaced it was forked"
    (crash,) = [e for e in cluster.events("worker.exited") if not e["expected"]]
    assert crash["code"] == 3, "the keeper tells how a worker ended that the manager is not the parent of"


def test_an_import_error_of_the_template_halts_with_the_applications_own_traceback(
    served: Callable[..., Served],
) -> None:
    cluster = served(count=2)
    cluster.up()
    slots = cluster.assert_serves("v1")
    cluster.write(label="second", broken="raise RuntimeError('broken on purpose')")
    done = cluster.run("deploy", "--json", code=HALTED)
    assert done.last["tail"][0] == "Traceback (most recent call last):"
    assert done.last["tail"][-1] == "RuntimeError: broken on purpose"
    assert not any("deployer/runtime" in line for line in done.last["tail"])
    assert "the template of v2 exited with code 1" in done.last["problem"]["what"]
    assert cluster.assert_serves("v1", slots) == slots
    wait_until(lambda: list(cluster.templates()) == ["v1"], "only the live release has a template")
    assert len(cluster.imported("v2")) == 1, "nobody tried again"


def test_the_template_has_a_head_start_while_the_release_is_staged(served: Callable[..., Served]) -> None:
    """Where it is to be as that of the live release; else, and where there is nothing to roll out, it goes."""
    cluster = served(count=1)
    cluster.up()
    cluster.deploy(label="second", code=0)
    started, ended = cluster.events("blank.starting"), cluster.events("blank.exited")
    assert [event["pid"] for event in started] == [cluster.templates()["v2"]["pid"]], "it is the very process"
    assert ended == []
    assert cluster.imported("v2") == [started[0]["pid"]]

    cluster.run("deploy", code=0)  # unchanged
    wait_until(lambda: len(cluster.events("blank.exited")) == 1, "nobody needs it")
    cluster.edit("deployer.toml", "[worker]", "[worker]\numask = '027'")
    cluster.run("deploy", code=0)
    wait_until(lambda: len(cluster.events("blank.exited")) == 2, "the new release has other limits")
    started = cluster.events("blank.starting")
    assert len(started) == 3
    template = cluster.templates()["v4"]["pid"]
    assert cluster.imported("v4") == [template]
    assert template not in [event["pid"] for event in started]
    cluster.assert_serves("v4")


def test_a_head_start_makes_no_difference_to_what_is_imported(served: Callable[..., Served]) -> None:
    """An own module under the name of one that the runtime needs comes first for all, as in a worker that boots."""
    cluster = served(count=1)
    cluster.up()
    looks = "import calendar, sys, email.utils\nassert sys.modules['email._parseaddr'].calendar.OWN"
    cluster.write(label="second", broken=looks)
    (cluster.directory / "calendar.py").write_text("OWN = True\n")
    cluster.run("deploy", code=0)
    (started,) = cluster.events("blank.starting")
    assert cluster.imported("v2") == [started["pid"]], "it is the same process"
    cluster.assert_serves("v2")
    os.kill(started["pid"], signal.SIGKILL)
    wait_until(lambda: cluster.templates().get("v2", {}).get("state") == "ready", "a new template, for the same code")
    cluster.assert_serves("v2")


def test_an_unsafe_template_is_named_and_workers_boot_on_their_own(served: Callable[..., Served]) -> None:
    cluster = served(count=2)
    thread = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='ticker', daemon=True).start()"
    )
    cluster.write(broken=thread)
    done = cluster.run("up", code=0)
    assert "workers of v1 boot one by one: thread 'ticker' would not survive a fork" in done.text
    slots = cluster.assert_serves("v1")
    assert cluster.templates() == {}
    assert set(slots.values()) <= set(cluster.imported("v1"))
    assert not [event for event in cluster.events("template.exited") if not event["expected"]], "none died"
    boots = cluster.imported("v1")
    cluster.kill_manager()
    cluster.assert_serves("v1", slots)
    cluster.write(label="second", broken="import socket\nother, mine = socket.socketpair()")
    done = cluster.run("deploy", code=0)
    assert "workers of v2 boot one by one: a socket" in done.text
    assert cluster.imported("v1") == boots, "the next manager did not try again"
    cluster.assert_serves("v2")


def test_a_template_ends_at_once_whatever_keeps_it(served: Callable[..., Served]) -> None:
    """An unsafe one with a thread that the interpreter waits for; one that takes no notice of the stop signal."""
    cluster = served(count=1, drain_timeout="60s")
    cluster.write(broken="import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()")
    done = cluster.run("up", code=0)
    assert "workers of v1 boot one by one: thread" in done.text
    cluster.write(label="second", broken="import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert cluster.run("deploy", "--json", code=0).last["seconds"] < 20, "not ready_timeout, nor drain_timeout"
    assert list(cluster.templates()) == ["v2"]
    cluster.deploy(label="third", code=0)
    wait_until(lambda: list(cluster.templates()) == ["v3"], "the template of v2 is gone", 20)


def test_post_fork_is_called_in_each_worker(served: Callable[..., Served]) -> None:
    cluster = served(count=2, worker='post_fork = "app:post_fork"\n')
    cluster.up()
    for _ in range(8):
        forked, pid = cluster.ask("/forked")
        assert forked == [pid]
    cluster.write(label="second", post_fork="; raise RuntimeError('no fork today')")
    done = cluster.run("deploy", "--json", code=HALTED)
    assert "RuntimeError: no fork today" in done.last["tail"]
    cluster.assert_serves("v1")


def test_a_cluster_that_is_started_again_imports_the_application_once(served: Callable[..., Served]) -> None:
    """Nobody serves: to wait for the template costs no time. One that died is not waited for again."""
    cluster = served(count=3)
    cluster.up()
    cluster.run("down", code=0)
    (before,) = cluster.imported("v1")
    cluster.run("up", code=0)
    cluster.assert_serves("v1")
    assert cluster.imported("v1") == [before, cluster.templates()["v1"]["pid"]]
    cluster.write(
        label="second",
        broken="import sys, os\nif '--template' in sys.orig_argv and os.path.exists('../../die'): os._exit(3)",
    )
    cluster.run("deploy", code=0)
    cluster.run("down", code=0)
    (cluster.root / "die").touch()
    cluster.run("up", code=0)
    cluster.assert_serves("v2")


# Standby


def test_a_rollback_on_standby_boots_nothing(served: Callable[..., Served]) -> None:
    """The template of the release before stays, is seen with what it costs, and goes when its time is over."""
    cluster = served(count=4, rollout='standby = "60s"\n')
    cluster.up()
    cluster.deploy(label="second", code=0)
    standby = cluster.templates()["v1"]
    assert 0 < standby["standby_left_s"] <= 60
    assert standby["rss_bytes"] > 0
    assert "template of v1" in cluster.run("status", code=0).out
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(20)
        done = cluster.run("rollback", "--json", code=0)
        cluster.assert_serves("v1")
        report = load.stop()
    assert (report.lost, report.errors) == (0, 0), str(report)
    print(f"rollback of 4 workers on standby: {done.last['seconds']} s")
    assert len(cluster.imported("v1")) == 1
    assert set(cluster.templates()) == {"v1", "v2"}, "and the way back is on standby in turn"
    cluster.write(label="third")
    cluster.edit("deployer.toml", 'standby = "60s"', 'standby = "1s"')
    cluster.run("deploy", code=0)
    wait_until(lambda: set(cluster.templates()) == {"v3"}, "its time is over")
    assert cluster.run("rollback", code=0)
    cluster.assert_serves("v1")


def test_templates_outlive_the_manager_and_are_made_anew_after_the_keeper(served: Callable[..., Served]) -> None:
    cluster = served(count=2, rollout='standby = "60s"\n')
    cluster.up()
    cluster.deploy(label="second", code=0)
    before = {name: template["pid"] for name, template in cluster.templates().items()}
    slots = cluster.assert_serves("v2")
    cluster.kill_manager()
    assert {name: template["pid"] for name, template in cluster.templates().items()} == before
    assert cluster.assert_serves("v2", slots) == slots
    cluster.kill_all_but_workers()
    cluster.run("up", code=0)
    assert cluster.assert_serves("v2", slots) == slots
    wait_until(lambda: {t["state"] for t in cluster.templates().values()} == {"ready"}, "new templates")
    wait_until(lambda: not any(alive(pid) for pid in before.values()), "the old ones are gone")
    cluster.run("rollback", code=0)
    cluster.assert_serves("v1")


# Messages


@pytest.mark.parametrize("preload", [False, True], ids=["separate", "preload"])
def test_a_broadcast_reaches_every_worker(served: Callable[..., Served], preload: bool) -> None:
    """The sender too; also after the manager was replaced, and what was sent while there was none."""
    cluster = served(count=3, preload=preload)
    cluster.up()
    slots = cluster.assert_serves("v1")
    assert cluster.ask("/broadcast?one") == {"sent": True}
    wait_until(lambda: heard_by(cluster) == dict.fromkeys(slots.values(), ("one",)), "all have heard it")
    cluster.kill_manager()
    assert cluster.ask("/broadcast?two") == {"sent": True}
    wait_until(lambda: heard_by(cluster) == dict.fromkeys(slots.values(), ("one", "two")), "all have heard both")


def heard_by(cluster: Served) -> dict[int, tuple[str, ...]]:
    """What those who answer 40 requests have heard."""
    found = {}
    for _ in range(40):
        _, headers, body = cluster.get("/heard")
        found[int(headers["x-pid"])] = tuple(json.loads(body))
    return found
