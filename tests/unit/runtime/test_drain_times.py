"""When a drain does what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.runtime.drain import Times


@given(st.floats(0, 3600), st.integers(0, 3000))
def test_every_goodbye_is_said_before_the_end(timeout: float, count: int) -> None:
    times = Times.of(timeout)
    assert 0 <= times.linger <= times.spread <= timeout
    assert times.end <= timeout
    goodbyes = times.goodbyes(count, times.linger)
    assert len(goodbyes) == count
    assert all(times.linger <= at <= times.spread + 1e-6 for at in goodbyes)


def test_few_are_told_soon_and_many_are_spread_over_the_time() -> None:
    times = Times.of(30.0)
    assert (times.linger, times.end) == (5.0, 28.0)
    assert times.goodbyes(3, 0.0) == pytest.approx([0.0, 0.05, 0.1])
    assert times.goodbyes(3000, 0.0)[-1] == pytest.approx(15.0, rel=0.01)
