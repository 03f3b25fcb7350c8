"""Rollouts side by side: what visitors lose, how long it takes, what they wait, and what a broken release does.

python -m tests.bench.rollout [--runs N] [--only TEXT]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import bare
from tests.bench.peers import SkippedError
from tests.bench.systems import BOOT_S, BROKEN, GOOD, SOAK_S, WORKERS, Deployer, Peer, System, everything
from tests.bench.table import end_with, machine, median, met, say, show
from tests.load import LoadProcess, LoadReport, Loss

LOAD: dict[str, float] = {"keepalive": 8, "fresh": 4, "slow": 4, "think_s": 0.03}
KINDS = ("keepalive", "fresh", "slow")
BEFORE_S = 4.0
OLD_GONE_LIMIT_S = 40.0
LAST_MET_S = 5.0  # how long the last new worker may take to be met by a visitor
BROKEN_S = 5.0
PROBES = 20
PROBE_LIMIT_S = 1.0
BOOTS = 5
BUSY_BOOTS = 3
MARGIN_S = 0.5
LABEL = "bench-{}"
UNDELIMITED = "neither Content-Length"  # how tests.load tells of it


@dataclass
class Rollout:
    """One good release, as visitors and the command saw it."""

    seconds: float | None  # to the first answer of the last new worker; None when not all were met
    command_s: float
    old_gone_s: float | None
    p99_ratio: float
    contention: float  # share of the time before it in which some process waited for a CPU
    boots_s: float = 0.0  # of ours: spawn to ready, all workers one after the other, as the events say
    phases: dict[str, float] = field(default_factory=dict)  # of ours: seconds of each, by the events


@dataclass
class Result:
    system: System
    skipped: str = ""
    could_not_run: bool = False
    boots: list[float] = field(default_factory=list)
    busy_boots: list[float] = field(default_factory=list)  # while the load ran, before each rollout
    rollouts: list[Rollout] = field(default_factory=list)
    requests: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    broken_lost: Counter[str] = field(default_factory=Counter)
    broken_errors: int = 0
    broken_serves: str = ""
    broken_said: str = ""
    losses: list[Loss] = field(default_factory=list)


def bound_s(boots: list[float]) -> float:
    return median(boots) * (WORKERS + 1) + SOAK_S + MARGIN_S


def measure(system: System, runs: int) -> Result:
    result = Result(system)
    try:
        if isinstance(system, Deployer):
            result.boots = boots(system, BOOTS)
        with system, LoadProcess(system.address, **LOAD) as load:
            load.more(100, 30)
            for number in range(1, runs + 1):
                load.mark("between")
                if isinstance(system, Deployer):
                    result.busy_boots += boots(system, BUSY_BOOTS)
                result.rollouts.append(good(system, load, number))
            broken(system, load, result)
            count(result, load.stop())
    except SkippedError as why:
        result.skipped = f"SKIPPED: {why}"
    except Exception as error:  # the other systems are measured all the same
        result.skipped, result.could_not_run = f"COULD NOT RUN: {error}", True
        say(f"{system.name}: {result.skipped}")
    return result


def boots(system: Deployer, number: int) -> list[float]:
    """Spawn to first answer of the same worker without deployer, one at a time."""
    with bare.scratch() as directory:
        app = system.release(Path(directory) / "release")
        bare.boot_seconds(app)  # caches are warm afterwards, as for later releases
        return [bare.boot_seconds(app) for _ in range(number)]


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
    firsts = first_answers(load, known, began)
    load.mark(f"after {number}")
    seconds = firsts[WORKERS - 1] if len(firsts) >= WORKERS else None
    check_serves(system, number)
    report = load.report()
    steps = report.by_step
    ratio = steps[f"rollout {number}"].p99_s / steps[f"before {number}"].p99_s
    say(f"{system.name}: rollout {number}: {seconds and round(seconds, 2)} s, {report.lost} lost so far")
    rollout = Rollout(seconds, command_s, gone, ratio, contention)
    if isinstance(system, Deployer):
        rollout.phases = phase_seconds(system.events, command_s)
        rollout.boots_s = sum(e["seconds"] for e in system.events if e["event"] == "worker.ready")
    return rollout


def cpu_waited_s() -> float:
    """Seconds, since the machine started, in which some process was ready to run and had no CPU (PSI)."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().partition("total=")[2].split()[0]) / 1e6
    except OSError:
        return float("nan")  # not in this kernel


def first_answers(load: LoadProcess, known: set[str], began: float) -> list[float]:
    """When each new worker first answered a visitor, in order."""
    limit = time.monotonic() + LAST_MET_S
    while True:
        seen = load.report().releases_seen
        firsts = sorted(one.first - began for one in seen if one.pid not in known and one.first > began)
        if len(firsts) >= WORKERS or time.monotonic() > limit:
            return firsts
        time.sleep(0.2)


def check_serves(system: System, number: int) -> None:
    """The new release must be what is served, or the figures mean nothing."""
    label = LABEL.format(number)
    answers = [bare.answer(system.address, 10.0)[1] for _ in range(2 * WORKERS)]
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


def broken(system: System, load: LoadProcess, result: Result) -> None:
    """A release that raises at import, and what is there 5 s after it was asked for."""
    system.write(BROKEN, LABEL.format("broken"))
    time.sleep(BEFORE_S)  # uWSGI ignores a reload that is asked for while it finishes another
    load.mark("broken")
    clock = time.monotonic()
    result.broken_said = f"{system.reload() or 'nothing'}, after {time.monotonic() - clock:.1f} s"
    time.sleep(max(0.0, BROKEN_S - (time.monotonic() - clock)))
    result.broken_serves = what_serves(system)
    say(f"{system.name}: broken release: after {BROKEN_S:g} s: {result.broken_serves}")


def what_serves(system: System) -> str:
    found = Counter(probe(system.address) for _ in range(PROBES))
    return ", ".join(f"{text} {number}/{PROBES}" for text, number in found.most_common())


def probe(address: str) -> str:
    try:
        status, text = bare.answer(address, PROBE_LIMIT_S)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return "refused" if isinstance(error, ConnectionRefusedError) else "reset"
    if status != 200:
        return f"error {status}"
    return "old release" if LABEL.format("broken") not in text else "broken release"


def count(result: Result, report: LoadReport) -> None:
    result.requests = report.requests
    result.broken_errors = report.by_step["broken"].errors
    for loss in report.losses:
        if loss.step == "broken" and loss.what.startswith(UNDELIMITED):
            result.broken_errors += 1  # uWSGI's own 500 ends with its connection: an answer all the same
            continue
        (result.broken_lost if loss.step == "broken" else result.lost)[loss.kind] += 1
    result.losses = list(report.losses)


# -- the tables ---------------------------------------------------------------------------------------------


def tables(results: list[Result], number: int) -> None:
    head: tuple[str, ...] = (
        "system",
        "app",
        "lost: keep-alive",
        "fresh",
        "slow",
        "rollout s",
        "old gone s",
        "p99 during/before",
    )
    title = f"Rollouts of {WORKERS} workers that need {BOOT_S} s to boot ({number} each, medians; lost: sum)"
    show(title, head, [good_row(r) for r in results], [f"machine: {machine()}", f"load: {LOAD}", *settings(results)])
    ours = [r for r in results if r.system.ours and not r.skipped]
    head = ("system", "boot s", "bound s", "deploy command s", "met", "worst s", "boots as they were s", "the rest s")
    head = (*head, "CPU wanting")
    title = f"Ours against its bound: boot x {WORKERS + 1} + soak {SOAK_S:g} + {MARGIN_S}"
    notes = [
        "boot: spawn to first answer of one worker without deployer, before the load; busy: under it, between rollouts",
        f"boots as they were: spawn to ready of all {WORKERS + 1}; the rest: the command without them and the soak",
        "CPU wanting: share of the seconds before a rollout in which some process waited for a CPU. Much above 10 %:",
        "the machine has other work, and that is what is measured",
    ]
    show(title, head, [bound_row(r) for r in ours], notes)
    phases = list(dict.fromkeys(name for r in ours for rollout in r.rollouts for name in rollout.phases))
    show("Where the seconds of ours go (medians)", ("system", *phases), [phase_row(r, phases) for r in ours])
    head = (
        "system",
        "lost: keep-alive",
        "fresh",
        "slow",
        "5xx answers",
        f"{BROKEN_S:g} s later, or at its end",
        "command said",
    )
    show("A release that raises at import", head, [broken_row(r) for r in results])
    print_losses(ours)


def lost_cells(result: Result, lost: Counter[str]) -> list[object]:
    return [lost[kind] for kind in KINDS]


def good_row(result: Result) -> list[object]:
    system = result.system
    if result.skipped:
        return [system.name, system.app, result.skipped, *[""] * 5]
    seconds = [r.seconds for r in result.rollouts if r.seconds is not None]
    gone = [r.old_gone_s for r in result.rollouts if r.old_gone_s is not None]
    ratio = median([r.p99_ratio for r in result.rollouts])
    figures = [f"{median(seconds):.2f}", f"{median(gone):.2f}", f"{ratio:.1f}"]
    return [system.name, system.app, *lost_cells(result, result.lost), *figures]


def bound_row(result: Result) -> list[object]:
    rollouts = result.rollouts
    typical, quiet, busy = median([r.command_s for r in rollouts]), bound_s(result.boots), bound_s(result.busy_boots)
    return [
        result.system.name,
        f"{median(result.boots):.2f} (busy {median(result.busy_boots):.2f})",
        f"{quiet:.2f} (busy {busy:.2f})",
        f"{typical:.2f}",
        met(typical <= quiet) if typical <= quiet or typical > busy else "MISSED (busy met)",
        f"{max(r.command_s for r in rollouts):.2f}",
        f"{median([r.boots_s for r in rollouts]):.2f}",
        f"{median([r.command_s - r.boots_s for r in rollouts]) - SOAK_S:.2f}",
        f"{median([r.contention for r in rollouts]) * 100:.0f} %",
    ]


def phase_row(result: Result, phases: list[str]) -> list[object]:
    values = [median([r.phases.get(name, 0.0) for r in result.rollouts]) for name in phases]
    return [result.system.name, *(f"{value:.3f}" for value in values)]


def broken_row(result: Result) -> list[object]:
    if result.skipped:
        return [result.system.name, result.skipped, *[""] * 5]
    cells = lost_cells(result, result.broken_lost)
    return [result.system.name, *cells, result.broken_errors, result.broken_serves, result.broken_said]


def settings(results: list[Result]) -> list[str]:
    told = [
        f"{r.system.name} {r.system.peer.version}: {r.system.settings}"
        for r in results
        if isinstance(r.system, Peer) and not r.skipped
    ]
    ours = next((f"deployer: {r.system.settings}" for r in results if r.system.ours), None)
    return [*([ours] if ours else []), *told]


def print_losses(ours: list[Result]) -> None:
    for result in ours:
        for loss in result.losses[:10]:
            print(f"  {result.system.name}: {loss}")


def failed(results: list[Result]) -> bool:
    return any(r.could_not_run for r in results) or any(
        r.system.must_lose_none and (r.lost.total() or r.broken_lost.total()) for r in results
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rollout", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="good rollouts of each system (3)")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    words = parser.parse_args()
    results = [measure(system, words.runs) for system in everything() if words.only in system.name]
    tables(results, words.runs)
    return 1 if failed(results) else 0


if __name__ == "__main__":
    end_with(main)
