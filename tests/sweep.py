"""Which kill points a sweep takes: SIGKILL at each commit, message or change of something that is done again and again.

A sweep counts its points in a run that nobody kills, and then has a run for each. By default every second point is
taken: of four in a row the first and the last, or in the other half (`odd`) the two between. Points often come in
pairs, before a commit and after it: so each commit is tried, in turns before it and after it, and a sweep of the same
that has the other half tries the rest. `DEPLOYER_EVERY_KILL=1` takes all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Point = TypeVar("Point")
EVERY = os.environ.get("DEPLOYER_EVERY_KILL") == "1"


def dealt(points: Sequence[Point], chunk: int, chunks: int, *, odd: bool = False) -> list[Point]:
    """The points of one of `chunks` tests, which run side by side."""
    taken = [point for at, point in enumerate(points) if EVERY or (at % 4 in (1, 2)) == odd]
    return taken[chunk::chunks]
