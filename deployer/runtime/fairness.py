"""Which worker should take the next visitor (pure).

A worker's `burden` is the connections that stay with it, and those it took lately: `load` grows by one with each and
fades with the time constant TAU_S. Where visitors stay, that shares the visitors; where they come and go by the
thousand, it shares the work, and a few more that stay do not matter. `load` is kept as the time at which it will have
faded to one, so that it is a single number and needs no writing while nothing comes.

A worker that is ahead of a peer does not refuse: it waits a moment, in which the peer takes the visitor, and takes it
after all when the peer is busy. Nobody waits for a peer that is asleep. Small leads are left alone where much comes: to
be exact among thousands would cost a third of them (measured with tests/bench/fairness.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

TAU_S = 0.5
SLACK = 0.75  # connections: less than one, so that 64 visitors are shared to one more or less
SLACK_SHARE = 0.08  # of what the peer took lately
DELAY_S = 0.0006  # for each connection in the lead; an idle peer wakes in a tenth of that, if a processor is free
DELAY_MAX_S = 0.010
AWAKE_S = 1.0  # nobody waits for a peer whose loop has not turned for so long: it beats every 0.2 s
_FORGOTTEN = -20.0

Burden = tuple[int, float]
"""(connections that stay, those taken lately)"""


def load_after(load: float, now: float) -> float:
    """`load` with one more connection taken at `now`."""
    age = (load - now) / TAU_S
    return now + TAU_S * math.log(1.0 + (math.exp(age) if age > _FORGOTTEN else 0.0))


def lately(load: float, now: float) -> float:
    """About how many connections were taken in the last TAU_S seconds."""
    age = (load - now) / TAU_S
    return math.exp(age) if age > _FORGOTTEN else 0.0


def delay(own: Burden, others: Iterable[Burden]) -> float:
    """How long a worker lets the others go first: not at all, unless it is ahead of one."""
    settled, taken = min(others, key=sum, default=own)
    lead = sum(own) - settled - taken
    return min(DELAY_S * lead, DELAY_MAX_S) if lead > SLACK + SLACK_SHARE * taken else 0.0


def first_load(loads: Iterable[float]) -> float:
    """What a newcomer starts from: as loaded as the others, or it would take every visitor for a while."""
    return max(loads, default=0.0)
