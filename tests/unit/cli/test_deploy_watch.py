"""`deployer deploy --watch`: from a deploy that fails to the fix that is live, in one command."""

from __future__ import annotations

import signal
from typing import Any

import msgspec
import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, event, rollout_info

from deployer.wire.schema import DeployRequest

T0 = 1700000000.0
Events = list[dict[str, Any]]


@pytest.fixture
def manager(manager: ScriptedManager) -> ScriptedManager:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    for number in (13, 14):
        manager.answers[f"GET /v1/rollouts/{number}"] = 200, rollout_info(id=number, watch=5)
    return manager


def held() -> Events:
    events = stories.canary_halt()
    events[-1] |= {"outcome": "held", "exit_code": 5}
    return events


def watch_begins() -> Events:
    known = {"watch": 5, "kind": "heal", "path": "/srv/shop", "mode": "kernel", "directories": 7}
    return [event(0, "watch.started", rollout=None, **known)]


def watch_ends(why: str) -> Events:
    return [event(0, "watch.ended", rollout=None, watch=5, why=why)]


def let_go() -> Events:
    """The held rollout gives way to its fix: it ends a second time."""
    return [{**held()[-1], "outcome": "reverted", "reason": "superseded", "exit_code": 3}]


def fix(number: int, story: Events, *files: str) -> Events:
    events = [{**event, "rollout": number} for event in story]
    events[0] |= {"watch": 5, "files": list(files), "saved_at": T0, "fixes": 12}
    return events


def in_order(*parts: Events) -> Events:
    events = [event for part in parts for event in part]
    return [{**event, "seq": seq, "ts": T0 + seq / 10} for seq, event in enumerate(events, 1)]


def test_a_fix_that_is_saved_goes_live_and_the_deploy_ends_well(manager: ScriptedManager, shop: Shop) -> None:
    saved = [event(0, "watch.saved", rollout=None, watch=5, files=["app/pricing.py"], count=1, at=T0)]
    manager.events = in_order(
        held(),
        watch_begins(),
        saved,
        let_go(),
        fix(13, stories.promoted(), "app/pricing.py"),
        watch_ends("v7 is live"),
    )

    result = shop.run("deploy", "--watch")

    assert result.code == 0
    assert result.out == "Deployed shop v7 (41d09e7) in 3.4s.\nUndo: deployer rollback      Logs: deployer logs -f\n"
    said = result.err
    failure = said.index("HELD at slot 1 of 2. v6 serves on every slot: a person is needed.\n")
    waits = said.index(f"watching {shop.directory} for a fix; Ctrl-C leaves the deploy held\n")
    tried = said.index("22:13:21 app/pricing.py was saved: a fix is tried\n")
    assert failure < waits < tried < said.index(" finished: promoted, v7 serves 3.4s\n")
    [asked] = manager.bodies("POST /v1/deploy")
    assert asked == msgspec.to_builtins(DeployRequest(who="ana", watch=True))


def test_a_fix_that_fails_too_is_shown_and_the_next_is_waited_for(manager: ScriptedManager, shop: Shop) -> None:
    """The fix of the fix comes while that is under way: nobody reads how one ends that a newer took the place of."""
    overtaken = fix(13, stories.aborted(), "app/pricing.py")
    overtaken[-1] |= {"reason": "superseded"}
    manager.answers["GET /v1/rollouts/15"] = 200, rollout_info(id=15, watch=5)
    manager.events = in_order(
        stories.canary_halt()[:-1],
        watch_begins(),  # before the rollout has ended, here
        stories.canary_halt()[-1:],
        overtaken,
        fix(14, stories.canary_halt(), "app/pricing.py", "app/cart.py"),
        fix(15, stories.promoted(), "app/cart.py"),
    )

    result = shop.run("deploy", "--watch")

    assert result.code == 0
    assert result.err.count("HALTED at slot 1 of 2. Nothing was replaced; v6 serves.\n") == 2
    assert result.err.count(f"watching {shop.directory} for a fix; Ctrl-C ends this view of it\n") == 2
    assert "ABORTED" not in result.err
    assert "app/pricing.py and 1 more was saved: a fix is tried\n" in result.err


def test_a_deploy_that_succeeds_waits_for_nothing(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    result = shop.run("deploy", "--watch", "-q")

    assert (result.code, result.out, result.err) == (0, "v7\n", "")
    assert len(manager.queries("GET /v1/events")) == 1


def test_a_deploy_that_was_aborted_waits_for_nothing(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.aborted()

    assert shop.run("deploy", "--watch", "-q").code == 3
    assert len(manager.queries("GET /v1/events")) == 1


def test_a_watch_that_somebody_ends_leaves_the_code_of_the_failure(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = in_order(held(), watch_begins(), watch_ends("another deploy or rollback was asked for"))

    result = shop.run("deploy", "--watch")

    assert result.code == 5
    assert result.err.endswith("the watch ended: another deploy or rollback was asked for\n")


@pytest.mark.parametrize(
    ("story", "says"),
    [
        (held, "v6 serves and the deploy stays held; {path} is watched on, and a fix goes live by itself\n"),
        (stories.canary_halt, "v6 serves; {path} is watched on, and a fix goes live by itself\n"),
    ],
)
def test_ctrl_c_says_what_serves_and_that_it_is_watched_on(
    manager: ScriptedManager, shop: Shop, story: Any, says: str
) -> None:
    manager.events = in_order(story(), watch_begins())

    with shop.start("deploy", "--watch") as process:
        assert process.stderr is not None
        said = ""
        while "for a fix; Ctrl-C" not in said:
            said += process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)

    assert process.returncode == 130
    hint = "hint: deployer status, or to end it: deployer deploy --abort\n"
    assert rest == says.format(path=shop.directory) + hint


def test_timeout_ends_the_view_while_a_fix_is_waited_for(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = in_order(held(), watch_begins())

    result = shop.run("deploy", "--watch", "--timeout", "2500ms", "-q")

    assert result.code == 8
    assert result.err.endswith("cause: --timeout passed; the watch for one goes on\nhint: deployer follow\n")


def test_json_tells_of_the_watch_between_the_rollouts(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = in_order(held(), watch_begins(), let_go(), fix(13, stories.promoted(), "app/pricing.py"))

    result = shop.run("deploy", "--watch", "--json")

    names = [line["event"] for line in result.lines]
    assert names.count("watch.started") == 1
    assert [line["outcome"] for line in result.lines if line["event"] == "rollout.finished"] == ["held", "promoted"]
    assert result.lines[-1]["rollout"] == 13


def test_only_a_directory_is_watched_and_only_by_who_stays(manager: ScriptedManager, shop: Shop) -> None:
    for words in (["--detach"], ["--dry-run"], ["--abort"], ["--env-only"], ["--git", "https://h/shop.git"], ["a==1"]):
        result = shop.run("deploy", "--watch", *words)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: --watch ")
    toml = shop.directory / "deployer.toml"
    toml.write_text(toml.read_text() + '[source]\ngit = "https://h/shop.git"\n')

    assert shop.run("deploy", "--watch").code == 2
    assert manager.requests == []
    assert shop.run("deploy", "--watch", "--path", ".", "--timeout", "1ms").code == 8
