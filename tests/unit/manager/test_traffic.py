"""What people see of visitors, from records of the scoreboard."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from deployer.manager.traffic import (
    APART_S,
    KEPT,
    WINDOW_S,
    Look,
    Traffics,
    baseline,
    cumulative,
    total_seconds,
    traffic,
)
from deployer.runtime.histogram import BUCKETS, bucket
from deployer.runtime.scoreboard import INTEGERS, REALS, SERVING, Row
from deployer.wire.schema import Traffic

KEY = (7, 70)


def histogram(**seconds: int) -> tuple[int, ...]:
    """`ms5=3`: three answers that took 5 ms."""
    counts = [0] * BUCKETS
    for name, number in seconds.items():
        counts[bucket(int(name.removeprefix("ms")) / 1000)] += number
    return tuple(counts)


def row(**values: object) -> Row:
    blank = dict.fromkeys(INTEGERS, 0) | dict.fromkeys(REALS, 0.0)
    known = {"index": 0, "pid": 7, "ticks": 70, "slot": 1, "state": SERVING, "error": "", "status": ""}
    return Row(**{**blank, "histogram": (0,) * BUCKETS, **known, **values})  # type: ignore[arg-type]


def test_the_first_look_is_at_the_whole_life() -> None:
    record = row(started=100.0, status_2xx=30, status_5xx=10, histogram=histogram(ms5=39, ms900=1))
    found = Traffics().of({KEY: record}, [KEY], 120.0)[KEY]
    assert (found.window_s, found.requests_per_s, found.error_ratio, found.requests) == (20.0, 2.0, 0.25, 40)
    assert found.p50_ms == pytest.approx(5, rel=0.1)
    assert found.p99_ms == pytest.approx(900, rel=0.15)


def test_later_looks_are_at_what_came_since() -> None:
    traffics, record = Traffics(), row(started=100.0, status_2xx=1000, histogram=histogram(ms900=1000))
    traffics.of({KEY: record}, [KEY], 200.0)
    later = replace(record, status_2xx=1020, histogram=histogram(ms900=1000, ms5=20))
    found = traffics.of({KEY: later}, [KEY], 204.0)[KEY]
    assert (found.window_s, found.requests_per_s, found.error_ratio) == (4.0, 5.0, 0.0)
    assert found.p99_ms == pytest.approx(5, rel=0.15)
    silent = traffics.of({KEY: later}, [KEY], 220.0)[KEY]
    assert (silent.requests_per_s, silent.p50_ms, silent.error_ratio, silent.requests) == (0.0, None, None, 1020)


def test_clients_that_ask_at_the_same_time_see_the_same() -> None:
    """However many there are and however often they ask: what is compared with is never of a moment ago."""
    traffics = Traffics()
    for step in range(400):  # ten requests a second, asked for each 50 ms by two
        now, count = 100.0 + step * 0.05, step // 2
        record = row(started=100.0, status_2xx=count, histogram=histogram(ms5=count))
        one, other = (traffics.of({KEY: record}, [KEY], now + late)[KEY] for late in (0.0, 0.001))
        if now > 102.0:
            assert one.requests_per_s == pytest.approx(10, rel=0.1)
            assert other.requests_per_s == pytest.approx(one.requests_per_s, rel=0.01)
        if now > 100.0 + 2 * WINDOW_S:
            assert WINDOW_S <= one.window_s <= WINDOW_S + 2 * APART_S


def test_a_baseline_is_old_enough_and_no_older_than_needed() -> None:
    looks = [Look(float(at)) for at in range(10)]
    assert baseline([], 5.0) is None
    assert baseline(looks[:1], 0.5) is None
    assert baseline(looks[:2], 1.5) is looks[0]
    assert baseline(looks, 9.5) is looks[4]


def test_few_looks_are_kept_and_only_of_workers_that_are_there() -> None:
    traffics = Traffics()
    for now in range(100):
        traffics.of({KEY: row()}, [KEY, (8, 80)], float(now))
    assert {key: len(looks) for key, looks in traffics._looks.items()} == {KEY: KEPT}
    assert traffics.of({KEY: row()}, [(8, 80)], 101.0) == {}
    assert traffics._looks == {}


def test_numbers_that_were_not_written_at_one_moment_make_no_nonsense() -> None:
    before = Look(1.0, requests=10, errors=3, histogram=histogram(ms5=10))
    found = traffic(row(status_2xx=1, status_5xx=4), before, 1.0)
    assert (found.requests_per_s, found.error_ratio, found.p50_ms) == (0.0, None, None)
    assert traffic(row(status_5xx=14), before, 3.0).error_ratio == 1.0


def test_what_a_worker_says_is_passed_on() -> None:
    record = row(connections=12, websockets=2, in_flight=3, error="ValueError: x", error_at=5.0, status="warm")
    found = traffic(record, Look(0.0), 1.0)
    assert (found.connections, found.websockets, found.in_flight) == (12, 2, 3)
    assert (found.last_error, found.last_error_at, found.report) == ("ValueError: x", 5.0, "warm")
    quiet = traffic(row(), Look(0.0), 1.0)
    assert (quiet.last_error, quiet.last_error_at, quiet.report) == (None, None, None)
    assert isinstance(quiet, Traffic)


def test_buckets_of_metrics_lie_on_edges_of_the_fine_ones() -> None:
    """So no answer is counted on the wrong side of an edge."""
    edges = cumulative((1,) * BUCKETS)
    assert len(edges) < 25
    assert [edge for edge, _ in edges] == sorted(edge for edge, _ in edges)
    assert edges[-1] == (math.inf, BUCKETS)
    for edge, count in edges[:-1]:
        assert bucket(edge * 1.0001) == count
        assert bucket(edge * 0.9999) == count - 1


def test_the_sum_of_latencies_is_about_right() -> None:
    assert total_seconds(histogram(ms5=100, ms800=10)) == pytest.approx(8.5, rel=0.0625)
