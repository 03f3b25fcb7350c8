"""`deployer up` against a daemon's side that is made up: what is launched, awaited, deployed and said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rollout_stories as stories
from cli_shop import ENV, Result, Shop
from scripted_manager import ScriptedManager, rollout_info, status

from deployer.paths import Layout

DAEMON = """\
import json, os, sys, types
daemon = types.ModuleType("deployer.launch")
def launch(loaded):
    open(loaded.root / "launched", "a").write(loaded.config.name + "\\n")
    return {token!r}
def foreground(loaded, deploy):
    print("foreground", loaded.config.name, deploy)
    sys.stdout.flush()
    os._exit(0)
def keeper_runs(layout):
    return not (layout.root / "gone").exists()
daemon.launch, daemon.foreground, daemon.keeper_runs = launch, foreground, keeper_runs
sys.modules["deployer.launch"] = daemon
from deployer.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
Up = Callable[..., Result]


@pytest.fixture
def up(shop: Shop) -> Up:
    shop.layout.run.mkdir(parents=True, exist_ok=True)

    def run(*words: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-c", DAEMON.format(token="t1"), "up", *words],
            cwd=shop.directory,
            env=ENV,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def write_state(layout: Layout, **fields: Any) -> Path:
    layout.manager_state.write_text(json.dumps({"pid": 10, "state": "ready", "problem": None, "token": "t1", **fields}))
    return layout.manager_state


def after_nothing(*answers: dict[str, Any]) -> Callable[[dict[str, str], Any], tuple[int, Any]]:
    """Status answers of a manager that is not there yet when `up` looks first."""
    left = [(503, {"error": {"what": "starting", "exit": 69}}), *((200, answer) for answer in answers)]
    return lambda query, body: left.pop(0) if len(left) > 1 else left[0]


def test_a_cluster_with_a_release_is_only_started(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    write_state(shop.layout)
    manager.answers["GET /v1/status"] = after_nothing(status())

    result = up()

    assert (result.code, result.out) == (0, "shop is up, v7 is live (manager pid 10)\n")
    assert (shop.layout.root / "launched").read_text() == "shop\n"
    assert manager.bodies("POST /v1/deploy") == []


def test_what_runs_already_is_left_alone(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    write_state(shop.layout)
    manager.answers["GET /v1/status"] = 200, status()

    result = up()

    assert (result.code, result.out) == (0, "shop is already up, v7 is live (manager pid 10)\n")


def test_without_a_release_the_source_is_deployed(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    write_state(shop.layout)
    manager.answers["GET /v1/status"] = after_nothing(status(release=None, workers=[]))
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    manager.events = stories.canary_halt()

    result = up()

    assert result.code == 3
    assert result.err.startswith("shop is up, manager pid 10\n")
    assert "HALTED at slot 1 of 2" in result.err
    [body] = manager.bodies("POST /v1/deploy")
    assert body["path"] is None


def test_no_deploy_only_starts(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    write_state(shop.layout)
    manager.answers["GET /v1/status"] = after_nothing(status(release=None, workers=[]))

    result = up("--no-deploy")

    assert (result.code, result.out) == (0, "shop is up, nothing is deployed (manager pid 10)\n")


def test_two_at_once_watch_the_one_deploy(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    write_state(shop.layout)
    empty = status(release=None, workers=[])
    manager.answers["GET /v1/status"] = after_nothing(empty, {**empty, "rollout": rollout_info()})
    manager.answers["POST /v1/deploy"] = 409, {"error": {"what": "busy", "exit": 75, "reason": "busy"}}
    manager.events = stories.promoted()

    result = up()

    assert result.code == 0
    assert result.out.startswith("Deployed shop v7 (41d09e7) in 3.4s.\n")


def test_a_manager_that_cannot_start_says_why_with_its_own_code(shop: Shop, up: Up) -> None:
    problem = {"what": "tcp://127.0.0.1:8000 is in use by pid 4711 (nginx)", "hint": "deployer check", "exit": 78}
    write_state(shop.layout, state="failed", problem=problem)

    result = up()

    assert (result.code, result.out) == (78, "")
    assert result.err == ("error: tcp://127.0.0.1:8000 is in use by pid 4711 (nginx)\nhint: deployer check\n")


def test_what_an_earlier_start_left_behind_does_not_count(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    """The old file says "failed"; the right one comes while `up` waits."""
    write_state(shop.layout, state="failed", problem={"what": "old"}, token="t0")
    manager.answers["GET /v1/status"] = 200, status()
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON.format(token="t1"), "up", "-q"],
        cwd=shop.directory,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        launched = shop.layout.root / "launched"
        while not launched.exists() and process.poll() is None:
            pass
        write_state(shop.layout, state="starting")
        write_state(shop.layout)
        out, _ = process.communicate(timeout=30)

    assert (process.returncode, "old" in out) == (0, False)


def test_foreground_is_handed_over(shop: Shop, up: Up) -> None:
    assert up("--foreground").out == "foreground shop True\n"
    assert up("--foreground", "--no-deploy").out == "foreground shop False\n"


def test_a_wrong_configuration_starts_nothing(shop: Shop, up: Up) -> None:
    (shop.directory / "deployer.toml").write_text('name = "shop"\n[worker]\ncommandd = "x"\n')

    result = up()

    assert result.code == 78
    assert "deployer.toml:3" in result.err
    assert not (shop.layout.root / "launched").exists()


def test_a_manager_that_never_gets_ready_is_given_up(shop: Shop) -> None:
    import_up = (
        "import sys, types\n"
        "m = types.ModuleType('deployer.launch'); m.launch = m.foreground = None; sys.modules['deployer.launch'] = m\n"
        "m.keeper_runs = lambda layout: True\n"
        "from pathlib import Path\n"
        "from deployer.cli.up import wait_until_ready\n"
        "from deployer.client.client import Client\n"
        "from deployer.errors import UnavailableError\n"
        "from deployer.paths import Layout\n"
        "try:\n    wait_until_ready(Client(Layout(Path.cwd() / '.deployer')), lambda: 't1', limit=0.2)\n"
        "except UnavailableError as error:\n    print(error.what)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", import_up], cwd=shop.directory, env=ENV, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "the supervisor was started and is not ready after 0s\n", done.stderr


def test_a_keeper_that_was_ending_is_started_again(manager: ScriptedManager, shop: Shop, up: Up) -> None:
    """The keeper that `launch` found is gone and its manager says nothing: it is started again, but not for ever."""
    (shop.layout.root / "gone").touch()
    manager.answers["GET /v1/status"] = 200, status()

    result = up()

    assert result.code == 69
    assert "error: the supervisor was started and ended without a word" in result.err
    assert (shop.layout.root / "launched").read_text() == "shop\n" * 3
