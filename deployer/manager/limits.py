"""When a worker has served its time: too large, too old, or stuck. Pure; `hygiene` looks and acts.

How large and how old is read off a worker at any moment. That it is stuck shows only over time: its pulse on the
scoreboard stands still while the manager, which looks on, is running itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deployer.units import format_duration, format_size

LATE_S = 0.5  # a look that comes later than planned by more: the manager was not running, nor need others have been
SPREAD = 0.1  # of max_age, by which some slots are earlier than others
QUICK_S = 60.0  # a worker that is too large when it is younger would be so again and again
BACKOFF_FIRST_S, BACKOFF_MAX_S = 10.0, 600.0
_GOLDEN = 0.618034  # multiples of it, modulo 1, spread evenly for any number of slots


class Reason(StrEnum):
    MEMORY = "memory"
    AGE = "max_age"
    HUNG = "hung"


@dataclass(frozen=True)
class Limits:
    """Of `[worker]`, as numbers: bytes and seconds. None: no limit."""

    memory: int | None = None
    age_s: float | None = None
    watchdog_s: float | None = None


@dataclass(frozen=True)
class Still:
    """A pulse that stands still: which, at what value, and for how long somebody looked on."""

    field: str  # heartbeat: the event loop; progress: all threads
    at: float
    seconds: float


@dataclass(frozen=True)
class Vitals:
    """A ready worker as far as these decisions need it."""

    id: int
    slot: int
    limits: Limits
    age_s: float  # since it was ready
    memory: int = 0  # bytes; 0 where nobody measured
    quick: int = 0  # how many workers of this release in the slot before it became too large quickly, in a row
    still: Still | None = None
    candidate: bool = False  # it stands for the release that is being rolled out
    condemned: bool = False


@dataclass(frozen=True)
class End:
    """A worker that is to be replaced, and why."""

    id: int
    reason: Reason
    text: str
    quick: int = 0  # what the next one in the slot starts with


class Pulses:
    """How long each pulse has stood still, in time in which the manager's own loop was turning.

    After a suspended laptop or a stopped cluster wakes up everything is late at once, the manager too: that time
    counts for nobody.
    """

    def __init__(self) -> None:
        self._awake = 0.0
        self._looked: float | None = None
        self._seen: dict[tuple[int, str], tuple[float, float]] = {}  # (worker, field) -> (value, awake at that time)

    def look(self, now: float, planned_s: float, beats: Mapping[int, Mapping[str, float]]) -> dict[int, list[Still]]:
        """`beats`: worker -> field -> value. `planned_s`: when this look was to come after the one before."""
        elapsed = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        self._awake += elapsed if elapsed <= planned_s + LATE_S else 0.0
        seen: dict[tuple[int, str], tuple[float, float]] = {}
        found: dict[int, list[Still]] = {}
        for worker, fields in beats.items():
            for field, value in fields.items():
                last = self._seen.get((worker, field))
                seen[worker, field] = last if last is not None and last[0] == value else (value, self._awake)
                found.setdefault(worker, []).append(Still(field, value, self._awake - seen[worker, field][1]))
        self._seen = seen
        return found


def stuck(stills: Iterable[Still], limits: Limits) -> Still | None:
    """The pulse that has stood still for too long; the event loop's where both have."""
    over = [each for each in stills if limits.watchdog_s is not None and each.seconds >= limits.watchdog_s]
    return min(over, key=lambda each: each.field, default=None)


def hung(workers: Sequence[Vitals], *, rollout: bool) -> list[End]:
    """Workers that are stuck. While a `rollout` is under way only the new ones: that is a failure of it."""
    return [
        End(worker.id, Reason.HUNG, _hung_text(worker.still, worker.limits))
        for worker in workers
        if worker.still is not None and not worker.condemned and (worker.candidate or not rollout)
    ]


def worn(workers: Sequence[Vitals]) -> End | None:
    """The one worker that should be replaced next because it is too large or too old."""
    if any(worker.condemned for worker in workers):
        return None  # one at a time
    able = [worker for worker in workers if not worker.candidate]
    large = [worker for worker in able if is_large(worker) and held_back_s(worker) <= 0]
    if large:
        first = max(large, key=lambda worker: worker.memory / (worker.limits.memory or 1))
        quick = first.quick + 1 if first.age_s < QUICK_S + backoff(first.quick) else 0
        return End(first.id, Reason.MEMORY, memory_text(first), quick)
    old = [worker for worker in able if worker.age_s >= age_limit_s(worker)]
    if not old:
        return None
    oldest = max(old, key=lambda worker: worker.age_s)
    text = f"it has served for {format_duration(oldest.age_s)}, max_age is {format_duration(oldest.limits.age_s or 0)}"
    return End(oldest.id, Reason.AGE, text)


def is_large(worker: Vitals) -> bool:
    return worker.limits.memory is not None and worker.memory > worker.limits.memory


def held_back_s(worker: Vitals) -> float:
    """Seconds until a worker that is too large may be replaced: the ones before it were so right after their start."""
    return backoff(worker.quick) - worker.age_s


def backoff(quick: int) -> float:
    """Seconds that a worker serves although it is too large, after so many in a row: none, then 10, 20, ... 600."""
    return 0.0 if quick == 0 else min(BACKOFF_FIRST_S * 2.0 ** min(quick - 1, 16), BACKOFF_MAX_S)


def age_limit_s(worker: Vitals) -> float:
    """At most max_age; earlier by a part that depends on the slot, so that not all are due at one moment."""
    if worker.limits.age_s is None:
        return float("inf")
    return worker.limits.age_s * (1 - SPREAD * (worker.slot * _GOLDEN % 1))


def memory_text(worker: Vitals) -> str:
    return f"it uses {format_size(worker.memory)}, memory_limit is {format_size(worker.limits.memory or 0)}"


def held_back_text(worker: Vitals) -> str:
    left = format_duration(held_back_s(worker))
    return f"{memory_text(worker)}, and so it was with the one before, right after its start: replaced in {left}"


def _hung_text(still: Still, limits: Limits) -> str:
    what = "its event loop has" if still.field == "heartbeat" else "all its threads have"
    watchdog = format_duration(limits.watchdog_s or 0)
    return f"{what} been stuck for {format_duration(still.seconds)}, watchdog is {watchdog}"
