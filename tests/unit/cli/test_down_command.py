"""`deployer down`: says that all has ended when, and only when, it has."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cli_shop import Shop
from scripted_manager import ScriptedManager, status, worker

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(SLEEP) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def running(manager: ScriptedManager, processes: list[subprocess.Popen[bytes]]) -> ScriptedManager:
    worker_, manager_, keeper = (process.pid for process in processes)
    manager.answers["GET /v1/status"] = (
        200,
        status(
            workers=[worker(1, worker_), worker(2, None, state="backoff")],
            manager={"pid": manager_, "uptime_s": 1.0, "version": "0.1.0"},
            keeper={"pid": keeper},
        ),
    )

    def stop(query: dict[str, str], body: Any) -> tuple[int, Any]:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        return 202, {}

    manager.answers["POST /v1/stop"] = stop
    return manager


def test_it_waits_for_every_process_and_names_each(
    running: ScriptedManager, processes: list[subprocess.Popen[bytes]], shop: Shop
) -> None:
    result = shop.run("down")

    assert result.code == 0
    assert re.fullmatch(r"shop is down: 1 worker ended, in \d\.\ds\n", result.out)
    names = zip(("slot 1", "manager", "keeper"), processes, strict=True)
    assert sorted(result.err.splitlines()) == sorted(f"{name} pid {process.pid} ended" for name, process in names)
    assert running.bodies("POST /v1/stop") == [{"who": "ana", "now": False}]


def test_now_is_passed_on_and_json_lists_what_ended(running: ScriptedManager, shop: Shop) -> None:
    result = shop.run("down", "--now", "--json")

    assert running.bodies("POST /v1/stop") == [{"who": "ana", "now": True}]
    data = json.loads(result.out)
    assert [process["name"] for process in data["ended"]] == ["slot 1", "manager", "keeper"]
    assert data["running"] is False
    assert result.err == ""


def test_nothing_running_is_no_error(shop: Shop) -> None:
    result = shop.run("down")

    assert (result.code, result.out, result.err) == (0, "shop is not running\n", "")


def test_a_pid_file_that_names_a_stranger_is_stale(shop: Shop) -> None:
    shop.layout.run.mkdir(parents=True)
    shop.layout.keeper_pid.write_text(f"{os.getpid()} t1\n")

    assert shop.run("down").out == "shop is not running\n"


def test_workers_without_a_supervisor_are_not_hidden(shop: Shop) -> None:
    with subprocess.Popen(SLEEP, env={**os.environ, "DEPLOYER_ROOT": str(shop.layout.root)}) as orphan:
        try:
            result = shop.run("down")
        finally:
            orphan.kill()

    assert (result.code, result.out) == (69, "")
    assert result.err == (
        "error: no supervisor runs, but 1 process of the cluster still serves\n"
        f"cause: the supervisor was killed; pids {orphan.pid}\n"
        "hint: deployer up && deployer down\n"
    )
