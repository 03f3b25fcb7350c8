"""One rollout of a system under load: how long it takes, what visitors wait, and when the old workers are gone."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import bare
from tests.bench.systems import GOOD, Deployer, System
from tests.bench.table import say
from tests.load import LoadProcess

BEFORE_S = 2.0
OLD_GONE_LIMIT_S = 40.0
LAST_MET_S = 5.0  # how long the last new worker may take to be met by a visitor, once there is nothing else to wait for
LABEL = "bench-{}"


@dataclass
class Rollout:
    """One good release, as visitors and the command saw it."""

    seconds: float | None  # to the first answer of the last new worker; None when not all were met
    command_s: float
    old_gone_s: float | None
    p99_before_s: float
    p99_during_s: float
    contention: float  # share of the time before it in which some process waited for a CPU
    own_s: float = 0.0  # of ours, by the events: the rollout's own seconds
    boots_s: float = 0.0  # ... spawn to ready, all workers one after the other
    phases: dict[str, float] = field(default_factory=dict)  # ... seconds of each


def good(system: System, load: LoadProcess, number: int) -> Rollout:
    system.write(GOOD, LABEL.format(number))
    load.mark(f"before {number}")
    waited = cpu_waited_s()
    time.sleep(BEFORE_S)
    contention = (cpu_waited_s() - waited) / BEFORE_S
    known = {seen.pid for seen in load.report().releases_seen}
    load.mark(f"rollout {number}")
    began, clock = time.time(), time.monotonic()
    system.reload()
    command_s = time.monotonic() - clock
    gone = old_gone(known, clock)
    firsts = first_answers(load, known, began, system.plan.workers)
    load.mark(f"after {number}")
    seconds = firsts[system.plan.workers - 1] if len(firsts) >= system.plan.workers else None
    check_serves(system, number)
    report = load.report()
    steps = report.by_step
    p99s = (steps[f"{step} {number}"].p99_s for step in ("before", "rollout"))
    say(f"{system.name}: rollout {number}: {seconds and round(seconds, 2)} s, {report.lost} lost so far")
    rollout = Rollout(seconds, command_s, gone, *p99s, contention)
    if isinstance(system, Deployer):
        rollout.phases = phase_seconds(system.events, command_s)
        rollout.own_s = system.events[-1]["seconds"]
        # A preflight's worker that goes on as the canary is told of twice.
        ready = [e for e in system.events if e["event"] == "worker.ready"]
        rollout.boots_s = sum({e["pid"]: e["seconds"] for e in reversed(ready)}.values())
    return rollout


def cpu_waited_s() -> float:
    """Seconds, since the machine started, in which some process was ready to run and had no CPU (PSI)."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().partition("total=")[2].split()[0]) / 1e6
    except OSError:
        return float("nan")  # not in this kernel


def first_answers(load: LoadProcess, known: set[str], began: float, workers: int) -> list[float]:
    """When each new worker first answered a visitor, in order."""
    limit = time.monotonic() + LAST_MET_S
    while True:
        seen = load.report().releases_seen
        firsts = sorted(one.first - began for one in seen if one.pid not in known and one.first > began)
        if len(firsts) >= workers or time.monotonic() > limit:
            return firsts
        time.sleep(0.2)


def check_serves(system: System, number: int) -> None:
    """The new release must be what is served, or the figures mean nothing."""
    label = LABEL.format(number)
    answers = [bare.answer(system.address, 10.0)[1] for _ in range(2 * system.plan.workers)]
    if not all(label in text for text in answers):
        raise RuntimeError(f"{system.name}: {label} is not what is served after its rollout: {answers[-1][-80:]!r}")


def phase_seconds(events: list[dict[str, Any]], command_s: float) -> dict[str, float]:
    """How long each phase took; `command` is what the command line itself needed before and after."""
    turns = [(e["ts"], e["phase"]) for e in events if e["event"] == "rollout.phase"]
    end = next(e["ts"] for e in events if e["event"] == "rollout.finished")
    ends = [ts for ts, _ in turns[1:]] + [end]
    found = {name: until - since for (since, name), until in zip(turns, ends, strict=True)}
    return {"command": command_s - sum(found.values())} | found


def old_gone(pids: Iterable[str], clock: float) -> float | None:
    """Seconds until every worker that answered before has ended; None when one never does."""
    while any(runs(pid) for pid in pids):
        if time.monotonic() - clock > OLD_GONE_LIMIT_S:
            return None
        time.sleep(0.01)
    return time.monotonic() - clock


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
