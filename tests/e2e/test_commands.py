"""The commands as a person types them: what they do, print and exit with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import wait_until
from tests.e2e.shop import LIGHT, Shop, assert_clear, git, own_traceback
from tests.load import LoadThread


def test_up_deploy_rollback_restart_scale_down(shop: Callable[..., Shop]) -> None:
    """A day of an operator, under load until `down`."""
    cluster = shop(count=2)
    cluster.write()
    assert cluster.run("down", code=0).out == "app is not running\n"
    assert_clear(cluster.run("status"), 69, "deployer up")
    assert_clear(cluster.run("deploy"), 69, "deployer up")
    cluster.run("up", code=0)
    with LoadThread(cluster.address, **LIGHT) as load:
        up_again_changes_nothing(cluster)
        deploying_what_is_live_is_a_no_op(cluster)
        rolling_back(cluster)
        restarting(cluster)
        scaling(cluster)
        what_was_done_is_on_record(cluster)
        report = load.stop()
    assert report.lost == 0, str(report)
    assert report.errors == 0, str(report)
    down = cluster.run("down", code=0)
    assert "is down" in down.out
    assert not cluster.processes()
    cluster.run("up", code=0)
    assert cluster.release_served() == cluster.current(), "what was promoted comes back"


def up_again_changes_nothing(cluster: Shop) -> None:
    before = (cluster.assert_serves("v1"), cluster.manager_pid(), cluster.keeper_pid())
    assert "already up" in cluster.run("up", code=0).out
    assert (cluster.assert_serves("v1"), cluster.manager_pid(), cluster.keeper_pid()) == before


def deploying_what_is_live_is_a_no_op(cluster: Shop) -> None:
    slots = cluster.assert_serves("v1")
    done = cluster.run("deploy", code=0)
    assert "nothing to do" in done.out
    assert cluster.run("deploy", "--json", code=0).last["outcome"] == "unchanged"
    cluster.assert_serves("v1", slots)
    assert list(cluster.releases()) == ["v1"]
    done = cluster.run("deploy", "--force", "--json", "-m", "on purpose", code=0)
    forced = done.last["release"]
    assert done.last["outcome"] == "promoted"
    renewed = cluster.assert_serves(forced)
    assert not set(slots.values()) & set(renewed.values())


def rolling_back(cluster: Shop) -> None:
    live = cluster.current()
    assert_clear(cluster.run("rollback", "v77"), 2, "there is no release v77")
    assert_clear(cluster.run("rollback", "yesterday"), 2, "v1, v2")
    broken = cluster.deploy("health_500", label="sick", code=3).last["release"]
    assert_clear(cluster.run("rollback"), 2, "no release to roll back to", f"v1: the same files and settings as {live}")
    done = cluster.run("rollback", "v1", code=0)
    assert "Rolled back app to v1" in done.out
    slots = cluster.assert_serves("v1")
    states = {name: release["state"] for name, release in cluster.releases().items()}
    assert (states["v1"], states[str(live)], states[broken]) == ("live", "reverted", "bad")
    assert_clear(cluster.run("rollback"), 2, "no release to roll back to")
    assert cluster.run("rollback", "v1", "--json", code=0).last["outcome"] == "unchanged"
    again = cluster.run("rollback", broken, "--json", code=3)
    assert again.last["reason"] == "health"
    cluster.assert_serves("v1", slots)
    cluster.run("rollback", str(live), code=0)
    cluster.assert_serves(str(live))


def restarting(cluster: Shop) -> None:
    live = str(cluster.current())
    before = cluster.assert_serves(live)
    done = cluster.run("restart", code=0)
    assert "2 workers" in done.out
    assert not set(before.values()) & set(cluster.assert_serves(live).values())


def scaling(cluster: Shop) -> None:
    live = str(cluster.current())
    before = cluster.assert_serves(live)
    cluster.run("scale", "4", code=0)
    four = cluster.assert_serves(live, before)
    assert len(four) == 4
    assert cluster.run("scale", "4", "--json", code=0).last["outcome"] == "unchanged"
    assert cluster.assert_serves(live, four) == four
    cluster.run("scale", "1", code=0)
    one = cluster.assert_serves(live, {1: before[1]})
    assert len(one) == 1
    assert cluster.run("scale", "0").code == 2
    assert cluster.run("scale", "many").code == 2
    cluster.run("scale", "2", code=0)
    cluster.assert_serves(live, one)


def what_was_done_is_on_record(cluster: Shop) -> None:
    kinds = [entry["kind"] for entry in cluster.history()]
    assert set(kinds) == {"deploy", "rollback", "restart", "scale"}
    assert [entry["id"] for entry in cluster.history()] == sorted((e["id"] for e in cluster.history()), reverse=True)
    table = cluster.run("history", code=0).out
    for word in ("rollback", "promoted", "reverted (health)", "unchanged", "on purpose"):
        assert word in table
    assert len(cluster.run("history", "-n", "2", code=0).out.splitlines()) == 3
    table = cluster.run("releases", code=0).out
    for word in ("live", "bad (health)", "RELEASE"):
        assert word in table


def test_logs(shop: Callable[..., Shop]) -> None:
    """What workers print, old lines first; -f goes on with new ones, through a deploy and the manager's death."""
    cluster = shop(count=2)
    cluster.up(label="first")
    lines = cluster.run("logs", code=0).out
    assert "first worker 1 serves" in lines
    only = cluster.run("logs", "--slot", "2", "-n", "1", code=0).out.splitlines()
    assert len(only) == 1
    assert "v1/2" in only[0]
    entry = json.loads(cluster.run("logs", "--json", "--release", "v1", code=0).out.splitlines()[-1])
    assert entry["release"] == "v1"
    path = cluster.base / "followed"
    with path.open("w") as out, cluster.start("logs", "-f", "-n", "0") as following:
        following.stdout, pipe = None, following.stdout
        assert pipe is not None
        try:
            wait_for_line(pipe, out, lambda: cluster.deploy(label="second", code=0), "second worker 2 serves")
            cluster.kill_manager()
            wait_for_line(pipe, out, lambda: cluster.deploy(label="third", code=0), "third worker 2 serves")
        finally:
            following.send_signal(signal.SIGINT)
            error = following.communicate(timeout=60)[1]
            pipe.close()
    assert following.returncode == 130
    assert not own_traceback(error), error


def wait_for_line(pipe: Any, out: Any, act: Callable[[], object], word: str) -> None:
    act()
    os.set_blocking(pipe.fileno(), False)

    def seen() -> bool:
        text = pipe.read() or ""
        out.write(text)
        out.flush()
        return word in Path(out.name).read_text()

    wait_until(seen, f"{word!r} in `logs -f`")


def test_deploy_from_git(shop: Callable[..., Shop]) -> None:
    """A branch, a tag and a commit by --ref; a branch that moved is seen; an unknown ref and a remote that is not
    there end with 6, and leave nothing."""
    cluster = shop(count=1)
    cluster.write(label="first")
    cluster.run("up", code=0)
    repository = cluster.base / "shop.git"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    for name in ("server.py", "behaviour.py", "deployer.toml"):
        (repository / name).write_text((cluster.directory / name).read_text())
    commit(repository, "from git")
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "one")
    git_deploy(cluster, repository, "main", b"from git")
    assert cluster.releases()[str(cluster.current())]["commit"] == first
    commit(repository, "moved branch")
    git_deploy(cluster, repository, "main", b"moved branch")
    git_deploy(cluster, repository, "one", b"from git")
    commit(repository, "again")
    git_deploy(cluster, repository, git(repository, "rev-parse", "HEAD"), b"again")
    live, number = str(cluster.current()), len(list(cluster.root.glob("releases/v*")))
    slots = cluster.assert_serves(live)
    for words in (["--git", str(repository), "--ref", "no-such-branch"], ["--git", "http://127.0.0.1:9/gone.git"]):
        assert_clear(cluster.run("deploy", *words), 6)
    assert_clear(cluster.run("deploy", "--git", str(cluster.base / "gone")), 2, "no such directory")
    assert_clear(cluster.run("deploy", "--ref", "main"), 2, "git")
    cluster.assert_serves(live, slots)
    assert len(list(cluster.root.glob("releases/v*"))) == number
    wait_until(lambda: not cluster.half_made(), "what was being staged is removed")
    assert "no-such-branch" in cluster.run("history", "--json", code=0).out


def commit(repository: Path, label: str) -> None:
    (repository / "behaviour.py").write_text(f"BEHAVIOUR = 'good'\nLABEL = {label!r}\nBOOT_S = 0.0\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", f"say {label}")


def git_deploy(cluster: Shop, repository: Path, ref: str, served: bytes) -> None:
    cluster.run("deploy", "--git", str(repository), "--ref", ref, code=0)
    assert served in cluster.get()[2]


WAITS_FOR = {"preflight": "0", "canary": "1", "rolling": "3"}  # which worker never comes to be ready


@pytest.mark.parametrize("phase", ["staging", "preflight", "canary", "soaking", "rolling", "reverting"])
def test_abort(phase: str, shop: Callable[..., Shop]) -> None:
    """The rollout stops and all is put back; the deploy that waits says so by its exit code, the abort with 0."""
    cluster = shop(count=3, ready_timeout="60s")
    cluster.write(boot_s=0.25)
    cluster.run("up", code=0)
    slots = cluster.assert_serves("v1")
    cluster.toml["soak"] = "60s" if phase == "soaking" else "300ms"
    if phase in WAITS_FOR:  # the phase must last until the abort comes
        main = 'if __name__ == "__main__":\n'
        cluster.edits = [
            ("server.py", main, f"{main}    while WORKER == {WAITS_FOR[phase]!r}:\n        time.sleep(1)\n")
        ]
    cluster.write("third_worker_crashes" if phase == "reverting" else "good", label="next", boot_s=0.25)
    if phase == "staging":
        for number in range(1500):
            (cluster.directory / f"file{number}.txt").write_text("a file of a big tree\n")
        cluster.edit("deployer.toml", "[rollout]\n", '[build]\nrun = ["sleep 60"]\n\n[rollout]\n')
    with LoadThread(cluster.address, **LIGHT) as load, cluster.begin("deploy") as running:
        running.phase(phase)
        if phase == "staging":
            wait_until(lambda: list(cluster.root.glob("releases/.v2.*")), "the copy has begun")
        if phase == "rolling":
            running.until("slot.moved", slot=2)
        aborted = cluster.run("deploy", "--abort", code=0)
        code = running.finish()
        now = cluster.assert_serves("v1")
        report = load.stop()
    assert code == {"staging": 6, "rolling": 4, "reverting": 4}.get(phase, 3), running.error_text
    assert running.last["reason"] == ("worker_exit" if phase == "reverting" else "aborted")
    assert not own_traceback(aborted.text), aborted.text
    if phase in ("staging", "preflight", "canary", "soaking"):
        assert now == slots
    # The rollout is over before the staging child has removed what it had copied.
    wait_until(lambda: not cluster.half_made(), "the half-made release is removed")
    assert report.lost == 0, str(report)
    assert_nothing_to_abort(cluster)


def assert_nothing_to_abort(cluster: Shop) -> None:
    done = cluster.run("deploy", "--abort")
    assert done.code == 0, done.text
    assert "no rollout is running" in done.text


def test_the_viewer_may_leave(shop: Callable[..., Shop]) -> None:
    """Ctrl-C ends `deploy` with 130 and SIGTERM with 143, --timeout with 8; each says how to go on, and the rollout
    goes on to its end. --detach returns at once, `follow` ends as the deploy would have."""
    cluster = shop(count=2, soak="1500ms")
    cluster.up()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        cluster.write(label=f"left by {code}")
        with cluster.begin("deploy") as running:
            running.phase("soaking")
            running.process.send_signal(number)
            assert running.finish() == code
        assert "deployer follow" in running.error_text
        assert "--abort" in running.error_text
        assert cluster.run("follow", "--json", code=0).last["outcome"] == "promoted"
        assert f"left by {code}".encode() in cluster.get()[2]
    cluster.write(label="timed out")
    assert_clear(cluster.run("deploy", "--timeout", "400ms"), 8, "deployer follow")
    assert cluster.run("follow", "--json", code=0).last["outcome"] == "promoted"
    cluster.write("crash_in_soak", label="detached")
    assert "follow" in cluster.run("deploy", "--detach", code=0).out
    cluster.run("follow", code=3)
    cluster.assert_serves(str(cluster.current()))


@pytest.mark.parametrize("behaviour", ["health_500", "third_worker_crashes"])
def test_hold(behaviour: str, shop: Callable[..., Shop]) -> None:
    """`on_failure = "hold"`: exit 5, the old workers serve and the failure can be looked at; nothing else is rolled
    out until --abort has put all back."""
    cluster = shop(count=3, extra='on_failure = "hold"\npreflight = false\n')
    cluster.up()
    slots = cluster.assert_serves("v1")
    with LoadThread(cluster.address, **LIGHT) as load:
        held = cluster.deploy(behaviour, label="held", code=5)
        assert held.last["outcome"] == "held"
        status = cluster.status()
        assert status["rollout"]["phase"] == "held"
        assert {w["pid"] for w in status["workers"]} >= {slots[3]}
        if behaviour == "health_500":
            assert {w["release"] for w in status["workers"] if w["slot"] == 1} == {"v1", "v2"}, "the canary is kept"
        assert cluster.current() == "v1"
        assert_clear(cluster.run("deploy"), 75, "held", "deployer deploy --abort")
        cluster.kill_manager()
        assert cluster.status()["rollout"]["phase"] == "held"
        cluster.run("deploy", "--abort", code=0)
        now = cluster.assert_serves("v1", {3: slots[3]})
        report = load.stop()
    if behaviour == "health_500":
        assert now == slots
    assert report.lost == 0, str(report)
    assert cluster.releases()["v2"]["state"] in ("bad", "reverted")
    cluster.deploy(label="after", code=0)
