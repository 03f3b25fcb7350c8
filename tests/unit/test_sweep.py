"""Kill points are dealt out so that none is forgotten, and none is tried twice."""

from __future__ import annotations

import pytest

from tests import sweep

POINTS = [f"{where} {number}" for number in range(11) for where in ("before", "after")]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_each_point_has_its_turn(monkeypatch: pytest.MonkeyPatch, chunks: int, every: bool) -> None:
    """The halves make a whole; each has every commit once, in turns before and after it."""
    monkeypatch.setattr(sweep, "EVERY", every)
    halves = [
        [point for chunk in range(chunks) for point in sweep.dealt(POINTS, chunk, chunks, odd=odd)]
        for odd in (False, True)
    ]
    if every:
        assert [sorted(half) for half in halves] == [sorted(POINTS)] * 2
        return
    assert sorted(halves[0] + halves[1]) == sorted(POINTS)
    for half in halves:
        assert sorted(int(point.split()[1]) for point in half) == list(range(11))
        assert sorted({point.split()[0] for point in half}) == ["after", "before"]
