"""Which records of the scoreboard /metrics tells; the rest is tested with real workers (tests/e2e/test_traffic.py)."""

from __future__ import annotations

import subprocess
import sys

from deployer.api.metrics import ENDED_KEPT_S, shown
from deployer.runtime.histogram import BUCKETS
from deployer.runtime.scoreboard import INTEGERS, REALS, Row

NOW = 10_000.0


def row(pid: int, **values: object) -> Row:
    blank = dict.fromkeys(INTEGERS, 0) | dict.fromkeys(REALS, 0.0)
    known = {"index": 0, "pid": pid, "ticks": 1, "slot": 1, "release": 7, "heartbeat": NOW, "error": "", "status": ""}
    return Row(**{**blank, "histogram": (0,) * BUCKETS, **known, **values})  # type: ignore[arg-type]


def pids(*rows: Row, alive: tuple[int, ...] = ()) -> list[int]:
    known = {(row.pid, row.ticks): row for row in rows}
    return [row.pid for row in shown(known, {(pid, 1) for pid in alive}, NOW)]


def test_who_lives_and_who_ended_lately_is_told() -> None:
    long_ago = NOW - ENDED_KEPT_S - 1
    assert pids(row(1, heartbeat=long_ago), row(2, heartbeat=long_ago), row(3), alive=(1,)) == [1, 3]


def test_a_record_of_before_the_machine_started_anew_is_nobodys() -> None:
    assert pids(row(1, heartbeat=NOW + 500), row(2)) == [2]


def test_the_preflight_worker_has_no_visitors() -> None:
    assert pids(row(1, slot=0), row(2), alive=(1, 2)) == [2]


def test_labels_are_told_once_when_a_pid_is_given_again() -> None:
    old, new = row(1, started=1.0, status_2xx=5), row(1, ticks=2, started=2.0)
    found = shown({(1, 2): new, (1, 1): old}, set(), NOW)
    assert [entry.ticks for entry in found] == [2]


def test_nothing_of_it_is_loaded_before_somebody_asks() -> None:
    code = "import sys, deployer.daemon; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
