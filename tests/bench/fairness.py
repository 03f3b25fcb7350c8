"""deployer's runtime beside its own without the rule of fairness, and beside peers: who gets the visitors, and how many
are served.

All run the same plain ASGI app; ours and uvicorn on the same loop and parser (what uvicorn chooses here), without an
access log. "No rule" is the runtime with --greedy: workers that take whatever they are woken for. The ratios are made
of loadings that follow each other at once, in an order that turns round after round (A B C, C B A, ...): what else
the machine does meets all alike, and the median of the rounds' ratios leaves out where it did not.

python -m tests.bench.fairness [--rounds N] [--seconds S] [--spreads N] [--workers N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests import apps
from tests.bench import bare, hammer, visits
from tests.bench.peers import SkippedError
from tests.bench.rivals import Granian, Uvicorn
from tests.bench.systems import Plan
from tests.bench.table import end_with, machine, median, met, say, show
from tests.runtimekit import Workers

WORKERS = 4
CONNECTIONS = 16
SPREAD_TARGET = 1.15
RULE_TARGET, UVICORN_TARGET = 0.97, 1.0
OURS, PLAIN, UVICORN, GRANIAN = "deployer's runtime", "the same, no rule", "uvicorn --workers", "granian --workers"
QUIET_S = 2.0  # before those visitors who stay: our rule looks back at half a second
QUIETLY = (visits.one_by_one, visits.all_at_once)
SPREADS: dict[str, Callable[[str], Counter[str]]] = {
    f"{visits.LONG} stay, one by one": visits.one_by_one,
    "at once": visits.all_at_once,
    f"{visits.SHORT} short": visits.short,
    f"{visits.LONG} stay, right after those": visits.one_by_one_after_short,
}
AS_ISSUED = 3  # the first of them have a target
RATES: dict[str, Callable[[str, float, int], float]] = {
    "connections/s": hammer.connections_per_second,
    "requests/s": hammer.requests_per_second,
}


class Figures:
    """What was measured of one system, a number a round."""

    def __init__(self) -> None:
        self.spreads: dict[str, list[float]] = {name: [] for name in SPREADS}
        self.rates: dict[str, list[float]] = {name: [] for name in RATES}


def start(stack: ExitStack, workers: int, notes: list[str]) -> dict[str, str]:
    """The address of each system."""
    directory = Path(stack.enter_context(bare.scratch()))
    apps.uvicorn(directory)
    plan = Plan(workers=workers, boot_s=0.0)
    addresses = {
        OURS: stack.enter_context(Workers(directory, "app:app", workers)).address,
        PLAIN: stack.enter_context(Workers(directory, "app:app", workers, options=["--greedy"])).address,
        UVICORN: stack.enter_context(Uvicorn(plan)).address,
    }
    try:
        addresses[GRANIAN] = stack.enter_context(Granian(plan)).address
    except SkippedError as why:
        notes.append(f"{GRANIAN}: SKIPPED: {why}")
    return addresses


def in_turn(names: list[str], number: int) -> list[str]:
    return names if number % 2 == 0 else names[::-1]


def compare(addresses: dict[str, str], workers: int, spreads: int, rounds: int, seconds: float) -> dict[str, Figures]:
    """First who gets the visitors, `spreads` times; then how many are served, `rounds` times for `seconds` each."""
    names = list(addresses)
    figures = {name: Figures() for name in names}
    for kind, visit in SPREADS.items():
        for number in range(spreads):
            if visit in QUIETLY:
                time.sleep(QUIET_S)
            for name in in_turn(names, number):
                figures[name].spreads[kind].append(visits.spread(visit(addresses[name]), workers))
            last = ", ".join(f"{name} {figures[name].spreads[kind][-1]:.2f}" for name in names)
            say(f"round {number + 1}: {kind}: {last}")
    for number in range(rounds):
        for kind, rate in RATES.items():
            for name in in_turn(names, number):
                figures[name].rates[kind].append(rate(addresses[name], seconds, CONNECTIONS))
            last = ", ".join(f"{name} {figures[name].rates[kind][-1]:.0f}" for name in names)
            say(f"round {number + 1}: {kind}: {last}")
    return figures


def spread_row(name: str, found: Figures) -> list[object]:
    cells = [f"{median(numbers):.2f} ({max(numbers):.2f})" for numbers in found.spreads.values()]
    verdicts = [met(median(numbers) <= SPREAD_TARGET) for numbers in found.spreads.values()][:AS_ISSUED]
    rates = [f"{median(numbers):.0f}" for numbers in found.rates.values()]
    return [name, *cells, " / ".join(verdicts) if name == OURS else "-", *rates]


def ratio_row(kind: str, other: str, figures: dict[str, Figures], target: float | None) -> list[object]:
    pairs = zip(figures[OURS].rates[kind], figures[other].rates[kind], strict=True)
    ratios = [one / two for one, two in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    verdict = "-" if target is None else f">= {target} {met(middle >= target)}"
    return [f"{kind} beside {other}", f"{middle:.3f}", f"{low:.3f} .. {high:.3f}", verdict]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="of loadings (9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each loading (1)")
    parser.add_argument("--spreads", type=int, default=5, help="rounds of visits that are counted (5)")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes that serve (4)")
    words = parser.parse_args()
    notes = [f"machine: {machine()}"]
    with ExitStack() as stack:
        figures = compare(start(stack, words.workers, notes), words.workers, words.spreads, words.rounds, words.seconds)
    head = ("system", *SPREADS, f"first {AS_ISSUED}: <= {SPREAD_TARGET}")
    title = (
        f"Fairness of {words.workers} workers: busiest / idlest, median (worst) of {words.spreads} rounds; median rates"
    )
    show(title, (*head, *RATES), [spread_row(name, found) for name, found in figures.items()], notes)
    targets: dict[str, float | None] = {PLAIN: RULE_TARGET, UVICORN: UVICORN_TARGET, GRANIAN: None}
    rows = [
        ratio_row(kind, other, figures, target)
        for other, target in targets.items()
        if other in figures
        for kind in RATES
    ]
    how = f"{words.rounds} rounds of {words.seconds:g} s each, in turn; {CONNECTIONS} connections at a time by"
    how = f"{how} {hammer.name()}, kept alive (requests/s) or not (connections/s)"
    title = f"{OURS.capitalize()}: what it serves over what the other does"
    show(title, ("what", "median ratio", "quartiles of the rounds", "target"), rows, [how])
    return 0


if __name__ == "__main__":
    end_with(main)
