"""How long the quick commands take: wall clock from start to exit, beside Python itself and PM2's.

python -m tests.bench.cli [--runs N]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import bare, peers
from tests.bench.table import end_with, machine, median, met, say, show
from tests.cluster import DEPLOYER, Cluster

BUDGET_S = 0.150
RUNS = 15


@dataclass(frozen=True)
class Command:
    name: str
    words: list[str]
    directory: Path
    ours: bool
    env: dict[str, str] = field(default_factory=dict)


def wall(command: Command) -> tuple[float, float]:
    """(seconds until its exit, seconds of CPU it used)."""
    cpu, began = children_cpu_s(), time.perf_counter()
    done = subprocess.run(
        command.words,
        cwd=command.directory,
        env=os.environ | command.env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{command.name}: exit {done.returncode}: {done.stderr.decode()[-300:]}")
    return seconds, children_cpu_s() - cpu


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_turn(commands: list[Command], runs: int) -> dict[str, list[tuple[float, float]]]:
    """One of each, again and again: what else the machine does meets all alike. The first round fills the caches."""
    found: dict[str, list[tuple[float, float]]] = {command.name: [] for command in commands}
    for number in range(runs + 1):
        for command in commands:
            taken = wall(command)
            if number:
                found[command.name].append(taken)
    return found


def row(command: Command, taken: list[tuple[float, float]]) -> list[object]:
    walls, cpus = [seconds for seconds, _ in taken], [cpu for _, cpu in taken]
    verdict = f"{BUDGET_S * 1000:.0f} {met(median(walls) <= BUDGET_S)}" if command.ours else "-"
    figures = (median(walls), min(walls), median(cpus), min(cpus))
    return [command.name, *(f"{seconds * 1000:.0f}" for seconds in figures), verdict]


def ours(directory: Path) -> list[Command]:
    lines = (["status"], ["status", "--json"], ["--help"], ["--version"])
    return [Command(f"deployer {' '.join(words)}", [DEPLOYER, *words], directory, True) for words in lines]


@contextmanager
def pm2_home() -> Iterator[tuple[str, Path]]:
    """PM2 with its daemon running, in a home of its own."""
    program = str(peers.pm2().program)
    with bare.scratch() as home:
        call = {"env": os.environ | {"PM2_HOME": home}, "capture_output": True, "check": False}
        subprocess.run([program, "ping"], **call)  # type: ignore[call-overload]
        try:
            yield program, Path(home)
        finally:
            subprocess.run([program, "kill"], **call)  # type: ignore[call-overload]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cli", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS)
    runs = parser.parse_args().runs
    say(f"{runs} runs of each command")
    python = Command("python -c pass", [sys.executable, "-c", "pass"], Path.cwd(), False)
    notes = [f"machine: {machine()}"]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(count=4))
        cluster.up()
        commands = [*ours(cluster.directory), python]
        try:
            program, home = stack.enter_context(pm2_home())
            commands.append(Command("pm2 list", [program, "list"], home, False, {"PM2_HOME": str(home)}))
        except peers.SkippedError as why:
            notes.append(f"pm2 list: SKIPPED: {why}")
        found = in_turn(commands, runs)
    rows = [row(command, found[command.name]) for command in commands]
    head = ("command", "median ms", "least ms", "CPU ms: median", "least", "budget ms")
    show(f"Wall time of quick commands ({runs} runs)", head, rows, notes)
    return 0


if __name__ == "__main__":
    end_with(main)
