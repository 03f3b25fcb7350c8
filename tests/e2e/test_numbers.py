"""Canary by numbers: releases that pass their health check and do badly by their visitors, with real visitors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.apps import App
from tests.e2e.shop import Shop
from tests.load import LoadProcess

HALTED = 3
CLIENTS: dict[str, float | str] = {"keepalive": 2, "fresh": 6, "slow": 0}
ASGI = """
import asyncio, os
KIND, SEEN = "{behaviour}", [0]
HEADERS = [(b"x-" + key.lower().encode(), os.environ["DEPLOYER_" + key].encode()) for key in ("RELEASE", "WORKER")]
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        return await send({{"type": "lifespan.shutdown.complete"}})
    status, body = 200, b"{label}"
    if scope["path"] != "/healthz":
        SEEN[0] += 1
        if KIND == "slow":
            await asyncio.sleep(0.15)
        if KIND == "raises" and SEEN[0] % 2:
            raise ValueError("no price for {label}")
        if KIND == "fails":
            status = 500
    headers = [(b"content-length", str(len(body)).encode()), (b"x-pid", str(os.getpid()).encode()), *HEADERS]
    await send({{"type": "http.response.start", "status": status, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""
WSGI = """
import os, time
KIND = "{behaviour}"
HEADERS = [("X-Release", os.environ["DEPLOYER_RELEASE"]), ("X-Worker", os.environ["DEPLOYER_WORKER"]),
           ("X-Pid", str(os.getpid()))]
def app(environ, start_response):
    body, bad = b"{label}", environ["PATH_INFO"] != "/healthz"
    if KIND == "slow" and bad:
        time.sleep(0.15)
    status = "500 Broken" if KIND == "fails" and bad else "200 OK"
    start_response(status, [("Content-Length", str(len(body))), *HEADERS])
    return [body]
"""


class Judged(Shop):
    """Two workers of an app that deployer serves: good, `fails` always, `raises` each second time, or `slow`."""

    def __init__(self, kind: str, rollout: str = "", *, soak: str = "3s") -> None:
        self.code = ASGI if kind == "asgi" else WSGI
        super().__init__(count=2, soak=soak, interval="200ms", ready_timeout="20s", extra=rollout)

    def write(self, behaviour: str = "good", label: str = "hello", **_: Any) -> App:
        self.directory.mkdir(exist_ok=True)
        (self.directory / "app.py").write_text(self.code.format(behaviour=behaviour, label=label))
        app = App(self.directory, "", "notify")
        toml = app.toml(self.address, **self.toml).replace('command = ""', 'app = "app:app"')
        (self.directory / "deployer.toml").write_text(toml)
        return app

    def judgements(self) -> list[tuple[str, str]]:
        return [(event["verdict"], event["text"]) for event in self.events("canary.judged")]


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Iterator[Callable[..., Judged]]:
    with ExitStack() as stack:

        def make(*options: Any, **more: Any) -> Judged:
            return stack.enter_context(Judged(*options, **more))

        yield make


KINDS = pytest.mark.parametrize("kind", ["asgi", "wsgi"])


def assert_untouched(cluster: Judged, done: Any, slots: dict[int, int]) -> dict[str, Any]:
    """Halted, with no slot replaced: the event that says why."""
    cluster.assert_serves("v1", slots)
    assert done.last["serving"] == "v1"
    moved = [event for event in done.events if event["event"] == "slot.moved"]
    assert {event["release"] for event in moved} <= {"v1"}  # the canary's slot, back
    (failed,) = [event for event in done.events if event["event"] == "rollout.failed"]
    assert done.last["reason"] == failed["reason"]
    return failed


@KINDS
def test_a_release_that_fails_its_visitors_is_reverted_with_the_numbers(
    judged: Callable[..., Judged], kind: str
) -> None:
    """Its /healthz answers 200 all the time. That the soak is long costs nobody anything: it is over at once."""
    cluster = judged(kind, soak="1s")
    cluster.up()
    cluster.toml["soak"] = "2m"  # longer than a command may take here
    slots = cluster.assert_serves("v1")
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(50)
        done = cluster.deploy("fails", label="second", code=HALTED)
        load.more(50)
        report = load.stop()
    failed = assert_untouched(cluster, done, slots)
    assert failed["reason"] == "error_ratio"
    what = failed["what"]
    assert what.startswith("worker 1 of v2 answered ")
    assert " requests with 5xx (100 %), its peers 0 of " in what
    assert failed["hint"] == "deployer logs --release v2"
    assert [verdict for verdict, _ in cluster.judgements()] == ["bad"]
    assert cluster.releases()["v2"]["state"] == "bad"
    assert report.lost == 0, str(report)
    assert 3 <= report.errors <= report.requests / 2, str(report)  # the canary's own answers, and nobody else's


def test_what_the_canary_raised_last_is_the_cause(judged: Callable[..., Judged]) -> None:
    cluster = judged("asgi", soak="1s")
    cluster.up()
    cluster.toml["soak"] = "2m"  # longer than a command may take here
    slots = cluster.assert_serves("v1")
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(50)
        done = cluster.deploy("raises", label="second", code=HALTED)
        report = load.stop()
    failed = assert_untouched(cluster, done, slots)
    assert (failed["reason"], failed["cause"]) == ("error_ratio", "its last error: ValueError: no price for second")
    assert any("ValueError: no price for second" in line for line in failed["tail"])
    assert report.lost == 0, str(report)


@KINDS
def test_a_release_that_got_much_slower_is_reverted(judged: Callable[..., Judged], kind: str) -> None:
    cluster = judged(kind, soak="1s")
    cluster.up()
    cluster.toml["soak"] = "2m"  # longer than a command may take here
    slots = cluster.assert_serves("v1")
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(50)
        done = cluster.deploy("slow", label="second", code=HALTED)
        report = load.stop()
    failed = assert_untouched(cluster, done, slots)
    assert failed["reason"] == "latency"
    assert failed["what"].startswith("worker 1 of v2 took more than ")
    assert (report.lost, report.errors) == (0, 0), str(report)


@KINDS
def test_a_good_release_passes_and_says_so(judged: Callable[..., Judged], kind: str) -> None:
    """Its first answers are slow, as those of new processes are; what is not judged is not compared either."""
    cluster = judged(kind)
    cluster.up()
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(50)
        cluster.write(label="second")
        done = cluster.run("deploy", code=0)
        report = load.stop()
    cluster.assert_serves("v2")
    ((verdict, text),) = cluster.judgements()
    assert verdict == "good"
    assert text.startswith("answered 0 of ")
    assert f"canary, by numbers: good: worker 1 of v2 {text}\n" in done.err
    assert "not judged" not in done.out
    assert (report.lost, report.errors) == (0, 0), str(report)


def test_without_visitors_the_health_checks_are_not_taken_for_them(judged: Callable[..., Judged]) -> None:
    """`promote`, the default: it goes on and says so. Nothing is said of a first deploy, a rollback or a restart."""
    cluster = judged("asgi", soak="1s")
    cluster.up()
    assert cluster.judgements() == []
    cluster.write(label="second")
    done = cluster.run("deploy", code=0)
    text = "too few requests to judge: 0 of 20"
    assert f"Its canary was not judged by numbers: {text}." in done.out
    cluster.run("rollback", code=0)
    cluster.run("restart", code=0)
    assert cluster.judgements() == [("inconclusive", text)]


def test_too_few_requests_halt_where_that_is_wanted(judged: Callable[..., Judged]) -> None:
    cluster = judged("asgi", 'min_samples = 100000\ninconclusive = "revert"\n', soak="1s")
    cluster.up()
    slots = cluster.assert_serves("v1")
    with LoadProcess(cluster.address, **CLIENTS) as load:
        load.more(20)
        done = cluster.deploy(label="second", code=HALTED)
        report = load.stop()
    failed = assert_untouched(cluster, done, slots)
    assert failed["reason"] == "inconclusive"
    assert "too few requests to judge: " in failed["what"]
    assert cluster.releases()["v2"]["state"] == "reverted"  # nobody knows that it is bad
    assert (report.lost, report.errors) == (0, 0), str(report)


@pytest.mark.parametrize(("behaviour", "code", "verdict"), [("good", 0, "good"), ("fails", HALTED, "bad")])
def test_too_few_requests_can_be_waited_for(
    judged: Callable[..., Judged], behaviour: str, code: int, verdict: str
) -> None:
    """Also by a manager that began anew after the one before was killed."""
    cluster = judged("asgi", 'inconclusive = "extend"\nmax_latency_ratio = 0\n', soak="500ms")
    cluster.up()
    cluster.write(behaviour, label="second")
    with cluster.begin("deploy") as deploy:
        extended = deploy.until("soak.extended")
        assert extended["text"] == "too few requests to judge: 0 of 20"
        cluster.kill_manager()
        deploy.until("soak.extended")
        with LoadProcess(cluster.address, **CLIENTS) as load:
            assert deploy.finish() == code, deploy.error_text
            report = load.stop()
    cluster.assert_serves("v2" if code == 0 else "v1")
    assert [found for found, _ in cluster.judgements()] == [verdict]
    assert report.lost == 0, str(report)


def test_visitors_that_never_come_are_waited_for_until_the_deadline(judged: Callable[..., Judged]) -> None:
    cluster = judged("asgi", 'inconclusive = "extend"\ndeadline = "12s"\n', soak="500ms")
    cluster.up()
    slots = cluster.assert_serves("v1")
    done = cluster.deploy(label="second", code=HALTED)
    assert assert_untouched(cluster, done, slots)["reason"] == "deadline"
    assert 1 <= len([event for event in done.events if event["event"] == "soak.extended"]) <= 3  # 5 s each
    assert cluster.judgements() == []
