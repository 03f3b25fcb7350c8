"""What `[worker] preload` and `[rollout] standby` are for: rollouts of an app that imports slowly, memory, rollbacks.

python -m tests.bench.preload [--runs N] [--peer-runs N] [--rollbacks N] [--part rollout|memory|rollback]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.apps import App
from tests.bench import memory, peers, visits
from tests.bench.reloads import Rollout, good
from tests.bench.rivals import Granian, Gunicorn, GunicornPreload, Peer, Pm2, Uvicorn
from tests.bench.systems import GOOD, BenchCluster, Deployer, Plan, System, by_runtime
from tests.bench.table import end_with, machine, median, met, say, show
from tests.load import LoadProcess, Loss

PLAN = Plan(workers=8, boot_s=1.0, soak_s=1.0)
EACH_S = 0.050  # for each worker, beside one boot and the soak
ROLLOUT_TARGET_S = PLAN.boot_s + PLAN.soak_s + PLAN.workers * EACH_S
PRELOAD = "preload = true"
LOAD: dict[str, float] = {"keepalive": 4, "fresh": 4, "slow": 1, "think_s": 0.03}

MEMORY_WORKERS, MEMORY_TARGET = 8, 0.50
ANSWERS = 20  # of each worker at least, before its memory is looked at
FRAME = """
import os
import numpy, pandas
FRAME = pandas.DataFrame({"key": numpy.arange(1000) % 7, "value": numpy.arange(1000.0)})

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    body = FRAME.groupby("key")["value"].mean().to_json().encode() + b"\\n"
    headers = [(b"content-length", str(len(body)).encode()), (b"x-pid", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

STANDBY = Plan(workers=4, boot_s=0.3, soak_s=0.3)
STANDBY_TARGET_S = 0.150


# -- rollouts -----------------------------------------------------------------------------------------------


@dataclass
class Result:
    system: System
    skipped: str = ""
    could_not_run: bool = False
    rollouts: list[Rollout] = field(default_factory=list)
    requests: int = 0
    losses: list[Loss] = field(default_factory=list)


def systems() -> list[System]:
    return [
        Deployer("served", "ASGI", PLAN, name="preload", worker=PRELOAD),
        Deployer("served", "ASGI", PLAN, name="one by one"),
        Uvicorn(PLAN),
        Granian(PLAN),
        Gunicorn(PLAN),
        GunicornPreload(PLAN),
        Pm2(PLAN),
    ]


def preloads(system: System) -> bool:
    return isinstance(system, Deployer) and system.worker == PRELOAD


def measure(system: System, runs: int) -> Result:
    result = Result(system)
    try:
        with system, LoadProcess(system.address, **LOAD) as load:
            load.more(100, 30)
            for number in range(1, runs + 1):
                load.mark("between")
                time.sleep(system.settle_s)
                result.rollouts.append(good(system, load, number))
            report = load.stop()
            result.requests, result.losses = report.requests, list(report.losses)
    except peers.SkippedError as why:
        result.skipped = f"SKIPPED: {why}"
    except Exception as error:  # the other systems are measured all the same
        result.skipped, result.could_not_run = f"COULD NOT RUN: {error}", True
        say(f"{system.name}: {result.skipped}")
    return result


def rollouts(runs: int, peer_runs: int) -> bool:
    """Prints the table; whether nothing was lost that must not be."""
    results = [measure(system, runs if preloads(system) else peer_runs) for system in systems()]
    head = ("system", "app", "requests", "lost", "command s", "rollout s", "worst", "all met s", "old gone s")
    head = (*head, "p99 ms: before", "during", "ratio", f"<= {ROLLOUT_TARGET_S:.1f} s")
    title = (
        f"Rollouts of {PLAN.workers} workers of an app that imports for {PLAN.boot_s:g} s, under light load (medians)"
    )
    notes = [
        "rollout: of ours its own seconds, staging and soak included; of the peers until all new workers were met",
        "all met: the last new worker has answered a visitor; old gone: and the last old one has ended. Whoever",
        "ends the old workers first is done in one boot, in which visitors wait or are lost: see p99 and lost",
        f"target: {PLAN.boot_s:g} s + soak {PLAN.soak_s:g} s + {PLAN.workers} x {EACH_S * 1000:.0f} ms",
        f"{runs} rollouts with preload, {peer_runs} of each other; load: {LOAD}",
        f"machine: {machine()}",
        *(f"{r.system.name}: {r.system.settings}" for r in results if isinstance(r.system, Peer) and not r.skipped),
    ]
    show(title, head, [rollout_row(result) for result in results], notes)
    ours = [result for result in results if result.system.ours]
    phases = list(dict.fromkeys(name for result in ours for one in result.rollouts for name in one.phases))
    rows = [phase_row(result, phases) for result in ours if result.rollouts]
    show("Where the seconds of ours go (medians)", ("system", *phases), rows)
    for loss in (loss for result in ours for loss in result.losses[:10]):
        print(f"  {loss}")
    return not any(r.could_not_run for r in results) and not any(r.losses for r in ours)


def rollout_row(result: Result) -> list[object]:
    system, found = result.system, result.rollouts
    if result.skipped:
        return [system.name, system.app, result.skipped, *[""] * 10]
    met_s = [one.seconds for one in found if one.seconds is not None]
    took = [one.own_s for one in found] if system.ours else met_s
    gone = [one.old_gone_s for one in found if one.old_gone_s is not None]
    return [
        system.name,
        system.app,
        result.requests,
        len(result.losses),
        f"{median([one.command_s for one in found]):.2f}" if system.ours else "-",
        f"{median(took):.2f}",
        f"{max(took, default=float('nan')):.2f}",
        f"{median(met_s):.2f}",
        f"{median(gone):.2f}",
        f"{median([one.p99_before_s for one in found]) * 1000:.1f}",
        f"{median([one.p99_during_s for one in found]) * 1000:.1f}",
        f"{median([one.p99_during_s / one.p99_before_s for one in found]):.1f}",
        met(median(took) <= ROLLOUT_TARGET_S) if preloads(system) else "-",
    ]


def phase_row(result: Result, phases: list[str]) -> list[object]:
    values = [median([one.phases.get(name, 0.0) for one in result.rollouts]) for name in phases]
    return [result.system.name, *(f"{value:.3f}" for value in values)]


# -- memory -------------------------------------------------------------------------------------------------


def framed(directory: Path, behaviour: str = GOOD, **_: Any) -> App:
    """An app that imports numpy and pandas, and uses them for each answer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "app.py").write_text(FRAME)
    return by_runtime(directory)


def memory_of(worker: str) -> tuple[memory.Memory, memory.Memory]:
    """(of all workers, of the template) once each worker has answered ANSWERS requests."""
    path = f"env = {{ PYTHONPATH = {json.dumps(str(peers.libraries()))} }}"
    options = {"worker_extra": f"{path}\n{worker}", "health": "/", "interval": "5s", "ready_timeout": "60s"}
    with BenchCluster(make=framed, count=MEMORY_WORKERS, **options) as cluster:
        cluster.write(GOOD)
        cluster.run("up", code=0)
        status = cluster.status()
        if worker and not status["templates"]:
            raise RuntimeError("there is no template: its workers booted one by one")
        let_all_answer(cluster.address)
        workers = memory.total(found["pid"] for found in cluster.workers())
        return workers, memory.total(template["pid"] for template in status["templates"])


def let_all_answer(address: str) -> None:
    """Until each has answered ANSWERS requests."""
    answers, limit = Counter[str](), time.monotonic() + 60
    while len(answers) < MEMORY_WORKERS or min(answers.values()) < ANSWERS:
        if time.monotonic() > limit:
            raise RuntimeError(f"not all workers answer: {dict(answers)}")
        answers.update(visits.one_by_one(address))


def memories() -> bool:
    try:
        separate, _ = memory_of("")
        forked, template = memory_of(PRELOAD)
    except peers.SkippedError as why:
        say(f"memory: SKIPPED: {why}")
        return True
    whole = forked + template
    rows = [
        memory_row("8 separate workers", separate, separate),
        memory_row("8 forked workers", forked, separate),
        memory_row("their template", template, separate),
        [*memory_row("with their template", whole, separate)[:-1], verdict(whole.private / separate.private)],
    ]
    head = ("what", "private MB", "of separate", "PSS MB", "of separate", f"private <= {MEMORY_TARGET:.0%}")
    notes = [
        "private: Private_Clean + Private_Dirty of smaps_rollup. PSS adds to each its part of what is shared",
        f"an app that imports numpy and pandas; each worker has answered {ANSWERS} requests or more with them",
        f"they are not in .venv but in {peers.libraries()}, by PYTHONPATH in [worker] env",
        f"machine: {machine()}",
    ]
    show(f"Memory of {MEMORY_WORKERS} workers", head, rows, notes)
    return True


def memory_row(name: str, found: memory.Memory, reference: memory.Memory) -> list[object]:
    shares = (found.private / reference.private, found.pss / reference.pss)
    return [name, f"{found.private:.1f}", f"{shares[0]:.0%}", f"{found.pss:.1f}", f"{shares[1]:.0%}", "-"]


def verdict(share: float) -> str:
    return met(share <= MEMORY_TARGET)


# -- rollbacks ----------------------------------------------------------------------------------------------


def rollbacks(number: int) -> bool:
    """Back and forth between two releases, the one before on standby; under light load."""
    extra = 'standby = "10m"\n'
    plain, standby = (rollback_times(number, "", ""), rollback_times(number, PRELOAD, extra))
    rows = [
        rollback_row("boots (no preload)", *plain[:2], None),
        rollback_row("on standby", *standby[:2], STANDBY_TARGET_S),
    ]
    losses = [*plain[2], *standby[2]]
    head = ("rollback", "rollout s", "worst", "command s", "worst", f"<= {STANDBY_TARGET_S:.3f} s")
    notes = [
        "command: wall time of `deployer rollback`, with Python's own start and the printing",
        f"{number} each, under load: {LOAD}; {len(losses)} requests lost",
        f"machine: {machine()}",
    ]
    title = f"Rollbacks of {STANDBY.workers} workers of an app that imports for {STANDBY.boot_s:g} s (medians)"
    show(title, head, rows, notes)
    for loss in losses[:10]:
        print(f"  {loss}")
    return not losses


def rollback_times(number: int, worker: str, rollout: str) -> tuple[list[float], list[float], list[Loss]]:
    """Seconds of each rollout by its own account, of each command, and what was lost."""
    own, command = [], []
    options = {"worker_extra": worker, "extra": rollout, "soak": f"{STANDBY.soak_s:g}s", "interval": "5s"}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(BenchCluster(server="served", count=STANDBY.workers, **options))
        for label, how in (("one", "up"), ("two", "deploy")):
            cluster.write(GOOD, label, boot_s=STANDBY.boot_s)
            cluster.run(how, code=0)
        load = stack.enter_context(LoadProcess(cluster.address, **LOAD))
        for _ in range(number):
            wait_for_templates(cluster, 2 if rollout else 0)
            load.more(50, 30)
            began = time.monotonic()
            done = cluster.run("rollback", "--json", *(["v2"] if cluster.current() == "v1" else []), code=0)
            command.append(time.monotonic() - began)
            own.append(float(done.last["seconds"]))
        losses = list(load.stop().losses)
    say(f"rollbacks {'on standby' if rollout else 'that boot'}: {[round(seconds, 3) for seconds in own]}")
    return own, command, losses


def wait_for_templates(cluster: BenchCluster, number: int) -> None:
    """Both releases are at rest: the way back is ready, and nobody of the rollback before drains."""
    limit = time.monotonic() + 30
    while True:
        status = cluster.status()
        ready = [template for template in status["templates"] if template["state"] == "ready"]
        if len(ready) >= number and len(status["workers"]) == STANDBY.workers:
            return
        if time.monotonic() > limit:
            raise RuntimeError(f"not at rest: {status['templates']}, {status['workers']}")
        time.sleep(0.1)


def rollback_row(name: str, own: list[float], command: list[float], target: float | None) -> list[object]:
    cells = [f"{value:.3f}" for found in (own, command) for value in (median(found), max(found))]
    if target is None:
        return [name, *cells, "-"]
    return [name, *cells, f"rollout {met(median(own) <= target)}, command {met(median(command) <= target)}"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.preload", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rollouts with preload (3)")
    parser.add_argument("--peer-runs", type=int, default=1, help="rollouts of each other system (1)")
    parser.add_argument("--rollbacks", type=int, default=7)
    parser.add_argument("--part", choices=["rollout", "memory", "rollback"], help="only this")
    words = parser.parse_args()
    parts: dict[str, Callable[[], bool]] = {
        "rollout": lambda: rollouts(words.runs, words.peer_runs),
        "memory": memories,
        "rollback": lambda: rollbacks(words.rollbacks),
    }
    kept = [run() for name, run in parts.items() if words.part in (None, name)]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    end_with(main)
