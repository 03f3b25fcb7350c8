"""Is the canary worse than its peers? What both answered to the visitors of one socket, compared (pure).

A share seen in a few requests says little of the true one: 1 error of 4 may be chance. So shares are compared by what
they could truly be, their Wilson score intervals (E. B. Wilson, 1927), which hold for small numbers and for shares
near 0 and 1, where a mean with a standard deviation does not. `Z` = 2.58 leaves the truth above the upper bound, or
below the lower one, once in 200 times. The canary is bad when its lower bound is above its peers' upper bound *plus*
what it is allowed to be worse by, and when the thing was seen `FEWEST` times at least: no single odd request decides.
A release no worse than the one before is so called bad, in a soak of a dozen looks, less than once in 10,000 where
1 request of 100 fails, and less than once in 100 where as much as 1 of 3 does.

That makes it slow to condemn and not blind: with no error among 310 requests of its peers, a canary that fails always
is bad after 3 requests, one that fails each second time after 6. Where the peers answered next to nothing, or fail as
much (their database is down), nothing is held against it.

Latency is judged as shares too: a request is slow when it took longer than `max_latency_ratio` times the p95 of the
peers plus `SLACK_S`, and the canary is bad when it clearly has `SLOW_SHARE` more of these than they have. Means would
be at the mercy of one stuck request, and high percentiles of few requests are hardly known. A request counts as slow
when its whole bucket of the histogram is (an eighth wide at most), so the doubt is the canary's.

What the arithmetic takes for granted: visitors of both are alike. The canary meets new connections only, so one who
stays on a connection and does what nobody else does is a part of one side; hence the allowances. And how long a request
takes depends on what it asks for (a report, an upload) far more than whether it fails does: a few say nothing of the
release, so latency is judged with `min_samples` on both sides only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from deployer.config import model
from deployer.runtime.histogram import lower as least_latency
from deployer.runtime.histogram import percentile

Z = 2.58
FEWEST = 3  # errors, or slow requests
SLOW_SHARE = 0.10  # more slow requests than the peers have are no reason yet
SLACK_S = 0.010  # what is as quick as 1 ms may become 11 ms slow: nobody sees that
PERCENT = 95


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What came between two looks. `latencies` are counts by bucket, of all answers or of a later part of them."""

    answers: int
    failed: int = 0  # with 5xx
    broken: int = 0  # that ended before they were whole
    latencies: Sequence[int] = ()


class Verdict(StrEnum):
    GOOD = "good"
    BAD = "bad"
    INCONCLUSIVE = "inconclusive"


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One side of the comparison."""

    answers: int
    errors: int
    timed: int  # answers whose latency was compared
    slow: int
    p95_s: float | None


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """`text` goes on after the name of the canary, but for an inconclusive one, which stands alone."""

    verdict: Verdict
    reason: str | None  # the machine word of a failure
    text: str
    canary: Figures
    peers: Figures
    slow_s: float | None  # a request that took longer was slow; None: latency was not compared


def judge(canary: Sample, peers: Sample, limits: model.Rollout) -> Judgement:
    """Bad may be concluded at any look; good needs `min_samples` answers of the canary and of its peers."""
    slow_s = _slow_s(peers, limits.max_latency_ratio)
    one, others = _figures(canary, slow_s), _figures(peers, slow_s)
    missing = _too_few(one, others, limits)
    verdict, reason, text = Verdict.GOOD, None, _all_text(canary, one, others)
    if clearly_more(one.errors, one.answers, others.errors, others.answers, limits.max_error_ratio):
        verdict, reason, text = Verdict.BAD, "error_ratio", _errors_text(canary, one, others)
    elif missing is not None:
        verdict, reason, text = Verdict.INCONCLUSIVE, "inconclusive", missing
    elif slow_s is not None and clearly_more(one.slow, one.timed, others.slow, others.timed, SLOW_SHARE):
        verdict, reason, text = Verdict.BAD, "latency", _latency_text(one, others, slow_s)
    return Judgement(verdict=verdict, reason=reason, text=text, canary=one, peers=others, slow_s=slow_s)


def clearly_more(found: int, of: int, peers_found: int, of_peers: int, allowed: float) -> bool:
    """Is the true share of the one above that of the others plus `allowed`, beyond reasonable doubt?"""
    return found >= FEWEST and at_least(found, of) > at_most(peers_found, of_peers) + allowed


def at_least(found: int, of: int) -> float:
    """The Wilson lower bound of a share; 0 of nothing."""
    return 1 - at_most(of - found, of)


def at_most(found: int, of: int) -> float:
    """The Wilson upper bound of a share; 1 of nothing."""
    if not of:
        return 1.0
    share, unit = found / of, Z * Z / of
    doubt = Z * math.sqrt(share * (1 - share) / of + unit / (4 * of))
    return min(1.0, (share + unit / 2 + doubt) / (1 + unit))


# Private: figures, and the words for them


def _slow_s(peers: Sample, ratio: float) -> float | None:
    p95 = percentile(peers.latencies, PERCENT)
    return None if p95 is None or not ratio else ratio * p95 + SLACK_S


def _figures(sample: Sample, slow_s: float | None) -> Figures:
    slow = 0 if slow_s is None else sum(n for i, n in enumerate(sample.latencies) if n and least_latency(i) > slow_s)
    return Figures(
        answers=sample.answers,
        errors=min(sample.failed + sample.broken, sample.answers),  # an answer may be both
        timed=sum(sample.latencies),
        slow=slow,
        p95_s=percentile(sample.latencies, PERCENT),
    )


def _too_few(one: Figures, others: Figures, limits: model.Rollout) -> str | None:
    for side, whose in ((one, ""), (others, " by the peers of the canary")):
        usable = min(side.answers, side.timed) if limits.max_latency_ratio else side.answers
        if usable < limits.min_samples:
            return f"too few requests to judge: {usable} of {limits.min_samples}{whose}"
    return None


def _errors_text(sample: Sample, one: Figures, others: Figures) -> str:
    share = f" ({_percent(one.errors, one.answers)})" if one.errors else ""
    how = "with 5xx or broken off" if sample.broken else "with 5xx"
    peers = f"its peers {others.errors} of {others.answers}"
    return f"answered {one.errors} of {one.answers} requests {how}{share}, {peers}"


def _latency_text(one: Figures, others: Figures, slow_s: float) -> str:
    share = _percent(one.slow, one.timed)
    peers = f"its peers {others.slow} of {others.timed}"
    return f"took more than {_ms(slow_s)} for {one.slow} of {one.timed} requests ({share}), {peers}{_p95s(one, others)}"


def _all_text(sample: Sample, one: Figures, others: Figures) -> str:
    return _errors_text(sample, one, others) + _p95s(one, others)


def _p95s(one: Figures, others: Figures) -> str:
    if one.p95_s is None or others.p95_s is None:
        return ""
    return f"; p95 {_ms(one.p95_s)}, its peers {_ms(others.p95_s)}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
