"""From what slots should run and the workers there are to what must be done now. Pure; callable at any time, twice.

Supervision, rollouts, reverts, scaling and the resumption after the manager's death are all this comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deployer.rollout.machine import Want

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True)
class Seen:
    """A worker as far as decisions need it. Draining ones are on their way out and do not count."""

    id: int
    slot: int
    generation: int
    ready: bool
    condemned: bool  # runs, but is to be replaced


@dataclass(frozen=True)
class Plan:
    spawn: tuple[tuple[int, int], ...]  # (slot, generation)
    retire: tuple[int, ...]  # worker ids
    wake_at: float | None  # when a slot in back-off may be tried again


def plan(
    wants: Mapping[int, Sequence[Want]],
    workers: Sequence[Seen],
    not_before: Mapping[tuple[int, int], float],
    now: float,
) -> Plan:
    """`not_before`: (slot, generation) -> time of the next try, on the clock of `now`."""
    spawn: list[tuple[int, int]] = []
    retire: list[int] = []
    waits: list[float] = []
    replacing = _replacing(workers)
    for slot in sorted({*wants, *(worker.slot for worker in workers)}):
        here = [worker for worker in workers if worker.slot == slot]
        wanted = {want.generation for want in wants.get(slot, ())}
        for want in wants.get(slot, ()):
            mine = [worker for worker in here if worker.generation == want.generation]
            retire += _surplus(mine)
            if not want.start or any(not worker.condemned for worker in mine):
                continue
            if mine and replacing:
                continue  # sick workers are replaced one at a time
            at = not_before.get((slot, want.generation), now)
            if at > now:
                waits.append(at)
                continue
            replacing = replacing or bool(mine)
            spawn.append((slot, want.generation))
        retire += _unwanted(here, wanted)
    return Plan(tuple(spawn), tuple(retire), min(waits, default=None))


def backoff(early_deaths: int) -> float:
    """Seconds before the next try after so many deaths in a row: at once, then 0.5, 1, 2, ... 30."""
    if early_deaths <= 1:
        return 0.0
    return min(BACKOFF_FIRST_S * 2.0 ** min(early_deaths - 2, 16), BACKOFF_MAX_S)


def retired_by(generation: int, *, running: int | None, promoted: int | None, surplus_of: int | None) -> int | None:
    """The rollout that a worker goes for; None: ordinary supervision.

    `running`: one that is not over. One that turns back is over before its canary is told to go: then it is the
    later of the two generations. `surplus_of`: the change of the count that left no slot for the worker.
    """
    if running is not None:
        return running
    if generation < 0:
        return None  # a stray
    if generation != promoted:
        return max(generation, promoted or 0)
    return surplus_of


def _replacing(workers: Sequence[Seen]) -> bool:
    """Is a replacement of a condemned worker under way somewhere?"""
    sick = {(worker.slot, worker.generation) for worker in workers if worker.condemned}
    return any(not worker.condemned and (worker.slot, worker.generation) in sick for worker in workers)


def _surplus(mine: Sequence[Seen]) -> list[int]:
    """Of several workers of one generation in a slot: all but the best, once that one is ready."""
    if len(mine) < 2:
        return []
    best = min(mine, key=lambda worker: (worker.condemned, not worker.ready, worker.id))
    return [worker.id for worker in mine if worker is not best] if best.ready and not best.condemned else []


def _unwanted(here: Sequence[Seen], wanted: set[int]) -> list[int]:
    """Workers of generations that have no place in the slot. The last ready one stays until a wanted one is ready."""
    others = [worker for worker in here if worker.generation not in wanted]
    covered = not wanted or any(worker.ready and worker.generation in wanted for worker in here)
    return [worker.id for worker in others if covered or not worker.ready]
