"""`deployer deploy` from the first word to the exit code, in every way it can end."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, rollout_info, status

from deployer.wire.schema import AbortRequest, DeployRequest

SUCCESS = """\
Deployed shop v7 (41d09e7) in 3.4s.
Undo: deployer rollback      Logs: deployer logs -f
"""
SUCCESS_PROGRESS = """\
22:13:20.100 deploying from v6 (2 slots) by ana
22:13:20.200 phase: staging
22:13:20.300 stage: copied 213 files
22:13:20.400 staged v7 41d09e7 "Fix cart rounding" (213 files) 0.4s
22:13:20.500 phase: preflight
22:13:20.600 preflight: v7 pid 9000 starting
22:13:20.700 preflight: v7 pid 9000 ready 0.3s
22:13:20.800 preflight passed 0.5s: ready, GET /healthz 200
22:13:20.900 phase: canary
22:13:21.000 slot 1: v7 pid 9004 starting
22:13:21.100 slot 1: v7 pid 9004 ready 0.3s
22:13:21.200 slot 1: v6 pid 8121 draining
22:13:21.300 slot 1: v6 pid 8121 stopped (exit code 0) 0.1s
22:13:21.400 slot 1: pid 8121 → 9004, v7 serves 0.6s
22:13:21.500 phase: soaking
22:13:21.600 soak: the canary has to live 3.0s
22:13:21.700 phase: rolling
22:13:21.800 slot 2: v7 pid 9011 starting
22:13:21.900 slot 2: v7 pid 9011 ready 0.3s
22:13:22.000 slot 2: v6 pid 8122 draining
22:13:22.100 slot 2: v6 pid 8122 stopped (exit code 0) 0.1s
22:13:22.200 slot 2: pid 8122 → 9011, v7 serves 0.6s
22:13:22.300 phase: promoting
22:13:22.400 finished: promoted, v7 serves 3.4s
"""
CANARY_HALT = """\
HALTED at slot 1 of 2. Nothing was replaced; v6 serves.

  last output of slot 1 (pid 9310):
  │ Traceback (most recent call last):
  │   File "/srv/shop/.venv/lib/python3.11/site-packages/gunicorn/util.py", line 371, in import_app
  │     mod = importlib.import_module(module)
  │   File "/srv/shop/.deployer/releases/v7/app/pricing.py", line 12, in <module>
  │     from vendor.pricing import Client
  │ ModuleNotFoundError: No module named 'vendor.pricing'

error: v7 does not start: exit code 1
cause: the worker ended before it was ready
hint: deployer logs --release v7
"""
LATER_HALT = """\
HALTED at slot 2 of 2. Every slot was put back; v6 serves.

  last output of slot 2 (pid 9011):
  │ Segmentation fault

error: v7 was killed by SIGSEGV
hint: deployer logs --release v7 --slot 2
"""
ABORTED = """\
ABORTED at the canary. Nothing was replaced; v6 serves.
error: aborted by bob
"""
SOURCE_FAILED = """\
FAILED before any worker was started; v6 serves.
error: there is no ref "mian"
cause: https://h/shop.git has main
hint: deployer deploy --ref main
"""


@pytest.fixture
def manager(manager: ScriptedManager) -> ScriptedManager:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    return manager


def test_success_prints_progress_on_stderr_and_the_result_on_stdout(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    result = shop.run("deploy")

    assert (result.code, result.out, result.err) == (0, SUCCESS, SUCCESS_PROGRESS)
    assert manager.bodies("POST /v1/deploy") == [msgspec.to_builtins(DeployRequest(who="ana"))]


@pytest.mark.parametrize(
    ("story", "code", "text"),
    [
        (stories.canary_halt, 3, CANARY_HALT),
        (stories.later_halt, 4, LATER_HALT),
        (stories.aborted, 3, ABORTED),
        (stories.source_failed, 6, SOURCE_FAILED),
    ],
)
def test_a_failure_says_what_failed_what_serves_and_what_to_type(
    manager: ScriptedManager, shop: Shop, story: Callable[[], list[dict[str, Any]]], code: int, text: str
) -> None:
    manager.events = story()

    result = shop.run("deploy", "-q")

    assert (result.code, result.out, result.err) == (code, "", text)


def test_a_first_release_that_fails_says_that_nothing_serves(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.canary_halt()
    manager.events[0]["previous"] = None
    manager.events[-1]["serving"] = None

    result = shop.run("deploy", "-q")

    assert result.code == 3
    assert result.err.startswith("HALTED at slot 1 of 2. Nothing was replaced. Nothing serves yet.\n")


def test_live_with_warnings_prints_both_the_success_and_the_problem(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()
    problem = {"what": "old releases were not removed", "cause": "v1: permission denied", "hint": "ls -l .deployer"}
    manager.events[-1] |= {"exit_code": 9, "problem": problem}

    result = shop.run("deploy", "-q")

    assert (result.code, result.out) == (9, "v7\n")
    assert result.err == ("error: old releases were not removed\ncause: v1: permission denied\nhint: ls -l .deployer\n")


@pytest.mark.parametrize(
    ("dead", "serves"), [(True, "v6 serves on every slot"), (False, "The slots run a mix of releases")]
)
def test_held_asks_for_a_person(manager: ScriptedManager, shop: Shop, dead: bool, serves: str) -> None:
    """Its canary has ended; or it runs on, to be looked at."""
    manager.events = stories.canary_halt()
    manager.events[-1] |= {"outcome": "held", "exit_code": 5}
    manager.events = [event for event in manager.events if dead or event["event"] != "worker.exited"]

    result = shop.run("deploy", "-q")

    assert result.code == 5
    assert result.err.startswith(f"HELD at slot 1 of 2. {serves}: a person is needed.\n")


def test_what_is_live_already_is_no_error(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.unchanged()

    result = shop.run("deploy")

    assert result.code == 0
    assert result.out == "shop v6 is live already: nothing to do.  (--force renews the workers anyway)\n"


def test_quiet_success_prints_the_release_alone(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    result = shop.run("deploy", "--quiet")

    assert (result.code, result.out, result.err) == (0, "v7\n", "")


def test_what_was_judged_of_the_canary_is_told(manager: ScriptedManager, shop: Shop) -> None:
    text = "answered 0 of 80 requests with 5xx, its peers 1 of 310"
    manager.events = stories.judged("good", text)
    result = shop.run("deploy")
    assert "soak: goes on for 5.0s: too few requests to judge: 4 of 20\n" in result.err
    assert f"canary, by numbers: good: worker 1 of v7 {text}\n" in result.err
    assert result.out == SUCCESS


def test_a_canary_that_was_not_judged_is_said_in_the_end(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.judged("inconclusive", "too few requests to judge: 4 of 20")
    result = shop.run("deploy")
    assert "canary, by numbers: inconclusive: too few requests to judge: 4 of 20\n" in result.err
    first, *rest = SUCCESS.splitlines(keepends=True)
    said = "Its canary was not judged by numbers: too few requests to judge: 4 of 20.\n"
    assert result.out == "".join([first, said, *rest])


@pytest.mark.parametrize("story", [stories.promoted, stories.later_halt])
def test_json_is_the_events_one_a_line_with_the_end_last(
    manager: ScriptedManager, shop: Shop, story: Callable[[], list[dict[str, Any]]]
) -> None:
    manager.events = story()

    result = shop.run("deploy", "--json")

    assert result.lines == manager.events
    assert result.lines[-1]["event"] == "rollout.finished"
    assert result.code == result.lines[-1]["exit_code"]


def test_busy_names_who_and_since_when(manager: ScriptedManager, shop: Shop) -> None:
    problem = {
        "what": "another rollout is running: deploy of v8 by bob, for 42s",
        "cause": "one at a time",
        "hint": "deployer follow 11",
        "exit": 75,
        "reason": "busy",
    }
    manager.answers["POST /v1/deploy"] = 409, {"error": problem}

    result = shop.run("deploy")
    as_json = shop.run("deploy", "--json")

    assert (result.code, result.out) == (75, "")
    assert result.err == (
        "error: another rollout is running: deploy of v8 by bob, for 42s\n"
        "cause: one at a time\n"
        "hint: deployer follow 11\n"
    )
    assert as_json.code == 75
    assert json.loads(as_json.out)["error"].items() >= problem.items()


def test_without_a_supervisor_it_says_how_to_start_one(shop: Shop) -> None:
    result = shop.run("deploy")

    assert result.code == 69
    assert result.err == (
        f"error: no supervisor runs for {shop.directory}/.deployer\n"
        f"cause: nothing listens on {shop.directory}/.deployer/run/control.sock\n"
        "hint: deployer up\n"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_viewer_says_that_the_rollout_goes_on(
    manager: ScriptedManager, shop: Shop, number: int, code: int
) -> None:
    manager.events = stories.promoted()[:8]

    with shop.start("deploy") as process:
        manager.wait_streamed(8)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)

    assert (process.returncode, out) == (code, "")
    assert err.endswith("the rollout goes on: `deployer follow`, stop it with `deployer deploy --abort`\n")
    assert "Traceback" not in err
    assert [name for name, _, _ in manager.requests] == ["POST /v1/deploy", "GET /v1/events"]


def test_a_manager_killed_in_the_middle_loses_no_event_and_tells_none_twice(
    manager: ScriptedManager, shop: Shop
) -> None:
    manager.events, manager.cut_after = stories.promoted(), [7, 15]

    result = shop.run("deploy", "--json")
    manager.cut_after = [7]
    plain = shop.run("deploy")

    assert (result.code, plain.code) == (0, 0)
    assert result.lines == manager.events
    assert [query["after"] for query in manager.queries("GET /v1/events")] == ["0", "6", "14", "0", "6"]
    lost = "connection to the supervisor lost; the rollout is safe in its journal, waiting ...\nconnected again\n"
    assert plain.err.replace(lost, "") == SUCCESS_PROGRESS
    assert lost in plain.err


def test_timeout_ends_the_viewer_and_not_the_rollout(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()[:8]

    result = shop.run("deploy", "--timeout", "1500ms", "-q")

    assert (result.code, result.out) == (8, "")
    assert result.err == (
        "error: the rollout is not finished after 1.5s\n"
        "cause: --timeout passed; the rollout goes on\n"
        "hint: deployer follow\n"
    )


def test_a_timeout_that_is_none_is_refused_before_anything_starts(manager: ScriptedManager, shop: Shop) -> None:
    result = shop.run("deploy", "--timeout", "soon")

    assert result.code == 2
    assert result.err.startswith("error: --timeout: 'soon' is not a duration")
    assert manager.requests == []


def test_detach_starts_and_leaves(manager: ScriptedManager, shop: Shop) -> None:
    result = shop.run("deploy", "--detach")

    assert (result.code, result.out, result.err) == (0, "Rollout 12 started. Watch it: deployer follow 12\n", "")
    assert [name for name, _, _ in manager.requests] == ["POST /v1/deploy"]


def test_abort_follows_until_all_is_put_back_and_is_content(manager: ScriptedManager, shop: Shop) -> None:
    story = stories.aborted()
    manager.answers["GET /v1/status"] = 200, status(rollout=rollout_info(phase="canary"))
    manager.events = story[:6]

    def abort(query: dict[str, str], body: Any) -> tuple[int, Any]:
        manager.events = story
        return 202, rollout_info(phase="reverting")

    manager.answers["POST /v1/abort"] = abort

    result = shop.run("deploy", "--abort")

    assert (result.code, result.out) == (0, "Aborted: v6 serves.\n")
    assert result.err.splitlines()[0] == "22:13:20.700 failed: aborted by bob"
    assert manager.bodies("POST /v1/abort") == [msgspec.to_builtins(AbortRequest(who="ana"))]


def test_abort_of_a_held_rollout_waits_for_its_second_end(manager: ScriptedManager, shop: Shop) -> None:
    held = stories.later_halt()
    held[-1] |= {"outcome": "held", "exit_code": 5}
    story = [*held, {**stories.later_halt()[-1], "seq": 100, "reason": "aborted"}]
    manager.answers["GET /v1/status"] = 200, status(rollout=rollout_info(phase="held", outcome="held"))
    manager.events = held

    def abort(query: dict[str, str], body: Any) -> tuple[int, Any]:
        manager.events = story
        return 202, rollout_info(phase="reverting")

    manager.answers["POST /v1/abort"] = abort

    result = shop.run("deploy", "--abort")

    assert (result.code, result.out) == (0, "Aborted: v6 serves.\n")


def test_an_abort_that_comes_too_late_says_so(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status(rollout=rollout_info(phase="promoting"))
    manager.answers["POST /v1/abort"] = 202, rollout_info(phase="promoting")
    manager.events = stories.promoted()[-1:]

    def abort(query: dict[str, str], body: Any) -> tuple[int, Any]:
        manager.events = [{**stories.promoted()[-1], "seq": 50}]
        return 202, rollout_info(phase="promoting")

    manager.answers["POST /v1/abort"] = abort

    result = shop.run("deploy", "--abort", "-q")

    assert result.code == 9
    assert "error: too late to abort: v7 was promoted already" in result.err


def test_abort_with_nothing_to_abort_is_the_managers_refusal(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status()
    problem = {"what": "no rollout is running", "hint": "deployer status", "exit": 2, "reason": "usage"}
    manager.answers["POST /v1/abort"] = 409, {"error": problem}

    result = shop.run("deploy", "--abort")

    assert (result.code, result.err) == (2, "error: no rollout is running\nhint: deployer status\n")


def test_the_source_given_is_sent_as_an_absolute_path(manager: ScriptedManager, shop: Shop) -> None:
    (shop.directory / "src").mkdir()

    shop.run("deploy", "src", "--detach", "--force", "-m", "try it")

    [body] = manager.bodies("POST /v1/deploy")
    path = str(shop.directory / "src")
    assert body == msgspec.to_builtins(DeployRequest(who="ana", path=path, force=True, message="try it"))


def test_waiting_superseding_and_env_only_are_sent_and_only_one_of_the_first_two(
    manager: ScriptedManager, shop: Shop
) -> None:
    for words, sent in (
        (["--queue"], DeployRequest(who="ana", queue=True)),
        (["--supersede"], DeployRequest(who="ana", supersede=True)),
        (["--env-only"], DeployRequest(who="ana", env_only=True)),
    ):
        assert shop.run("deploy", "--detach", *words).code == 0
        assert manager.bodies("POST /v1/deploy")[-1] == msgspec.to_builtins(sent)
    for words in (["--queue", "--supersede"], ["--env-only", "."], ["--abort", "--queue"], ["--abort", "."]):
        assert shop.run("deploy", *words).code == 2
