"""Messages of workers, as the manager passes them on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from deployer.logs.applog import AppLog
from deployer.paths import Layout
from deployer.state.store import Store
from deployer.workers.pool import MESSAGES_AT_ONCE, Pool


class Line:
    """A channel whose worker never stops talking, and never listens."""

    def __init__(self, *, has_room: bool = True) -> None:
        self.has_room, self.sent = has_room, 0

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        return {"op": "broadcast", "data": 1}, []

    def send(self, message: dict[str, Any]) -> bool:
        self.sent += 1
        return self.has_room


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    store, keeper, log = Store(tmp_path / "state.db"), Any, AppLog(tmp_path / "app.log")
    yield Pool(app="a", store=store, keeper=keeper, layout=Layout(tmp_path), log=log, base_env={})  # type: ignore[arg-type]
    store.close()


def worker(slot: int, line: Line) -> Any:
    return SimpleNamespace(slot=slot, pid=slot, channel=line, exit=None, deaf=False, forks=False)


def test_one_that_never_stops_talking_does_not_stop_us(pool: Pool) -> None:
    line = Line()
    pool.workers = {1: worker(1, line)}
    pool._on_channel(pool.workers[1])
    assert line.sent == MESSAGES_AT_ONCE


def test_one_that_does_not_listen_is_noted_once(pool: Pool) -> None:
    deaf = Line(has_room=False)
    pool.workers = {1: worker(1, Line()), 2: worker(2, deaf)}
    with capture_logs() as logs:
        pool._on_channel(pool.workers[1])
        deaf.has_room = True
        pool._on_channel(pool.workers[1])
        deaf.has_room = False
        pool._on_channel(pool.workers[1])
    assert [(entry["event"], entry["slot"]) for entry in logs] == [("worker.message_lost", 2)] * 2
