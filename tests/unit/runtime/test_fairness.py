"""Who takes the next visitor."""

from __future__ import annotations

import random

import pytest

from deployer.runtime.fairness import DELAY_MAX_S, TAU_S, delay, first_load, lately, load_after


def taken(count: int, now: float) -> float:
    """The load of a worker that took `count` connections at `now`."""
    load = 0.0
    for _ in range(count):
        load = load_after(load, now)
    return load


def test_who_has_fewer_connections_never_waits() -> None:
    assert delay((3, 0.0), [(4, 0.0), (3, 0.0), (3, 0.5)]) == 0
    assert delay((0, 0.0), []) == 0
    assert delay((16, 0.0), [(15, 0.0)]) > 0


def test_small_leads_are_left_alone_where_much_comes() -> None:
    assert delay((0, 1050.0), [(0, 1000.0)]) == 0
    assert delay((101, 1000.0), [(100, 1000.0)]) == 0
    assert delay((0, 1090.0), [(0, 1000.0)]) == DELAY_MAX_S


def test_who_is_further_ahead_waits_longer_within_a_limit() -> None:
    assert 0 < delay((3, 0.0), [(2, 0.0)]) < delay((5, 0.0), [(2, 0.0)]) < delay((5000, 0.0), [(2, 0.0)]) == DELAY_MAX_S


def test_a_load_counts_what_came_and_fades() -> None:
    load = taken(10, 50.0)
    assert lately(load, 50.0) == pytest.approx(10)
    assert lately(load, 50.0 + TAU_S) == pytest.approx(10 / 2.718, rel=0.01)
    assert lately(load, 50.0 + 1000 * TAU_S) == 0
    late = load_after(load, 50.0 + 1000 * TAU_S)
    assert lately(late, 50.0 + 1000 * TAU_S) == pytest.approx(1)


def test_a_newcomer_does_not_have_to_catch_up() -> None:
    assert first_load([3.0, 7.0]) == 7.0
    assert first_load([]) == 0.0


@pytest.mark.parametrize(("visitors", "every_s", "stay_s"), [(2000, 0.001, 0.0), (2000, 0.001, 0.05), (64, 0.2, 1e9)])
def test_visitors_are_shared_evenly(visitors: int, every_s: float, stay_s: float) -> None:
    """Four workers; any of those that need not wait may happen to take the next."""
    source, now = random.Random(2), 1000.0
    loads = [0.0] * 4
    open_now: list[list[tuple[float, float]]] = [[], [], [], []]  # (came, leaves)
    counts = [0] * 4
    for _ in range(visitors):
        now += every_s
        open_now = [[one for one in those if one[1] > now] for those in open_now]
        settled = [sum(came < now - 0.4 for came, _ in those) for those in open_now]
        burdens = [(count, lately(load, now)) for count, load in zip(settled, loads, strict=True)]
        free = [n for n in range(4) if not delay(burdens[n], burdens[:n] + burdens[n + 1 :])]
        chosen = source.choice(free)
        loads[chosen] = load_after(loads[chosen], now)
        open_now[chosen].append((now, now + stay_s))
        counts[chosen] += 1
    assert max(counts) / min(counts) <= 1.15
