"""What deployer itself costs, and how fast it notices: memory, idle CPU, from a death to what follows.

python -m tests.bench.footprint [--seconds S] [--deploys N]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench import peers
from tests.bench.rivals import Pm2
from tests.bench.systems import BOOT_S, GOOD, WORKERS, BenchCluster
from tests.bench.table import end_with, machine, median, met, say, show
from tests.cluster import wait_until

KEEPER_MAX_MB = 12.0
MANAGER_MAX_MB = 50.0
IDLE_MAX_PERCENT = 0.2
RESPAWN_MAX_S = 0.050
STATUS_MAX_S = 1.0
SETTLE_S = 6.0  # after the start: one health check has been made, and what a start leaves behind is done
YOUNG_S = 10.5  # a worker that dies older than this is replaced at once
MANAGER_KILLS = 5
ANSWER_LIMIT_S = 20.0
MB = 1e6


@dataclass
class Found:
    """All figures; times are one value a try."""

    keeper_mb: float = 0.0
    manager_mb: float = 0.0
    god_mb: float | None = None
    god_why: str = ""
    idle: dict[str, float] = field(default_factory=dict)  # percent of a core
    respawns: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    after_mb: float = 0.0
    first_mb: float = 0.0
    pm2_idle: float | None = None


def rss_mb(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / MB


def cpu_ns(pids: Iterable[int]) -> int:
    """Time on a CPU, to the nanosecond (schedstat is kept for each thread)."""
    return sum(
        int(path.read_text().split()[0]) for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def idle_percent(pids: list[int], seconds: float) -> float:
    before, began = cpu_ns(pids), time.monotonic()
    time.sleep(seconds)
    return (cpu_ns(pids) - before) / 1e9 / (time.monotonic() - began) * 100


def start(health: bool) -> BenchCluster:
    """4 small workers; the default interval of the health check, or no check at all."""
    cluster = BenchCluster(server="mini", count=WORKERS, interval="5s", soak="200ms")
    cluster.write(GOOD, "r0")
    if not health:
        path = cluster.directory / "deployer.toml"
        path.write_text(path.read_text().replace('http = "/healthz"\n', ""))
    cluster.run("up", code=0)
    return cluster


def idle(found: Found, seconds: float) -> None:
    for health in (True, False):
        with start(health) as cluster:
            pids = [cluster.keeper_pid(), cluster.manager_pid()]
            time.sleep(SETTLE_S)
            if health:
                found.keeper_mb, found.manager_mb = (rss_mb(pid) for pid in pids)
            name = "health check every 5 s" if health else "no health check"
            found.idle[name] = idle_percent(pids, seconds)
            say(f"idle, {name}: {found.idle[name]:.3f} %")


def deaths(found: Found) -> None:
    """kill -9 of workers, then of the manager, again and again."""
    with start(True) as cluster:
        for _ in range(2):
            time.sleep(YOUNG_S)
            found.respawns += [respawn_s(cluster, worker["slot"]) for worker in cluster.workers()]
        say(f"{len(found.respawns)} workers killed")
        for _ in range(MANAGER_KILLS):
            found.answers.append(answer_s(cluster))
            time.sleep(1.0)


def respawn_s(cluster: BenchCluster, slot: int) -> float:
    """From kill -9 to the event of the new worker's start."""
    pid = next(worker["pid"] for worker in cluster.workers() if worker["slot"] == slot)
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    started: float = wait_until(lambda: started_at(cluster, slot, killed), f"slot {slot} has a new worker")
    wait_until(lambda: len(cluster.workers()) == WORKERS, "all workers are back")
    return started - killed


def started_at(cluster: BenchCluster, slot: int, since: float) -> float | None:
    with sqlite3.connect(f"file:{cluster.root}/state.db?mode=ro", uri=True) as database:
        rows = database.execute("SELECT ts, data FROM events WHERE event = 'worker.starting' AND ts >= ?", (since,))
        return next((ts for ts, data in rows if json.loads(data)["slot"] == slot), None)


def answer_s(cluster: BenchCluster) -> float:
    """From kill -9 of the manager to the end of a `deployer status` that was answered, its own start included."""
    pid = cluster.manager_pid()
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while cluster.run("status", "--json").code:
        if time.monotonic() - began > ANSWER_LIMIT_S:
            raise RuntimeError("no status after the manager was killed")
    seconds = time.monotonic() - began
    wait_until(lambda: cluster.manager_pid() != pid, "the new manager is in its file")
    return seconds


def many_deploys(found: Found, number: int) -> None:
    with start(True) as cluster:
        found.first_mb = rss_mb(cluster.manager_pid())
        for turn in range(1, number + 1):
            cluster.write(GOOD, f"r{turn}")
            cluster.run("deploy", "--json", code=0)
        found.after_mb = rss_mb(cluster.manager_pid())


def pm2(found: Found, seconds: float) -> None:
    """PM2's daemon with the same number of workers."""
    try:
        with Pm2() as system:
            time.sleep(SETTLE_S + BOOT_S)
            found.god_mb = rss_mb(system.god())
            found.pm2_idle = idle_percent([system.god()], seconds)
    except peers.SkippedError as why:
        found.god_why = f"SKIPPED: {why}"


def rows(found: Found, deploys: int) -> list[list[object]]:
    kept: list[list[object]] = [
        ["keeper RSS", f"{found.keeper_mb:.1f} MB", limit(found.keeper_mb, KEEPER_MAX_MB, "MB")],
        [
            f"manager RSS, {WORKERS} workers",
            f"{found.manager_mb:.1f} MB",
            limit(found.manager_mb, MANAGER_MAX_MB, "MB"),
        ],
        ["PM2's God daemon RSS, the same", f"{found.god_mb:.1f} MB" if found.god_mb else found.god_why, "-"],
    ]
    kept += [
        [f"idle CPU, {name}", f"{share:.3f} % of a core", limit(share, IDLE_MAX_PERCENT, "%")]
        for name, share in found.idle.items()
    ]
    grown = f"{found.after_mb:.1f} MB ({found.after_mb - found.first_mb:+.1f})"
    return [
        *kept,
        ["idle CPU, PM2's God daemon", f"{found.pm2_idle:.3f} %" if found.pm2_idle is not None else "-", "-"],
        times("worker's kill -9 to new spawn", found.respawns, RESPAWN_MAX_S),
        times("manager's kill -9 to `status` answered", found.answers, STATUS_MAX_S),
        [f"manager RSS after {deploys} deploys", grown, limit(found.after_mb, MANAGER_MAX_MB, "MB")],
    ]


def limit(value: float, most: float, unit: str) -> str:
    return f"<= {most:g} {unit} {met(value <= most)}"


def times(name: str, seconds: list[float], most: float) -> list[object]:
    text = f"{median(seconds) * 1000:.0f} ms (most {max(seconds) * 1000:.0f}, of {len(seconds)})"
    return [name, text, limit(median(seconds) * 1000, most * 1000, "ms")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.footprint", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of idleness, some health checks long (15)")
    parser.add_argument("--deploys", type=int, default=50)
    words = parser.parse_args()
    found = Found()
    idle(found, words.seconds)
    pm2(found, words.seconds)
    deaths(found)
    many_deploys(found, words.deploys)
    show(
        "What deployer itself costs", ("what", "found", "limit"), rows(found, words.deploys), [f"machine: {machine()}"]
    )
    return 0


if __name__ == "__main__":
    end_with(main)
