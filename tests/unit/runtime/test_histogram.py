"""Buckets and percentiles of latencies."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from deployer.runtime.histogram import BUCKETS, added, bucket, lower, percentile, since

SECONDS = st.floats(0, 100)


@given(SECONDS)
def test_a_latency_lies_in_its_bucket(seconds: float) -> None:
    index = bucket(seconds)
    assert lower(index) <= seconds + 1e-9
    assert seconds < lower(index + 1) + 1e-9


@given(SECONDS, SECONDS)
def test_a_longer_latency_is_in_no_earlier_bucket(one: float, other: float) -> None:
    assert (bucket(one) <= bucket(other)) == (bucket(one) == bucket(other) or one < other)


def test_buckets_are_narrow_and_the_last_holds_the_rest() -> None:
    assert all(lower(index + 1) / lower(index) <= 1.13 for index in range(8, BUCKETS))
    assert bucket(1e9) == BUCKETS - 1
    assert bucket(-1.0) == 0


def test_percentiles_are_near_the_true_ones() -> None:
    source = random.Random(1)
    latencies = sorted(source.lognormvariate(-4, 1) for _ in range(5000))
    counts = [0] * BUCKETS
    for latency in latencies:
        counts[bucket(latency)] += 1
    for percent in (50, 90, 99):
        true = latencies[int(len(latencies) * percent / 100) - 1]
        found = percentile(counts, percent)
        assert found is not None
        assert abs(found - true) / true < 0.07
    assert percentile([0] * BUCKETS, 50) is None


def test_workers_add_up_and_two_looks_subtract() -> None:
    assert added([[1, 2], [3, 4]]) == [4, 6]
    assert added([]) == [0] * BUCKETS
    assert since([5, 4], [2, 4]) == [3, 0]
