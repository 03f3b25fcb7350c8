"""Which worker should take the next visitor (pure).

Connections decide. Between workers with as many, those taken lately do: `load` grows by one with each connection
and fades with the time constant TAU_S, so that visitors who stay for a moment are shared as well. It is kept as the
time at which it will have faded to one: loads of different moments compare as they stand, in a single number.

A worker that is ahead of a peer does not refuse: it waits a moment, in which the peer takes the visitor, and takes it
after all when the peer is busy. Nobody waits for a peer that is asleep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

TAU_S = 2.0
LOAD_SLACK = 1.02  # nearly as many lately is as many
DELAY_S = 0.0006  # a peer that is idle wakes within a tenth of that, if it gets a processor at once
DELAY_MAX_S = 0.006
AWAKE_S = 0.5  # nobody waits for a peer whose loop has not turned for so long: it beats every 0.2 s
_MARGIN = TAU_S * math.log(LOAD_SLACK)
_FORGOTTEN = -20.0


def load_after(load: float, now: float) -> float:
    """`load` with one more connection taken at `now`."""
    age = (load - now) / TAU_S
    return now + TAU_S * math.log(1.0 + (math.exp(age) if age > _FORGOTTEN else 0.0))


def level(load: float, now: float) -> float:
    """About how many connections of the last TAU_S seconds `load` stands for."""
    return math.exp((load - now) / TAU_S) if load > now + _FORGOTTEN * TAU_S else 0.0


def lead(connections: int, load: float, peers: Iterable[tuple[int, float]]) -> int:
    """How far ahead of a peer is a worker: by so many connections, by 1 when as many but more lately, or 0."""
    most = 0
    for theirs, their_load in peers:
        if theirs < connections:
            most = max(most, connections - theirs)
        elif theirs == connections and their_load < load - _MARGIN:
            most = most or 1
    return most


def delay(lead: int) -> float:
    """How long who is ahead lets the others go first."""
    return min(DELAY_S * lead, DELAY_MAX_S)


def first_load(loads: Iterable[float]) -> float:
    """What a newcomer starts from: as loaded as the others, or it would take every visitor for a while."""
    known = list(loads)
    return max(known) if known else 0.0
