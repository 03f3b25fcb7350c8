"""Steady requests/s under deployer: beside the same server bare on an inherited socket of its own, and of deployer's
own runtime beside `uvicorn --workers` and granian with the same app.

Both run at once and are loaded in turn, first one and then the other: what else the machine does meets both alike.
But for one thing: where the kernel shares the processors between sessions (sched_autogroup_enabled) and others want
them too, deployer's workers have a share each, being sessions of their own; uvicorn's and granian's have one in all.

python -m tests.bench.throughput [--rounds N] [--seconds S] [--workers N]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench import bare, hammer
from tests.bench.peers import SkippedError
from tests.bench.rivals import Granian, Uvicorn
from tests.bench.systems import GOOD, SERVERS, BenchCluster, Plan, System
from tests.bench.table import end_with, machine, median, met, say, show

BARE_TARGET, UVICORN_TARGET = 0.97, 1.0
CONNECTIONS = 16
RUNTIME = "served"


class Pair(NamedTuple):
    server: str  # under deployer
    name: str  # of what it is measured beside
    other: AbstractContextManager[bare.Bare | System]
    target: float | None


def pairs(workers: int) -> list[Pair]:
    plan = Plan(workers=workers, boot_s=0.0)
    alone = [Pair(kind, "the same, bare", bare_of(kind, workers), BARE_TARGET) for kind in kinds()]
    return [
        *alone,
        Pair(RUNTIME, "uvicorn --workers", Uvicorn(plan), UVICORN_TARGET),
        Pair(RUNTIME, "granian --workers", Granian(plan), None),
    ]


def kinds() -> list[str]:
    return ["mini", "gunicorn", "sample_app", *(["node"] if shutil.which("node") else []), RUNTIME]


@contextmanager
def bare_of(server: str, workers: int) -> Iterator[bare.Bare]:
    with bare.scratch() as directory:
        app = SERVERS[server](Path(directory) / "release", GOOD, label="same")
        with bare.Bare(app, workers) as alone:
            yield alone


def compare(pair: Pair, rounds: int, seconds: float, workers: int) -> tuple[list[float], list[float]]:
    """Requests/s of each round: under deployer, of the other."""
    ours: list[float] = []
    theirs: list[float] = []
    with BenchCluster(server=pair.server, count=workers, interval="5s") as cluster:
        cluster.write(GOOD, "same")
        cluster.run("up", code=0)
        with pair.other as other:
            for number in range(rounds):
                turn = [(cluster.address, ours), (other.address, theirs)]
                for address, found in turn if number % 2 == 0 else reversed(turn):
                    found.append(hammer.requests_per_second(address, seconds, CONNECTIONS))
                last = f"{ours[-1]:.0f} under deployer, {theirs[-1]:.0f} {pair.name}"
                say(f"{pair.server}: round {number + 1}: {last}")
    return ours, theirs


def row(pair: Pair, ours: list[float], theirs: list[float]) -> list[object]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    verdict = "-" if pair.target is None else f">= {pair.target} {met(middle >= pair.target)}"
    rates = [f"{median(ours):.0f}", f"{median(theirs):.0f}"]
    return [pair.server, pair.name, *rates, f"{middle:.3f}", f"{low:.3f} .. {high:.3f}", verdict]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each loading (1)")
    parser.add_argument("--workers", type=int, default=2, help="processes that serve (2)")
    parser.add_argument("--only", default="", help="servers whose name contains this")
    words = parser.parse_args()
    rows: list[list[object]] = []
    for pair in pairs(words.workers):
        if words.only not in pair.server:
            continue
        try:
            rows.append(row(pair, *compare(pair, words.rounds, words.seconds, words.workers)))
        except SkippedError as why:
            rows.append([pair.server, pair.name, f"SKIPPED: {why}", *[""] * 4])
    head = ("under deployer", "beside", "req/s", "the other's", "median ratio", "quartiles of the rounds", "target")
    how = f"{words.rounds} rounds of {words.seconds:g} s, in turn; {CONNECTIONS} connections by {hammer.name()}"
    notes = [f'{RUNTIME}: `app = "app:app"`, on the loop and parser that uvicorn takes too', how]
    show(f"Steady requests/s, {words.workers} worker processes", head, rows, [*notes, f"machine: {machine()}"])
    return 0


if __name__ == "__main__":
    end_with(main)
