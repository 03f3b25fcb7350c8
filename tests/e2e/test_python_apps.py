"""`[worker] app`: a Python application that deployer serves itself, through everything an operator does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.runtime.scoreboard import Scoreboard
from tests.apps import App
from tests.cluster import Cluster
from tests.e2e.shop import Shop
from tests.load import LoadProcess

CLIENTS: dict[str, float | str] = {"keepalive": 4, "fresh": 2, "slow": 1, "slow_path": "/slow?s=0.5"}
IDLE: dict[str, float | str] = {"idle": 4, "slow_keepalive": 1}
HALTED = 3
WSGI = """
import os, time
HEADERS = [("X-Release", os.environ["DEPLOYER_RELEASE"]), ("X-Worker", os.environ["DEPLOYER_WORKER"]),
           ("X-Pid", str(os.getpid()))]
{broken}
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.5)
    body = b"{label}"
    start_response("200 OK", [("Content-Length", str(len(body))), *HEADERS])
    return [body]
"""


class Served(Shop):
    """A cluster whose application is served by deployer: the sample app, or a WSGI function."""

    def __init__(self, kind: str, **options: object) -> None:
        self.kind = kind
        super().__init__(server="sample", **options)

    def write(self, behaviour: str = "good", label: str = "hello", **options: object) -> App:
        if self.kind == "asgi":
            app = super().write(behaviour, label, **options)
        else:
            self.directory.mkdir(exist_ok=True)
            broken = "" if behaviour == "good" else "raise RuntimeError('broken on purpose')"
            (self.directory / "app.py").write_text(WSGI.format(label=label, broken=broken))
            app = App(self.directory, "", "notify")
            (self.directory / "deployer.toml").write_text(app.toml(self.address, **self.toml))
        path = self.directory / "deployer.toml"
        lines = path.read_text().splitlines()
        path.write_text("\n".join('app = "app:app"' if line.startswith("command") else line for line in lines))
        return app


@pytest.fixture
def served(shop: Callable[..., Shop], request: pytest.FixtureRequest) -> Callable[..., Served]:
    clusters: list[Cluster] = []

    def make(kind: str, **options: object) -> Served:
        made = Served(kind, count=2, soak="300ms", interval="1s", ready_timeout="20s", **options)
        clusters.append(made)
        request.addfinalizer(made.close)
        return made

    return make


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_nothing_is_lost_through_everything(served: Callable[..., Served], kind: str, unix: bool) -> None:
    cluster = served(kind, unix=unix)
    cluster.up()
    with LoadProcess(cluster.address, **CLIENTS, **IDLE) as load:
        load.more(20)
        load.mark("deploy")
        cluster.deploy(label="second", code=0)
        cluster.assert_serves("v2")
        load.mark("broken deploy")
        done = cluster.deploy("raises_at_import", label="third", code=HALTED)
        tail = done.last["tail"]
        assert tail[0] == "Traceback (most recent call last):"
        assert tail[-1] == "RuntimeError: broken on purpose"
        assert not any("deployer/runtime" in line for line in tail)
        cluster.assert_serves("v2")
        load.mark("rollback")
        cluster.run("rollback", code=0)
        cluster.assert_serves("v1")
        load.mark("restart")
        cluster.run("restart", code=0)
        renewed = cluster.assert_serves("v1")
        load.mark("kill -9 of the manager")
        cluster.kill_manager()
        cluster.assert_serves("v1", renewed)
        load.more(20)
        report = load.stop()
    assert (report.lost, report.errors) == (0, 0), str(report)


def test_workers_of_both_releases_are_on_the_scoreboard(served: Callable[..., Served]) -> None:
    cluster = served("asgi")
    cluster.up()
    slots = cluster.assert_serves("v1")
    cluster.get("/")
    with Scoreboard.open(Path(cluster.root) / "run" / "scoreboard") as board:
        rows = {row.pid: row for row in board.rows() if row.alive}
        assert {row.slot: row.pid for row in rows.values()} == slots
        assert {row.release for row in rows.values()} == {1}
        assert len({row.group for row in rows.values()}) == 1
        cluster.deploy(label="second", code=0)
        cluster.assert_serves("v2")
        old = [board.row(row.index) for row in rows.values()]
        assert [(row.pid in slots.values(), row.cut_requests) for row in old if row is not None] == [(True, 0)] * 2


def test_an_environment_of_the_release_without_a_server_borrows_ours(served: Callable[..., Served]) -> None:
    """`[build] python` makes one for the release; the application asks for no server."""
    cluster = served("wsgi", extra='\n[build]\npython = "uv"\n')
    cluster.write()
    (cluster.directory / "requirements.txt").write_text("")
    cluster.run("up", code=0)
    status, headers, body = cluster.get("/")
    assert (status, headers["x-release"], body) == (200, "v1", b"hello")
    (worker, *_) = cluster.workers()
    assert ".deployer/envs/" in Path(f"/proc/{worker['pid']}/cmdline").read_text()
    checked = cluster.run("check", "--preload", code=0).out
    assert "preload  app:app is a WSGI application (builtins); imported by " in checked
    assert ".deployer/envs/" in checked, "the environment that was built for this lock file"
    (cluster.directory / "requirements.txt").write_text("# another lock file\n")
    assert "the environment of requirements.txt is not built yet" in cluster.run("check", "--preload", code=0).out
