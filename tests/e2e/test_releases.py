"""Releases as their users meet them: going back, keeping and removing, waiting in line, plans, secrets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, Done, wait_until

SECRET = "hunter2-never-shown"


@contextlib.contextmanager
def cluster(**toml: Any) -> Iterator[Cluster]:
    with Cluster(**{"soak": "0s", "count": 1} | toml) as made:
        yield made


def releases(shop: Cluster) -> dict[str, dict[str, Any]]:
    return {release["name"]: release for release in shop.api("/v1/releases")[0]}


def history(shop: Cluster) -> list[dict[str, Any]]:
    """Oldest first."""
    found: list[dict[str, Any]] = shop.api("/v1/rollouts?limit=100")[0]
    return found[::-1]


def on_disk(shop: Cluster) -> set[str]:
    return {name for name in os.listdir(shop.root / "releases") if not name.endswith(".index")}


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def edit_toml(shop: Cluster, old: str, new: str) -> None:
    path = shop.directory / "deployer.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def git(directory: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.org", *words]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def gated_deploy(shop: Cluster, label: str) -> Iterator[subprocess.Popen[str]]:
    """A deploy whose workers do not come up before the block ends; it runs, at its preflight, when the block begins."""
    gate = shop.base / "gate"
    gate.unlink(missing_ok=True)
    shop.write(label=label)
    with open(shop.directory / "behaviour.py", "a") as file:
        file.write(f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.05)\n")
    running = shop.start("deploy", "--json")
    try:
        wait_for(shop, lambda status: (status["rollout"] or {}).get("phase") == "preflight", "it is at its preflight")
        yield running
    finally:
        gate.touch()
        out, err = running.communicate(timeout=90)
    assert json.loads(out.splitlines()[-1])["event"] == "rollout.finished", out + err


def wait_for(shop: Cluster, condition: Callable[[dict[str, Any]], Any], what: str) -> Any:
    return wait_until(lambda: condition(shop.status()), what, 60, 0.2)


# Rollback


def test_a_rollback_restores_files_environment_and_configuration_together() -> None:
    """Variables of the newer release are gone, those of the older are back, and so is its drain_timeout."""
    with cluster(worker_extra='env = { OLD = "1", BOTH = "old" }') as shop:
        shop.up(label="one")
        shop.toml |= {"worker_extra": 'env = { NEW = "1", BOTH = "new" }', "drain_timeout": "7s"}
        shop.write(label="two")
        shop.run("deploy", code=0)
        newer = environment_of(shop.pids()[0])
        assert (newer.get("OLD"), newer["NEW"], newer["BOTH"]) == (None, "1", "new")
        shop.run("rollback", "-m", "too new", code=0)
        older = environment_of(shop.pids()[0])
        assert (older["OLD"], older.get("NEW"), older["BOTH"]) == ("1", None, "old")
        assert b"one" in shop.get()[2]
        assert shop.current() == "v1"
        assert (
            json.loads(shop.run("releases", "show", "v1", "--json", code=0).out)["config"]["worker"]["drain_timeout"]
            == "10s"
        )
        assert releases(shop)["v2"]["state"] == "reverted"


def test_a_rollback_passes_over_failed_bad_and_identical_releases() -> None:
    """v1 good, v2 good, v3 crashes, v4 the same as v2 again: from v4 the last good other one is v1."""
    with cluster() as shop:
        shop.up(label="one")
        shop.deploy("good", "two", code=0)
        shop.deploy("raises_at_import", "three", code=3)
        shop.write(label="two")
        shop.run("deploy", "--force", code=0)
        assert releases(shop)["v3"]["state"] == "bad"
        plan = json.loads(shop.run("rollback", "--dry-run", "--json", code=0).out)
        assert (plan["release"], plan["live"], plan["files"]["changed"]) == ("v1", "v4", ["behaviour.py"])
        assert releases(shop)["v4"]["state"] == "live"
        shop.run("rollback", code=0)
        assert shop.release_served() == "v1"
        again = shop.run("rollback", code=0)
        assert shop.release_served() == "v2", again.text


def test_a_rollback_to_a_commit() -> None:
    """By the first digits; what was never deployed, or is no commit, is refused."""
    with cluster() as shop:
        shop.write(label="one")
        (shop.directory / ".gitignore").write_text(".deployer\n__pycache__\n")
        git(shop.directory, "init", "-q", "-b", "main")
        git(shop.directory, "add", ".")
        git(shop.directory, "commit", "-q", "-m", "Fix cart rounding")
        first = git(shop.directory, "rev-parse", "HEAD")
        shop.run("up", "--no-deploy", code=0)
        shop.run("deploy", "--git", ".", code=0)
        (shop.directory / "added.txt").write_text("new\n")
        git(shop.directory, "add", ".")
        git(shop.directory, "commit", "-q", "-m", "Add a file")
        plan = shop.run("deploy", "--git", ".", "--dry-run", code=0).out
        assert "added.txt" in plan
        assert "Add a file" in plan
        shop.run("deploy", "--git", ".", code=0)
        diff = shop.run("diff", "v1", "v2", code=0).out
        assert "Add a file (Ann)" in diff
        assert "+ added.txt  4 B" in diff
        shown = shop.run("releases", code=0).out
        assert "Fix cart rounding" in shown
        assert "Ann" in shown
        shop.run("rollback", "--to-commit", "ffffffff", code=2)
        shop.run("rollback", "--to-commit", "--all", code=2)
        shop.run("rollback", "--to-commit", first[:8], code=0)
        assert shop.release_served() == "v1"
        assert "commits taken back" in shop.run("diff", "v2", "v1", code=0).out


# Retention


def test_retention_keeps_what_is_good_pinned_or_used() -> None:
    """keep = 1: one good release beside the live one, one failed one; a pinned one takes no place."""
    with cluster(extra="\n[release]\nkeep = 1\nkeep_failed = 1\n") as shop:
        shop.up(label="one")
        shop.run("releases", "pin", "v1", code=0)
        for number, label in enumerate(("two", "three"), 2):
            shop.deploy("good", label, code=0)
            shop.deploy("raises_at_import", f"bad {number}", code=3)
        shop.write(label="four")
        plan = json.loads(shop.run("deploy", "--dry-run", "--json", code=0).out)
        assert plan["removes"] == ["v2"]
        assert on_disk(shop) == {"v1", "v2", "v4", "v5"}, "failed ones go although nothing was promoted since"
        shop.run("deploy", code=0)
        assert on_disk(shop) == {"v1", "v4", "v5", "v6"}
        known = releases(shop)
        assert known["v2"]["removed_at"]
        assert known["v1"]["pinned"]
        refused = shop.run("rollback", "v2", code=2)
        assert "retention removed its files" in refused.text
        shop.run("releases", "pin", "v2", code=2)
        shop.run("releases", "unpin", "v1", code=0)
        shop.deploy("good", "five", code=0)
        assert on_disk(shop) == {"v5", "v6", "v7"}


def test_the_files_of_a_worker_that_drains_stay_until_it_is_gone() -> None:
    """It finishes its requests on files that are there, two releases later."""
    with cluster(extra="\n[release]\nkeep = 1\n", drain_timeout="40s") as shop:
        shop.up(label="one")
        with shop.connect(60) as visitor:
            visitor.sendall(b"GET /slow?s=20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            shop.deploy("good", "two", code=0)
            shop.deploy("good", "three", code=0)
            assert "draining" in {worker["state"] for worker in shop.status()["workers"]}
            assert on_disk(shop) == {"v1", "v2", "v3"}
            assert b"x-release: v1" in visitor.recv(65536).lower()
        wait_until(lambda: len(shop.status()["workers"]) == 1, "the old worker is gone")
        shop.deploy("good", "four", code=0)
        assert on_disk(shop) == {"v3", "v4"}


def test_a_release_that_cannot_be_removed_is_a_warning() -> None:
    """A mount in it stands for all that may be in the way. The deploy is live (9), and the manager starts again."""
    with cluster(extra="\n[release]\nkeep = 1\n") as shop:
        shop.up(label="one")
        place = shop.root / "releases" / "v1" / "mounted"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False).returncode:
            pytest.skip("NOT TESTED: a release that cannot be removed; mount is refused here")
        try:
            shop.deploy("good", "two", code=0)
            done = shop.deploy("good", "three", code=9)
            assert "v1 could not be removed" in str(done.last["warnings"])
            assert shop.release_served() == "v3"
            shop.kill_manager()
            assert shop.settled()["release"] == "v3"
            shop.run("rollback", "v1", code=2)
        finally:
            moved = shop.root / "releases" / ".v1.removing" / "mounted"
            subprocess.run(["umount", "--lazy", str(moved if moved.exists() else place)], check=True)
        shop.deploy("good", "four", code=0)
        assert "v1" not in on_disk(shop)
        assert not [name for name in on_disk(shop) if name.startswith(".")]


def test_a_deploy_that_would_fill_the_disk_is_refused_before_anything_is_copied() -> None:
    with cluster() as shop:
        shop.up(label="one")
        other = shop.base / "other"
        other.mkdir()
        with open(other / "huge", "wb") as file:
            file.truncate(1 << 42)  # sparse: takes no room here, and would in a copy
        (other / "small").write_text("x")
        done = shop.run("deploy", "--json", "--path", str(other), code=6)
        assert done.last["reason"] == "disk"
        assert "it needs about 4" in done.last["problem"]["cause"]
        assert "are free in" in done.last["problem"]["cause"]
        (other / ".gitignore").write_text("huge\n")
        plan = json.loads(shop.run("deploy", "--dry-run", "--json", "--path", str(other), code=0).out)
        assert "small" in plan["files"]["added"]
        assert on_disk(shop) == {"v1"}
        assert shop.release_served() == "v1"


# Secrets


def test_secrets_are_frozen_with_the_release_and_shown_nowhere() -> None:
    """In state.db (0600) alone; a key that was removed is gone; --env-only makes a release of the same tree."""
    with cluster(worker_extra='env_file = ["secrets.env"]', extra='\n[source]\nexclude = ["secrets.env"]\n') as shop:
        shop.write(label="one")
        secrets = shop.directory / "secrets.env"
        secrets.write_text(f"TOKEN={SECRET}\nOLD=1\n")
        secrets.chmod(0o600)
        shop.run("up", code=0)
        assert environment_of(shop.pids()[0])["TOKEN"] == SECRET
        secrets.write_text(f"TOKEN={SECRET}2\nNEW=1\n")
        secrets.chmod(0o644)
        plan = shop.run("deploy", "--env-only", "--dry-run", code=0).text
        assert "+ NEW=***" in plan
        done = shop.run("deploy", "--env-only", code=0)
        assert "secrets.env is readable by others" in done.text
        env = environment_of(shop.pids()[0])
        assert (env["TOKEN"], env["NEW"], env.get("OLD")) == (f"{SECRET}2", "1", None)
        known = releases(shop)
        assert known["v2"]["tree_digest"] == known["v1"]["tree_digest"]
        inodes = {(shop.root / "releases" / name / "server.py").stat().st_ino for name in ("v1", "v2")}
        assert len(inodes) == 2, "a write into one release would show in the other"
        manifest = json.loads((shop.root / "releases" / "v2" / ".deployer.json").read_text())
        assert (manifest["release"], manifest["environment_keys"]) == ("v2", ["NEW", "TOKEN"])
        assert b"one" in shop.get()[2]
        diff = shop.run("diff", code=0).out
        for line in ("+ NEW=***", "- OLD", "~ TOKEN=***"):
            assert line in diff
        assert "files" not in diff
        assert "nothing to do" in shop.run("deploy", "--env-only", code=0).text
        shop.run("rollback", code=0)
        assert environment_of(shop.pids()[0])["TOKEN"] == SECRET
        said = [shop.run(*words).text for words in WORDS_THAT_SHOW] + [done.text, diff, plan]
        assert SECRET not in "".join(said)
        leaks = [path for path in shop.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        assert {path.name.partition("-")[0] for path in leaks} <= {"state.db", "state.db.bak"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in leaks)
        with contextlib.closing(sqlite3.connect(shop.root / "state.db")) as db:
            assert SECRET not in str(db.execute("SELECT * FROM events").fetchall())


WORDS_THAT_SHOW = (
    ("status", "--json"),
    ("releases", "--json"),
    ("releases", "show", "v1", "--json"),
    ("releases", "show", "v2"),
    ("diff", "v1", "v2", "--json"),
    ("events", "--json"),
    ("history", "--json"),
    ("logs",),
    ("deploy", "--dry-run", "--json"),
)


# One rollout at a time


def ten(shop: Cluster, *words: str, held_until: Callable[[list[Done]], bool] | None = None) -> list[Done]:
    """Ten deploys of ten directories, started at once; the first is held in staging until this is true of those that
    have ended."""
    answers: list[Done] = []

    def one(number: int) -> None:
        answers.append(shop.run("deploy", "--json", "--path", str(shop.base / f"app{number}"), *words))

    for number in range(10):
        place = shop.base / f"app{number}"
        subprocess.run(["cp", "-r", str(shop.directory), str(place)], check=True)
        subprocess.run(["rm", "-rf", str(place / ".deployer")], check=True)
        (place / "behaviour.py").write_text(f"BEHAVIOUR = 'good'\nLABEL = 'app{number}'\nBOOT_S = 0\n")
    go, hook = shop.base / "go", shop.root / "hooks" / "before_stage"
    if held_until is not None:
        hook.parent.mkdir()
        hook.write_text(f"#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.02; done\n")
        hook.chmod(0o755)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    try:
        if held_until is not None:
            wait_until(lambda: held_until(answers), "the others are told")
    finally:
        go.touch()
        for thread in threads:
            thread.join()
    return answers


def assert_whole(shop: Cluster) -> None:
    """One release live, which all workers run, and nothing half-made."""
    status = shop.settled()
    known = releases(shop)
    assert [name for name, release in known.items() if release["state"] == "live"] == [status["release"]]
    assert shop.current() == status["release"]
    assert status["queued"] == []
    assert not [name for name in on_disk(shop) if name.startswith(".")]
    assert not [name for name, release in known.items() if release["state"] in ("staging", "staged")]
    assert all(rollout["outcome"] for rollout in history(shop))


def problem(done: Done) -> dict[str, Any]:
    found: dict[str, Any] = done.last.get("error") or done.last.get("problem") or {}
    return found


def test_ten_deploys_at_once_one_runs_and_nine_are_told_who_is_there() -> None:
    with cluster() as shop:
        shop.up(label="one")
        answers = ten(shop, held_until=lambda ended: len(ended) == 9)
        assert sorted(done.code for done in answers) == [0] + [75] * 9, answers
        for done in answers:
            assert done.code == 0 or ("is running, started by" in problem(done)["what"] and done.err)
        assert_whole(shop)


def test_ten_deploys_at_once_wait_their_turn() -> None:
    """Each is live in its turn; the order is that in which they came."""
    with cluster(extra="\n[release]\nkeep = 20\n") as shop:
        shop.up(label="one")
        answers = ten(shop, "--queue", held_until=lambda _: len(shop.status()["queued"]) == 9)
        assert [done.code for done in answers] == [0] * 10, [done.text for done in answers if done.code]
        assert {done.last["outcome"] for done in answers} == {"promoted"}
        rollouts = history(shop)
        assert [rollout["id"] for rollout in rollouts] == sorted(rollout["id"] for rollout in rollouts)
        starts = [rollout["started_at"] for rollout in rollouts]
        assert starts == sorted(starts)
        assert sum(any(event["event"] == "rollout.queued" for event in done.events) for done in answers) == 9
        assert_whole(shop)


def test_ten_deploys_at_once_that_supersede_each_other() -> None:
    """The last to come is live, the others were superseded, and each was told so."""
    with cluster() as shop:
        shop.up(label="one")
        answers = ten(shop, "--supersede")
        winners = [done for done in answers if done.code == 0]
        assert winners
        for done in answers:
            assert done.code in (0, 3, 4, 6), done.text
            assert done.code == 0 or done.last["reason"] == "superseded"
        assert winners[0].last["release"] or winners[-1].last["release"]
        assert_whole(shop)
        newest = max(history(shop), key=lambda rollout: rollout["id"])
        assert newest["outcome"] == "promoted"


def test_what_waits_survives_the_death_of_the_manager() -> None:
    with cluster(ready_timeout="60s") as shop:
        shop.up(label="one")
        with gated_deploy(shop, "two") as first:
            shop.write(label="three")
            second = shop.start("deploy", "--json", "--queue")
            queued = wait_for(shop, lambda status: status["queued"], "the second one waits")
            assert queued[0]["place"] == 1
            assert "waits its turn, place 1" in shop.run("status", code=0).out
            shop.kill_manager()
            assert wait_for(shop, lambda status: status["queued"], "it still waits")[0]["id"] == queued[0]["id"]
        out, err = second.communicate(timeout=90)
        assert second.returncode == 0, out + err
        assert first.returncode == 0
        assert b"three" in shop.get()[2]
        assert_whole(shop)


def test_ctrl_c_takes_a_waiting_deploy_out_of_the_queue_and_leaves_the_running_one() -> None:
    """One that watches somebody else's does not; one that was left behind is taken out by its number."""
    with cluster(ready_timeout="60s") as shop:
        shop.up(label="one")
        with gated_deploy(shop, "two") as running:
            waiting = shop.start("deploy", "--queue")
            number = wait_for(shop, lambda status: status["queued"], "it waits")[0]["id"]
            follower = shop.start("follow", str(number), "--json")
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["event"] == "rollout.queued"
            follower.send_signal(signal.SIGINT)
            follower.communicate(timeout=60)
            assert [info["id"] for info in shop.status()["queued"]] == [number]
            detached = shop.run("deploy", "--queue", "--detach", "--json", code=0).last
            assert detached["place"] == 2
            waiting.send_signal(signal.SIGINT)
            _, err = waiting.communicate(timeout=60)
            assert waiting.returncode == 130
            assert "it was taken out of the queue" in err
            shop.run("deploy", "--abort", str(detached["id"]), code=0)
            assert shop.status()["queued"] == []
        assert running.returncode == 0
        ended = {rollout["id"]: rollout for rollout in history(shop)}
        assert (ended[number]["outcome"], ended[number]["reason"]) == ("failed", "aborted")
        assert b"two" in shop.get()[2]
        assert_whole(shop)


def test_what_cannot_begin_in_its_turn_ends_with_its_own_error_and_the_next_has_its_turn() -> None:
    with cluster(ready_timeout="60s") as shop:
        shop.up(label="one")
        with gated_deploy(shop, "two") as first:
            broken = shop.start("deploy", "--json", "--queue")
            wait_for(shop, lambda status: len(status["queued"]) == 1, "one waits")
            back = shop.start("rollback", "v1", "--json", "--queue")
            wait_for(shop, lambda status: len(status["queued"]) == 2, "two wait")
            edit_toml(shop, "count = 1", "count = 1\nnonsense = 2")
        out, _ = broken.communicate(timeout=90)
        assert broken.returncode == 78, out
        out, _ = back.communicate(timeout=90)
        assert back.returncode == 0, out
        assert first.returncode == 0
        assert shop.release_served() == "v1"


def test_down_sends_away_who_waits() -> None:
    with cluster(ready_timeout="60s") as shop:
        shop.up(label="one")
        with gated_deploy(shop, "two"):
            waiting = shop.start("deploy", "--json", "--queue")
            wait_for(shop, lambda status: status["queued"], "another one waits")
            shop.run("down", code=0)
            out, _ = waiting.communicate(timeout=60)
            assert waiting.returncode == 6
            assert json.loads(out.splitlines()[-1])["reason"] == "stopped"


def test_supersede_turns_back_what_runs_and_drops_what_waits() -> None:
    with cluster(ready_timeout="60s", count=2) as shop:
        shop.up(label="one")
        with gated_deploy(shop, "two") as slow:
            waiting = shop.start("deploy", "--json", "--queue")
            wait_for(shop, lambda status: status["queued"], "another one waits")
            shop.write(label="three")
            assert "is running, started by" in shop.run("deploy", code=75).text
            shop.run("deploy", "--supersede", code=0)
            out, _ = waiting.communicate(timeout=60)
            assert (waiting.returncode, json.loads(out.splitlines()[-1])["reason"]) == (6, "superseded")
        assert slow.returncode == 3
        ended = {rollout["release"]: rollout for rollout in history(shop)}
        assert ended["v2"]["reason"] == "superseded"
        assert releases(shop)["v2"]["state"] == "reverted"
        assert b"three" in shop.get()[2]
        assert_whole(shop)


# Plans


def test_a_dry_run_changes_nothing() -> None:
    """No release number, row, file or rollout is used up; a mistake in the configuration is told as by a deploy."""
    with cluster() as shop:
        shop.up(label="one")
        before = (releases(shop), len(history(shop)), sorted(os.listdir(shop.root / "releases")))
        shop.toml["worker_extra"] = 'env = { NEW = "1" }'
        shop.write(label="two")
        (shop.directory / "added.txt").write_text("x")
        plan = json.loads(shop.run("deploy", "--dry-run", "--json", code=0).out)
        assert plan["files"] == {"added": ["added.txt"], "removed": [], "changed": ["behaviour.py", "deployer.toml"]}
        assert plan["env"]["added"] == ["NEW"]
        assert plan["slots"] == [1]
        assert (releases(shop), len(history(shop)), sorted(os.listdir(shop.root / "releases"))) == before
        edit_toml(shop, "[worker]", "[worker]\nnonsense = 1")
        shop.run("deploy", "--dry-run", code=78)
        shop.write(label="two")
        shop.run("deploy", code=0)
        assert shop.release_served() == "v2"
