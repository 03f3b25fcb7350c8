"""How figures are printed: plain columns, one table a question."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> None:
    """A table with its notes; the first column is text, the others are figures."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    print(f"\n{title}\n")
    for number, line in enumerate(lines):
        first, *rest = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join([first, *rest]).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    for note in notes:
        print(f"  {note}")
    sys.stdout.flush()


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(f"... {text}", file=sys.stderr, flush=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def machine() -> str:
    load = os.getloadavg()[0]
    cores, python = len(os.sched_getaffinity(0)), platform.python_version()
    return f"{cores} cores, load {load:.1f}, Linux {platform.release()}, Python {python}"


def met(good: bool) -> str:
    return "met" if good else "MISSED"


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a script; Ctrl-C, after its clean-up, is no error worth a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
