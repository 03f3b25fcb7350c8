"""What a person sees of hooks and warnings: live, in plain lines, at the end, and in a build system."""

from __future__ import annotations

import io
from typing import Any

import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, rollout_info

from deployer.cli.lines import timestamped
from deployer.cli.output import ASCII, Output, Style
from deployer.cli.progress import render
from deployer.cli.view import RolloutView
from deployer.client.follow import decode_event
from deployer.wire.schema import Event

WARNING = "the after_rollout hook ([hooks] after_rollout) failed: exit code 5"


@pytest.fixture
def manager(manager: ScriptedManager) -> ScriptedManager:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    return manager


def told(stage: str, *, failure: str | None = None, lines: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    name = f"[hooks] {stage}"
    code = 5 if failure else 0
    return [
        ("hook.started", {"stage": stage, "hook": name, "pid": 77}),
        ("hook.output", {"stage": stage, "hook": name, "lines": list(lines)}),
        ("hook.finished", {"stage": stage, "hook": name, "seconds": 1.5, "exit": code, "failure": failure}),
    ]


def live_with_a_warning(*lines: str) -> list[dict[str, Any]]:
    """A good deploy whose last hook failed."""
    events = stories.promoted()
    last = events.pop()
    seq, ts = last["seq"], last["ts"]
    for name, fields in told("after_rollout", failure=WARNING, lines=lines or ("no", "way")):
        events.append({"seq": seq, "ts": ts, "event": name, "rollout": last["rollout"], **fields})
        seq += 1
    return [*events, {**last, "seq": seq, "exit_code": 9, "warnings": [WARNING]}]


def test_a_release_that_is_live_with_warnings_is_a_success_that_names_them(
    manager: ScriptedManager, shop: Shop
) -> None:
    manager.events = live_with_a_warning()
    result = shop.run("deploy")
    assert result.code == 9
    assert result.out.startswith("Deployed shop v7")
    assert result.err.endswith(f"\nwarning: {WARNING}\n")
    assert "error:" not in result.err


def test_each_line_of_a_hook_is_a_line_with_its_time_and_stage(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = live_with_a_warning("one", "two\x1b[31m", "three")
    lines = [line.split(" ", 1)[1] for line in shop.run("deploy").err.splitlines() if "after_rollout" in line]
    assert lines[:5] == [
        "after_rollout: [hooks] after_rollout started (pid 77)",
        "after_rollout | one",
        "after_rollout | two",
        "after_rollout | three",
        "after_rollout: [hooks] after_rollout failed (exit 5) 1.5s",
    ]


def test_only_the_output_of_hooks_is_more_than_one_line() -> None:
    event = Event(seq=1, ts=0.0, event="rollout.failed", data={"what": "a", "cause": "b\nc"})
    assert "\n" not in timestamped(event, ASCII)


def test_a_build_system_gets_an_annotation_and_no_commands_of_the_hook(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = live_with_a_warning("::error::not ours", "##[error]nor this")
    summary = shop.directory / "summary.md"
    result = shop.run("deploy", env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)})
    assert f"::warning title=deployer::{WARNING}\n" in result.err
    assert WARNING in summary.read_text()
    before = result.err[: result.err.index("##[error]nor this")]
    assert before.count("::stop-commands::") == 1
    assert before.rindex("::stop-commands::") > before.rindex("started (pid 77)")


def test_a_failure_may_have_warnings_too(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.canary_halt()
    manager.events[-1]["warnings"] = ["the on_failure hook ([hooks] on_failure) failed: exit code 1"]
    result = shop.run("deploy")
    assert result.code == 3
    assert "warning: the on_failure hook ([hooks] on_failure) failed: exit code 1\n" in result.err


def test_the_live_view_has_a_line_for_each_stage_in_its_place() -> None:
    view = RolloutView()
    out = Output(io.StringIO(), io.StringIO(), {"LANG": "C", "TERM": "dumb"}, Style())
    events = [*told("after_rollout", lines=("bye",)), *told("before_stage", lines=("a", "b")), *told("after_canary")]
    begun = ("rollout.started", {"kind": "deploy", "slots": [1, 2]})
    for seq, (name, fields) in enumerate([begun, *events], 1):
        view.apply(Event(seq=seq, ts=float(seq), event=name, data=fields))
    labels = [line.split()[1] for line in render(view, out, "shop", 10.0)[1:]]
    assert labels == ["before_stage", "slot", "after_canary", "slot", "after_rollout"]
    assert view.hooks["before_stage"].text == "b"
    assert view.hooks["after_rollout"].state == "done"


def test_events_of_an_older_manager_have_no_warnings(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()
    assert "warnings" not in manager.events[-1]
    assert shop.run("deploy").code == 0
    assert decode_event(b'{"seq": 1, "ts": 1, "event": "rollout.finished"}').data == {}
