"""Rollouts side by side: what visitors lose, how long it takes, what they wait, and what a broken release does.

python -m tests.bench.rollout [--runs N] [--only TEXT]
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import bare, hammer, memory, visits
from tests.bench.peers import SkippedError
from tests.bench.reloads import LABEL, Rollout, good
from tests.bench.rivals import Granian, Gunicorn, Peer, Pm2, Uvicorn, Uwsgi
from tests.bench.systems import BOOT_S, BROKEN, SOAK_S, WORKERS, Deployer, System
from tests.bench.table import end_with, machine, median, met, say, show
from tests.load import BrokenAnswerError, LoadProcess, LoadReport, Loss

LOAD: dict[str, float] = {"keepalive": 8, "fresh": 4, "slow": 4, "think_s": 0.03}
KINDS = ("keepalive", "fresh", "slow")
BROKEN_S = 5.0
PROBES = 20
PROBE_LIMIT_S = 1.0
BOOTS = 5
BUSY_BOOTS = 1
MARGIN_S = 0.5
REST_S = 2.0
CONNECTIONS = 16
UNDELIMITED = "neither Content-Length"  # how tests.load tells of it


def everything() -> list[System]:
    """In the order of the table: each of ours above the peers of its language."""
    return [
        Deployer("gunicorn", "WSGI"),
        Gunicorn(),
        Uwsgi(),
        Deployer("served", "ASGI", name="its own runtime"),
        Deployer("sample_app", "ASGI"),
        # It closes idle connections the moment it gets SIGTERM: what is lost by that is its own (test_servers.py).
        Deployer("uvicorn", "ASGI", must_lose_none=False),
        Uvicorn(),
        Granian(),
        Deployer("node", "Node"),
        Pm2(),
    ]


@dataclass
class Rest:
    """A system before there is load. None: it could not be had."""

    one_by_one: float | None = None  # busiest / idlest worker, of connections that stay
    at_once: float | None = None
    short: float | None = None
    requests: float | None = None  # a second
    memory: list[memory.Memory] = field(default_factory=list)  # of each worker, afterwards


@dataclass
class Result:
    system: System
    skipped: str = ""
    could_not_run: bool = False
    rest: Rest = field(default_factory=Rest)
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
        with contextlib.ExitStack() as stack:
            stack.enter_context(system)
            result.rest = at_rest(system)
            load = stack.enter_context(LoadProcess(system.address, **LOAD))
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


def at_rest(system: System) -> Rest:
    """What else they are compared by; where one cannot take such visitors, that is no end of it."""
    rest, pids = Rest(), Counter[str]()

    def shared(visit: Callable[[str], Counter[str]]) -> float | None:
        with contextlib.suppress(OSError, BrokenAnswerError):
            found = visit(system.address)
            pids.update(found)
            return visits.spread(found, system.plan.workers)
        return None

    rest.one_by_one, rest.at_once = shared(visits.one_by_one), shared(visits.all_at_once)
    rest.short = shared(visits.short)
    with contextlib.suppress(RuntimeError):
        rest.requests = hammer.requests_per_second(system.address, REST_S, CONNECTIONS)
    rest.memory = [memory.of(pid) for pid in pids]
    return rest


def boots(system: Deployer, number: int) -> list[float]:
    """Spawn to first answer of the same worker without deployer, one at a time."""
    with bare.scratch() as directory:
        app = system.release(Path(directory) / "release")
        bare.boot_seconds(app)  # caches are warm afterwards, as for later releases
        return [bare.boot_seconds(app) for _ in range(number)]


def broken(system: System, load: LoadProcess, result: Result) -> None:
    """A release that raises at import, and what is there 5 s after it was asked for."""
    system.write(BROKEN, LABEL.format("broken"))
    time.sleep(system.settle_s)
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
        "p99 ms: before",
        "during",
        "ratio",
    )
    title = f"Rollouts of {WORKERS} workers that need {BOOT_S} s to boot ({number} each, medians; lost: sum)"
    show(title, head, [good_row(r) for r in results], [f"machine: {machine()}", f"load: {LOAD}", *settings(results)])
    head = ("system", "app", f"{visits.LONG} stay, one by one", "at once", f"{visits.SHORT} short")
    head = (*head, "requests/s", "MB a worker: private", "PSS")
    title = f"The same systems at rest; the spread of connections is busiest / idlest of {WORKERS} workers, once"
    notes = ["one look each, and requests/s are those of the app's language too: fairness and throughput judge"]
    show(title, head, [rest_row(r) for r in results if not r.skipped], notes)
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
        return [system.name, system.app, result.skipped, *[""] * 7]
    seconds = [r.seconds for r in result.rollouts if r.seconds is not None]
    gone = [r.old_gone_s for r in result.rollouts if r.old_gone_s is not None]
    p99s = [(r.p99_before_s, r.p99_during_s) for r in result.rollouts]
    figures = [f"{median(seconds):.2f}", f"{median(gone):.2f}"]
    figures += [f"{median([before for before, _ in p99s]) * 1000:.1f}", f"{median([at for _, at in p99s]) * 1000:.1f}"]
    figures += [f"{median([during / before for before, during in p99s]):.1f}"]
    return [system.name, system.app, *lost_cells(result, result.lost), *figures]


def rest_row(result: Result) -> list[object]:
    system, rest = result.system, result.rest
    spreads = (rest.one_by_one, rest.at_once, rest.short)
    cells = ["-" if found is None else f"{found:.2f}" for found in spreads]
    requests = "-" if rest.requests is None else f"{rest.requests:.0f}"
    private, pss = (median([getattr(one, name) for one in rest.memory]) for name in ("private", "pss"))
    return [system.name, system.app, *cells, requests, f"{private:.1f}", f"{pss:.1f}"]


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
    parser.add_argument("--runs", type=int, default=2, help="good rollouts of each system (2)")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    words = parser.parse_args()
    results = [measure(system, words.runs) for system in everything() if words.only in system.name]
    tables(results, words.runs)
    return 1 if failed(results) else 0


if __name__ == "__main__":
    end_with(main)
