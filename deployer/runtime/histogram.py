"""A histogram of latencies with fixed buckets, and percentiles of it (pure).

Eight buckets to each doubling, from a tick of 1.024 microseconds to about two minutes: a bucket is at most 12.5 %
wide, so a percentile is off by half of that at most, whatever the shape. Counts of several workers add up bucket by
bucket.
"""

from __future__ import annotations

from collections.abc import Sequence

SUB_BITS = 3
SUB = 1 << SUB_BITS
TOP_BITS = 27  # 2**27 ticks are 137 s: longer falls into the last bucket
TICK_BITS = 10  # of nanoseconds
TICK_S = (1 << TICK_BITS) / 1e9
BUCKETS = (TOP_BITS - SUB_BITS + 1) * SUB


def bucket(seconds: float) -> int:
    """The bucket of a latency. `counting` has the same once more, without the call."""
    ticks = int(seconds / TICK_S)
    if ticks < SUB:
        return max(ticks, 0)
    shift = ticks.bit_length() - SUB_BITS - 1
    return min((shift << SUB_BITS) + (ticks >> shift), BUCKETS - 1)


def lower(index: int) -> float:
    """The least latency of a bucket, in seconds."""
    if index < SUB:
        return index * TICK_S
    shift = (index >> SUB_BITS) - 1
    return ((index & (SUB - 1) | SUB) << shift) * TICK_S


def percentile(counts: Sequence[int], percent: float) -> float | None:
    """The latency in seconds that `percent` of the requests did not exceed; None without requests."""
    total = sum(counts)
    if not total:
        return None
    rank = max(1.0, total * percent / 100)
    seen = 0
    for index, count in enumerate(counts):
        if seen + count >= rank:
            low, high = lower(index), lower(index + 1)
            return low + (high - low) * (rank - seen) / count
        seen += count
    return lower(BUCKETS)


def added(parts: Sequence[Sequence[int]]) -> list[int]:
    """Bucket by bucket, the counts of several workers."""
    return [sum(column) for column in zip(*parts, strict=True)] if parts else [0] * BUCKETS


def since(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """What came between two looks at the same worker."""
    return [max(0, new - old) for new, old in zip(now, before, strict=True)]
