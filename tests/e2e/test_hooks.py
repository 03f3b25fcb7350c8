"""Hooks in real rollouts: where they run, what their failure does, and what a dying manager makes of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import wait_until
from tests.e2e.shop import Shop, alive

DEPLOY = ["before_stage", "after_build", "before_rollout", "after_canary", "after_rollout"]
ROLLBACK = ["before_rollout", "after_canary", "after_rollback"]
ALL = sorted({*DEPLOY, *ROLLBACK, "on_failure"})


def hook(cluster: Shop, stage: str, script: str) -> Path:
    path = cluster.root / "hooks" / stage
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def up(shop: Callable[..., Shop], **options: Any) -> Shop:
    """A cluster with v1 live, and each hook noting in which stage it ran."""
    cluster = shop(**options)
    cluster.up()
    for stage in ALL:
        hook(cluster, stage, f'echo "$DEPLOYER_STAGE $DEPLOYER_RELEASE $PWD" >> {cluster.base}/ran')
    return cluster


def ran(cluster: Shop) -> list[str]:
    path = cluster.base / "ran"
    found = [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def printed(events: list[dict[str, Any]], stage: str) -> list[str]:
    return [line for e in events if e["event"] == "hook.output" and e["stage"] == stage for line in e["lines"]]


def test_each_stage_runs_once_in_order_in_the_release(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    cluster.deploy(label="two", code=0)
    lines = (cluster.base / "ran").read_text().splitlines()
    assert lines == [
        f"{stage} v2 {cluster.directory if stage == 'before_stage' else cluster.root / 'releases' / 'v2'}"
        for stage in DEPLOY
    ]
    ran(cluster)
    done = cluster.run("rollback", "--json", code=0)
    assert ran(cluster) == ROLLBACK
    assert done.last["warnings"] == []
    cluster.run("restart", code=0)
    cluster.run("scale", "3", code=0)
    assert ran(cluster) == []
    cluster.assert_serves("v1")


def test_a_deploy_of_what_is_live_already_runs_only_the_first(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    cluster.run("deploy", code=0)
    assert ran(cluster) == ["before_stage"]


@pytest.mark.parametrize("stage", ["before_stage", "after_build", "before_rollout"])
def test_a_failure_before_the_rollout_starts_no_worker(shop: Callable[..., Shop], stage: str) -> None:
    cluster = up(shop)
    pids = cluster.assert_serves("v1")
    hook(cluster, stage, "echo 'the disk is on fire' >&2; exit 7")
    done = cluster.deploy("good", "two", code=6)
    assert (done.last["outcome"], done.last["reason"], done.last["serving"]) == ("failed", "hook", "v1")
    assert not [e for e in done.events if e["event"] == "worker.starting"]
    assert ran(cluster) == [*DEPLOY[: DEPLOY.index(stage)], "on_failure"]
    assert cluster.releases()["v2"]["state"] == "failed"
    cluster.assert_serves("v1", pids)
    text = cluster.run("deploy", code=6).err
    assert f"the {stage} hook (.deployer/hooks/{stage}) failed: exit code 7" in text
    assert "the disk is on fire" in text
    log = next(line.split("cat ")[1] for line in text.splitlines() if line.startswith("hint: cat "))
    assert "the disk is on fire" in Path(log).read_text()


def test_a_hook_refuses_the_canary(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "after_canary", "exit 1")
    done = cluster.deploy("good", "two", code=3)
    assert (done.last["outcome"], done.last["reason"]) == ("reverted", "hook")
    assert cluster.releases()["v2"]["state"] == "bad"
    cluster.assert_serves("v1")
    assert "on_failure" in ran(cluster)


def test_without_a_soak_the_canary_hook_is_still_asked(shop: Callable[..., Shop]) -> None:
    cluster = up(shop, soak="0s")
    hook(cluster, "after_canary", "exit 1")
    cluster.deploy("good", "two", code=3)
    cluster.assert_serves("v1")


def test_a_failure_after_promotion_is_a_warning(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "after_rollout", "echo no; exit 5")
    done = cluster.deploy("good", "two", code=9)
    warning = "the after_rollout hook (.deployer/hooks/after_rollout) failed: exit code 5"
    assert (done.last["outcome"], done.last["exit_code"], done.last["warnings"]) == ("promoted", 9, [warning])
    cluster.assert_serves("v2")
    shown = cluster.run("follow", code=9)
    assert f"warning: {warning}" in shown.err
    assert "error:" not in shown.text
    assert cluster.history()[0]["warnings"] == [warning]


def test_what_is_live_is_decided_before_the_last_hook(shop: Callable[..., Shop]) -> None:
    """While it runs the new release is live everywhere, and abort and restart are told to come too late, too early."""
    cluster = up(shop)
    hook(cluster, "after_rollout", "while [ ! -e go ]; do sleep 0.05; done")
    cluster.write(label="two")
    with cluster.begin("deploy") as deploy:
        deploy.phase("finishing")
        deploy.until("hook.started", stage="after_rollout")
        status = cluster.status()
        assert (status["release"], status["rollout"]["phase"], cluster.current()) == ("v2", "finishing", "v2")
        aborted = cluster.run("deploy", "--abort")
        assert aborted.code == 75
        assert "too late to abort" in aborted.err
        assert cluster.run("restart").code == 75
        (cluster.root / "releases" / "v2" / "go").touch()
        assert deploy.finish() == 0
    cluster.assert_serves("v2")


def test_a_failure_is_told_before_the_end_of_the_rollout(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(
        cluster, "on_failure", 'echo "$DEPLOYER_OUTCOME $DEPLOYER_REASON $DEPLOYER_SERVING: $DEPLOYER_PROBLEM"; exit 1'
    )
    done = cluster.deploy("raises_at_import", "two", code=3)
    (line,) = printed(done.events, "on_failure")
    assert line.startswith("reverted worker_exit v1: the preflight worker of v2 exited with code 1")
    assert [e["event"] for e in done.events].index("hook.output") < len(done.events) - 1
    assert done.last["warnings"] == ["the on_failure hook (.deployer/hooks/on_failure) failed: exit code 1"]
    cluster.assert_serves("v1")
    cluster.deploy(label="three", code=0)


def test_a_hook_may_look_at_its_cluster_but_not_deploy(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "before_rollout", "cd /; deployer status --quiet; deployer deploy; echo $?")
    done = cluster.deploy("good", "two", code=0)
    lines = printed(done.events, "before_rollout")
    assert (lines[0], lines[-1]) == ("v1", "75")


@pytest.mark.parametrize("stage", ["before_rollout", "after_rollout"])
def test_a_hook_that_would_wait_for_its_own_rollout_is_told_at_once(shop: Callable[..., Shop], stage: str) -> None:
    """Else it would wait until its timeout; with --detach it need not, and has its turn when the rollout is over."""
    cluster = up(shop)
    (cluster.base / "queue").touch()
    deploys = "deployer deploy --queue; echo $?; deployer rollback --supersede; echo $?"
    later = f"rm {cluster.base}/queue && deployer deploy --force --queue --detach"
    hook(cluster, stage, f"exec 2>&1; [ -e {cluster.base}/queue ] || exit 0; {deploys}; {later}")
    done = cluster.deploy("good", "two", code=0)
    lines = printed(done.events, stage)
    assert [line for line in lines if line.isdecimal()] == ["75", "75"], lines
    assert lines[0].startswith(f"error: --queue is refused in the {stage} hook of rollout ")
    wait_until(lambda: cluster.status()["release"] == "v3", "the deploy that the hook asked for is live")
    cluster.assert_serves("v3")


def test_a_child_that_holds_the_output_open_does_not_hold_the_rollout(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "before_rollout", "sleep 300 & echo $!")
    began = time.monotonic()
    done = cluster.deploy("good", "two", code=0)
    assert time.monotonic() - began < 20
    (pid,) = map(int, printed(done.events, "before_rollout"))
    assert not alive(pid)


def test_a_hook_that_is_too_slow_ends_the_rollout(shop: Callable[..., Shop]) -> None:
    cluster = up(shop, extra='\n[hooks]\ntimeout = "300ms"\n')
    hook(cluster, "before_rollout", "sleep 300")
    done = cluster.deploy("good", "two", code=6)
    assert "not done within [hooks] timeout = 0.3s" in done.last["problem"]["what"]
    cluster.assert_serves("v1")


def test_an_abort_ends_the_hook_that_runs(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "before_rollout", "echo $$; sleep 300")
    cluster.write(label="two")
    with cluster.begin("deploy") as deploy:
        pid = deploy.until("hook.started", stage="before_rollout")["pid"]
        cluster.run("deploy", "--abort", code=0)
        assert deploy.finish() == 6
    assert deploy.last["reason"] == "aborted"
    wait_until(lambda: not alive(pid), "the hook ended")
    cluster.assert_serves("v1")


@pytest.mark.parametrize("script", ["sleep 300", "trap '' TERM; while :; do sleep 1; done"], ids=["docile", "deaf"])
def test_down_ends_the_hook_that_runs(shop: Callable[..., Shop], script: str) -> None:
    """Also one that does not listen to SIGTERM."""
    cluster = up(shop)
    hook(cluster, "after_rollout", script)
    cluster.write(label="two")
    with cluster.begin("deploy") as deploy:
        pid = deploy.until("hook.started", stage="after_rollout")["pid"]
        cluster.run("down", code=0)
        assert not alive(pid)
    cluster.run("up", code=0)
    cluster.assert_serves("v2")
    assert cluster.history()[0]["exit_code"] == 9


def test_commands_and_hooks_of_the_release_run_too(shop: Callable[..., Shop]) -> None:
    cluster = shop(extra="\n[hooks]\nbefore_rollout = 'echo command $DEPLOYER_RELEASE; pwd'\n")
    cluster.up()
    cluster.write(label="two")
    own = cluster.directory / "hooks" / "before_rollout"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\necho release\n")
    own.chmod(0o755)
    hook(cluster, "before_rollout", "echo host")
    done = cluster.run("deploy", "--json", code=0)
    release = str(cluster.root / "releases" / "v2")
    assert printed(done.events, "before_rollout") == ["host", "command v2", release, "release"]


# The manager dies while a hook runs


@pytest.mark.parametrize("stage", [*DEPLOY, "on_failure"])
def test_a_killed_manager_leaves_no_hook_running(shop: Callable[..., Shop], stage: str) -> None:
    """One that decides is run again by the next manager; one that comes after the decision is not: it is a warning."""
    cluster = up(shop)
    marks = cluster.base / "marks"
    hook(cluster, stage, f"echo $$ >> {marks}; [ -e {cluster.base}/second ] || sleep 300")
    good = stage != "on_failure"
    cluster.write("good" if good else "raises_at_import", "two")
    with cluster.begin("deploy") as deploy:
        pid = deploy.until("hook.started", stage=stage)["pid"]
        wait_until(marks.exists, "the hook runs")
        (cluster.base / "second").touch()
        os.kill(cluster.manager_pid(), signal.SIGKILL)
        code = deploy.finish()
    wait_until(lambda: not alive(pid), "the hook of the dead manager is gone")
    again = stage not in ("after_rollout", "on_failure")
    assert len(marks.read_text().split()) == (2 if again else 1)
    assert code == (0 if again else 9 if good else 3)
    if not again:
        cut = f"the {stage} hook (.deployer/hooks/{stage}) was cut short: the manager died while it ran"
        assert deploy.last["warnings"] == [cut]
    cluster.assert_serves("v2" if good else "v1")


def test_json_of_the_context_reaches_the_hook(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "after_rollout", "cat")
    cluster.write(label="two")
    done = cluster.run("deploy", "--json", "-m", 'with "quotes"', code=0)
    told = json.loads(printed(done.events, "after_rollout")[0])
    assert (told["stage"], told["release"], told["previous"], told["slots"]) == ("after_rollout", "v2", "v1", [1, 2])
    assert (told["message"], told["outcome"]) == ('with "quotes"', "promoted")


def test_a_held_rollout_tells_its_hooks_once(shop: Callable[..., Shop]) -> None:
    """While it is held, and not again when a person ends it."""
    cluster = up(shop, extra='on_failure = "hold"\n')
    hook(cluster, "after_canary", "exit 1")
    done = cluster.deploy("good", "two", code=5)
    assert (done.last["outcome"], done.last["reason"]) == ("held", "hook")
    assert ran(cluster)[-1] == "on_failure"
    cluster.run("deploy", "--abort", code=0)
    assert ran(cluster) == []
    cluster.assert_serves("v1")
    assert cluster.history()[0]["outcome"] == "reverted"


def test_an_abort_of_what_has_failed_already_cuts_its_last_hook_short(shop: Callable[..., Shop]) -> None:
    cluster = up(shop)
    hook(cluster, "on_failure", "sleep 300")
    cluster.write("raises_at_import", "two")
    with cluster.begin("deploy") as deploy:
        pid = deploy.until("hook.started", stage="on_failure")["pid"]
        assert cluster.run("deploy").code == 75
        cluster.run("deploy", "--abort", code=0)
        assert deploy.finish() == 3
    wait_until(lambda: not alive(pid), "the hook ended")
    assert "cut short" in deploy.last["warnings"][0]
    cluster.assert_serves("v1")
