"""A deploy that failed heals: its source stays watched, and the fix that somebody saves goes live, by all its steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests import apps
from tests.cluster import wait_until
from tests.e2e.shop import LIGHT, Running, Shop
from tests.load import LoadThread

HOLD = ("deployer.toml", "[rollout]\n", '[rollout]\non_failure = "hold"\n')
Make = Callable[..., Shop]


def save(shop: Shop, behaviour: str, label: str) -> None:
    """Change the application's files in place, as an editor does: deployer.toml and ROOT stay."""
    app = shop.base / "aside"
    apps.SERVERS[shop.server](app, behaviour, label=label)
    for path in app.rglob("*"):
        if path.is_file():
            target = shop.directory / path.relative_to(app)
            aside = target.with_name(f"{target.name}.new")
            aside.write_bytes(path.read_bytes())
            aside.chmod(path.stat().st_mode)
            os.replace(aside, target)


def until_watched(waiting: Running) -> dict[str, Any]:
    return waiting.until("watch.started", kind="heal")


def ended(shop: Shop) -> list[str]:
    return [event["why"] for event in shop.events("watch.ended")]


@pytest.mark.parametrize("bad", ["raises_at_import", "crash_in_soak"])
def test_a_fix_makes_the_deploy_that_waits_succeed(shop: Make, bad: str) -> None:
    """At the preflight or in the soak: one bad save after the other changes nothing; the fix goes live on all slots."""
    made = shop(count=3)
    made.up("good", "first")
    with LoadThread(made.address, **LIGHT) as load:
        load.mark(bad)
        made.write(bad, "second")
        with made.begin("deploy", "--watch") as waiting:
            first = waiting.until("rollout.finished")
            assert first["outcome"] in ("held", "reverted"), first
            assert made.release_served() == "v1"
            until_watched(waiting)
            save(made, bad, "third")
            again = waiting.until("rollout.started")
            assert again["fixes"] == first["rollout"]
            assert waiting.until("rollout.finished", rollout=again["rollout"])["outcome"] in ("held", "reverted")
            load.mark("good")
            save(made, "good", "fourth")
            assert waiting.finish() == 0, waiting.error_text
            assert waiting.last["outcome"] == "promoted"
        made.assert_serves(waiting.last["release"])
        assert made.get()[2].startswith(b"fourth")
        report = load.stop()
    # Two canaries that serve and then die (os._exit) each take along what they were answering, as in test_failures.
    taken_along = [loss for loss in report.losses if loss.step == "crash_in_soak"]
    assert len(taken_along) <= 2 * 4, str(report)
    assert report.lost == len(taken_along), str(report)
    assert made.status()["watch"] is None
    assert ended(made) == [f"{waiting.last['release']} is live"]


def test_hold_heals_without_anybody_waiting(shop: Make) -> None:
    """on_failure = "hold": the command ends with 5; the supervisor goes on watching, and the held rollout gives way."""
    made = shop(count=2, edits=[HOLD])
    made.up("good", "first")
    done = made.deploy("crash_in_soak", "second", code=5)
    assert done.last["outcome"] == "held"
    assert made.status()["watch"]["kind"] == "heal"
    save(made, "good", "third")
    wait_until(lambda: made.current() == "v3", "v3 is live", 40)
    made.assert_serves("v3")
    history = {row["id"]: row for row in made.history()}
    assert [(row["release"], row["outcome"]) for row in history.values()] == [
        ("v3", "promoted"),
        ("v2", "reverted"),
        ("v1", "promoted"),
    ]


def test_what_is_saved_while_the_deploy_still_runs_is_not_missed(shop: Make) -> None:
    """The fix comes before the failure: it is noticed when the snapshot of what fails was made already."""
    made = shop(count=2)
    made.up("good", "first")
    made.write("crash_in_soak", "second")
    with made.begin("deploy", "--watch") as waiting:
        waiting.until("worker.starting")
        save(made, "good", "third")
        assert waiting.finish() == 0, waiting.error_text
    assert made.get()[2].startswith(b"third")


def test_an_abort_by_hand_ends_it(shop: Make) -> None:
    """Somebody has decided: what is saved afterwards is no fix."""
    made = shop(count=1, edits=[HOLD])
    made.up("good", "first")
    made.deploy("crash_in_soak", "second", code=5)
    rollouts = len(made.history())
    assert made.status()["rollout"]["phase"] == "held"
    made.run("deploy", "--abort", code=0)
    assert made.status()["watch"] is None
    save(made, "good", "third")
    assert len(made.history()) == rollouts
    made.assert_serves("v1")


def test_another_deploy_or_rollback_ends_it(shop: Make) -> None:
    made = shop(count=1)
    made.up("good", "first")
    made.write("raises_at_import", "second")
    with made.begin("deploy", "--watch") as waiting:
        until_watched(waiting)
        other = made.base / "other"
        apps.SERVERS[made.server](other, "good", label="third")
        made.run("deploy", "--path", str(other), code=0)
        assert waiting.finish() == 3, "what its own deploy came to"
    assert made.status()["watch"] is None
    assert ended(made) == ["another deploy or rollback was asked for"]
    made.assert_serves("v3")


def test_the_manager_dies_while_a_fix_is_waited_for(shop: Make) -> None:
    """The next one goes on with the watch, and sees what was saved while there was none."""
    made = shop(count=2, edits=[HOLD])
    made.up("good", "first")
    made.deploy("crash_in_soak", "second", code=5)
    manager = made.manager_pid()
    os.kill(manager, signal.SIGSTOP)
    save(made, "good", "third")
    os.kill(manager, signal.SIGKILL)
    wait_until(lambda: made.current() == "v3", "v3 is live", 40)
    made.assert_serves("v3")


def test_ctrl_c_leaves_it_to_the_supervisor(shop: Make) -> None:
    made = shop(count=1)
    made.up("good", "first")
    made.write("raises_at_import", "second")
    with made.begin("deploy", "--watch") as waiting:
        until_watched(waiting)
        waiting.process.send_signal(signal.SIGINT)
        assert waiting.finish() == 130
    save(made, "good", "third")
    wait_until(lambda: made.current() == "v3", "v3 is live", 40)
    made.assert_serves("v3")


@pytest.mark.parametrize("words", [("--git", "/nowhere.git"), ("--detach",), ("--dry-run",)])
def test_what_cannot_be_watched_is_refused(shop: Make, words: tuple[str, ...]) -> None:
    made = shop(count=1)
    made.up("good", "first")
    done = made.run("deploy", "--watch", *words, code=2)
    assert "hint:" in done.err
    assert len(made.history()) == 1
