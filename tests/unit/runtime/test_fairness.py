"""Who takes the next visitor."""

from __future__ import annotations

import random

import pytest

from deployer.runtime.fairness import DELAY_MAX_S, DELAY_S, TAU_S, delay, first_load, lead, level, load_after


def test_who_has_fewer_connections_is_never_ahead() -> None:
    assert lead(3, 100.0, [(4, 0.0), (3, 200.0)]) == 0
    assert lead(5, 0.0, [(4, 100.0), (2, 100.0)]) == 3
    assert lead(0, 0.0, []) == 0


def test_among_equals_who_took_fewer_lately_goes_first() -> None:
    quiet, busy = load_after(0.0, 100.0), load_after(load_after(0.0, 100.0), 100.0)
    assert lead(1, busy, [(1, quiet)]) == 1
    assert lead(1, quiet, [(1, busy)]) == 0
    assert lead(1, busy, [(1, busy)]) == 0


def test_a_load_counts_what_came_and_fades() -> None:
    load = 0.0
    for _ in range(10):
        load = load_after(load, 50.0)
    assert level(load, 50.0) == pytest.approx(10)
    assert level(load, 50.0 + TAU_S) == pytest.approx(10 / 2.718, rel=0.01)
    assert level(load, 50.0 + 1000 * TAU_S) == 0.0
    assert level(load_after(load, 50.0 + 1000 * TAU_S), 50.0 + 1000 * TAU_S) == pytest.approx(1)


def test_a_newcomer_does_not_have_to_catch_up() -> None:
    assert first_load([3.0, 7.0]) == 7.0
    assert first_load([]) == 0.0


def test_who_is_further_ahead_waits_longer_within_a_limit() -> None:
    assert (delay(0), delay(1), delay(10_000)) == (0.0, DELAY_S, DELAY_MAX_S)


@pytest.mark.parametrize("stay_s", [0.0, 0.05, 1e9])
def test_visitors_are_shared_evenly(stay_s: float) -> None:
    """Four workers, 2,000 visitors, short or for ever; any worker that is not ahead may happen to take one."""
    source, now = random.Random(2), 1000.0
    loads, leaves = [0.0] * 4, [[0.0][:0] for _ in range(4)]
    taken = [0] * 4
    for _ in range(2000):
        now += 0.001
        leaves = [[at for at in those if at > now] for those in leaves]
        state = [(len(those), load) for those, load in zip(leaves, loads, strict=True)]
        free = [n for n in range(4) if not lead(*state[n], [state[m] for m in range(4) if m != n])]
        chosen = source.choice(free)
        loads[chosen] = load_after(loads[chosen], now)
        leaves[chosen].append(now + stay_s)
        taken[chosen] += 1
    assert max(taken) / min(taken) <= 1.1
