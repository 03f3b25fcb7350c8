"""Steady requests/s of a server under deployer, beside the same server bare on an inherited socket of its own.

Both run at once and are loaded in turn, first one and then the other: what else the machine does meets both alike.

python -m tests.bench.throughput [--rounds N] [--seconds S] [--workers N]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tests.bench import bare, hammer
from tests.bench.systems import GOOD, SERVERS, BenchCluster
from tests.bench.table import end_with, machine, median, met, say, show

TARGET = 0.97
CONNECTIONS = 16
KINDS = ("mini", "gunicorn", "sample_app", "node")


def compare(server: str, rounds: int, seconds: float, workers: int) -> tuple[list[float], list[float]]:
    """Requests/s of each round: under deployer, bare."""
    ours: list[float] = []
    theirs: list[float] = []
    with BenchCluster(server=server, count=workers, interval="5s") as cluster, bare.scratch() as directory:
        cluster.write(GOOD, "same")
        cluster.run("up", code=0)
        app = SERVERS[server](Path(directory) / "release", GOOD, label="same")
        with bare.Bare(app, workers) as alone:
            for number in range(rounds):
                turn = [(cluster.address, ours), (alone.address, theirs)]
                for address, found in turn if number % 2 == 0 else reversed(turn):
                    found.append(hammer.requests_per_second(address, seconds, CONNECTIONS))
                say(f"{server}: round {number + 1}: {ours[-1]:.0f} under deployer, {theirs[-1]:.0f} bare")
    return ours, theirs


def row(server: str, ours: list[float], theirs: list[float]) -> list[object]:
    ratio = median([mine / other for mine, other in zip(ours, theirs, strict=True)])
    ends = f"{min(theirs):.0f} .. {max(theirs):.0f}"
    return [server, f"{median(ours):.0f}", f"{median(theirs):.0f}", ends, f"{ratio:.3f}", met(ratio >= TARGET)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.throughput", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each loading (2)")
    parser.add_argument("--workers", type=int, default=2, help="processes that serve (2)")
    words = parser.parse_args()
    rows: list[list[object]] = []
    for server in KINDS:
        if server == "node" and shutil.which("node") is None:
            rows.append([server, "SKIPPED: node is not installed", *[""] * 4])
        else:
            rows.append(row(server, *compare(server, words.rounds, words.seconds, words.workers)))
    head = ("server", "under deployer req/s", "bare req/s", "bare, all rounds", "ratio", f">= {TARGET}")
    how = f"{words.rounds} rounds of {words.seconds:g} s, in turn; {CONNECTIONS} connections by {hammer.name()}"
    title = f"Steady requests/s, {words.workers} worker processes (ratio: median of the rounds' ratios)"
    show(title, head, rows, [how, f"machine: {machine()}"])
    return 0


if __name__ == "__main__":
    end_with(main)
