"""Standby: for how long, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployer.manager import templates as module
from deployer.manager.templates import Templates
from deployer.state.store import Store


class Clock:
    """`uptime`, for the test to set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "uptime", made)
    return made


@pytest.fixture
def templates(tmp_path: Path) -> Iterator[Templates]:
    store = Store(tmp_path / "state.db")
    nobody: Any = SimpleNamespace(workers={}, messages=SimpleNamespace())
    made = Templates(store=store, catalog=nobody, pool=nobody, supervisor=nobody)
    store.put("release", "v2")
    made.stand_by("v1", 600)
    yield made
    store.close()


def test_standby_is_over_after_its_time(clock: Clock, templates: Templates) -> None:
    clock.now += 590
    assert (templates.standby_left("v1"), templates.kept()) == (10.0, {"v1"})
    assert templates.standby_left("v2") is None, "it is live"
    clock.now += 20
    assert (templates.standby_left("v1"), templates.kept()) == (0.0, set())


def test_standby_is_over_when_the_machine_was_started_anew(clock: Clock, templates: Templates) -> None:
    """Its clock begins at 0: a hundred days of uptime must not become as many of standby."""
    clock.now = 5.0
    assert (templates.standby_left("v1"), templates.kept()) == (0.0, set())


def test_no_standby_keeps_nothing(clock: Clock, templates: Templates) -> None:
    templates.stand_by("v1", 0)
    assert (templates.standby_left("v1"), templates.kept()) == (None, set())
