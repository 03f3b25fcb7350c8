"""What a worker's end cut: its own count, or what it said last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.releases.release import Release
from deployer.runtime.scoreboard import DRAINING, GONE, Record, Scoreboard
from deployer.state.store import Store
from deployer.wire.schema import Cut
from deployer.workers import cut
from deployer.workers.worker import State, Worker

RELEASE = Release("v1", Path("/"), Config(name="a", worker=WorkerConfig(app="a:b", drain_timeout="30s")), {})
TWO = Cut(requests=2, connections=0, drain_timeout="30s")


def worker(state: State = State.DRAINING, slot: int = 1) -> Worker:
    return Worker(
        id=1,
        slot=slot,
        generation=1,
        release=RELEASE,
        listeners=(),
        pid=7,
        ticks=70,
        pidfd=-1,
        spawned_at=0.0,
        state=state,
    )


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    Scoreboard.create(tmp_path / "board")
    with Scoreboard.open(tmp_path / "board") as board:
        made = board.claim(slot=1, generation=1, release=1, group=7)
        made.set("connections", 12)
        made.set("in_flight", 3)
        yield made
        del made


def test_one_that_came_to_its_end_has_counted(record: Record) -> None:
    record.set("cut_requests", 2)
    record.move(GONE)
    assert cut.of(worker(), record.board.row(record.index)) == TWO


def test_of_one_that_was_killed_what_it_said_last_counts(record: Record) -> None:
    """A connection with a request on it is one thing and not two."""
    record.move(DRAINING)
    found = cut.of(worker(), record.board.row(record.index))
    assert found == Cut(requests=3, connections=9, drain_timeout="30s", estimated=True)
    assert cut.fields(found) == {"cut_requests": 3, "cut_connections": 9, "cut_estimated": True}


def test_who_was_not_asked_to_go_or_has_no_record_cuts_nothing(record: Record) -> None:
    row = record.board.row(record.index)
    assert cut.of(worker(State.READY), row) is None
    assert cut.of(worker(slot=0), row) is None
    assert cut.of(worker(), None) is None
    assert cut.fields(None) == {}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


def told(store: Store, rollout: int) -> Cut | None:
    row = store.row("SELECT cut FROM rollouts WHERE id = ?", rollout)
    assert row is not None
    return cut.decoded(row["cut"])


def test_a_rollout_knows_what_all_its_workers_cut(store: Store) -> None:
    number = store.insert(
        "rollouts", kind="deploy", state="{}", request="{}", phase="promoted", who=str(os.getuid()), started_at=0.0
    )
    cut.add(store, number, Cut(requests=0, connections=0, drain_timeout="30s"))
    assert told(store, number) is None
    cut.add(store, number, TWO)
    cut.add(store, number, Cut(requests=1, connections=4, drain_timeout="10s", estimated=True))
    cut.add(store, number, None)
    cut.add(store, None, TWO)
    cut.add(store, number + 1, TWO)  # a row that state.db does not have any more
    assert told(store, number) == Cut(requests=3, connections=4, drain_timeout="10s", estimated=True)
