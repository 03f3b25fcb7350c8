"""From records of the scoreboard to what people see: rates of the last seconds, totals of a life.

The arithmetic is pure. `Traffics` remembers a few looks at each worker; it is asked, and never looks by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deployer.runtime.histogram import BUCKETS, SUB_BITS, TICK_S, lower, percentile, since
from deployer.runtime.scoreboard import Row
from deployer.wire.schema import Traffic

WINDOW_S = 5.0  # what "recent" means where looks are close together
APART_S = 1.0  # between two looks that are kept: two clients that ask at once see the same
KEPT = int(WINDOW_S / APART_S) + 2
EDGE_BITS = range(8, 26)  # le-buckets end at 2**8 ticks (0.26 ms) ... 2**25 ticks (34 s), each twice the one before

Key = tuple[int, int]  # pid and start time of a worker


@dataclass(frozen=True)
class Look:
    """What a worker had counted at a time of `time.monotonic`."""

    at: float
    requests: int = 0
    errors: int = 0
    histogram: tuple[int, ...] = (0,) * BUCKETS

    @classmethod
    def of(cls, row: Row, at: float) -> Look:
        return cls(at, row.requests, row.status_5xx, row.histogram)


class Traffics:
    """The last looks at each worker."""

    def __init__(self) -> None:
        self._looks: dict[Key, deque[Look]] = {}

    def of(self, rows: Mapping[Key, Row], keys: Iterable[Key], now: float) -> dict[Key, Traffic]:
        """Of the workers of `keys` that have a record; the others are forgotten."""
        wanted = [key for key in keys if key in rows]
        self._looks = {key: self._looks.get(key) or deque(maxlen=KEPT) for key in wanted}
        return {key: self._one(rows[key], self._looks[key], now) for key in wanted}

    def _one(self, row: Row, looks: deque[Look], now: float) -> Traffic:
        found = traffic(row, baseline(looks, now) or Look(row.started), now)
        if not looks or now - looks[-1].at >= APART_S:
            looks.append(Look.of(row, now))
        return found


def baseline(looks: Sequence[Look], now: float) -> Look | None:
    """What to compare with: the last look that is WINDOW_S old, else the oldest that is not too young."""
    settled = [look for look in looks if now - look.at >= APART_S]
    whole = [look for look in settled if now - look.at >= WINDOW_S]
    return whole[-1] if whole else settled[0] if settled else None


def traffic(row: Row, before: Look, now: float) -> Traffic:
    seconds = max(now - before.at, 0.001)
    requests, errors = max(0, row.requests - before.requests), max(0, row.status_5xx - before.errors)
    recent = since(row.histogram, before.histogram)
    return Traffic(
        window_s=round(seconds, 1),
        requests_per_s=round(requests / seconds, 2),
        p50_ms=_ms(percentile(recent, 50)),
        p99_ms=_ms(percentile(recent, 99)),
        error_ratio=round(min(1.0, errors / requests), 4) if requests else None,
        requests=row.requests,
        status_1xx=row.status_1xx,
        status_2xx=row.status_2xx,
        status_3xx=row.status_3xx,
        status_4xx=row.status_4xx,
        status_5xx=row.status_5xx,
        broken=row.broken,
        connections=row.connections,
        websockets=row.websockets,
        in_flight=row.in_flight,
        last_error=row.error or None,
        last_error_at=row.error_at if row.error else None,
        report=row.status or None,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def cumulative(histogram: Sequence[int]) -> list[tuple[float, int]]:
    """(upper edge in seconds, answers that took less) for a few edges, which are edges of the fine buckets too: so
    the counts are exact. The last one is infinite."""
    edges = [(TICK_S * 2**bits, (bits - SUB_BITS + 1) << SUB_BITS) for bits in EDGE_BITS]
    return [*((edge, sum(histogram[:index])) for edge, index in edges), (float("inf"), sum(histogram))]


def total_seconds(histogram: Sequence[int]) -> float:
    """Of all answers together, as if each lay in the middle of its bucket: within 6.25 %."""
    return sum(count * (lower(index) + lower(index + 1)) / 2 for index, count in enumerate(histogram) if count)
