"""Rollouts that wait their turn, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.manager.queue import Queue
from deployer.rollout.events import Failure
from deployer.rollout.machine import Kind
from deployer.state.store import Store
from deployer.wire.schema import DeployRequest, Event, RollbackRequest


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def store(tmp_path: Path, heard: list[Event]) -> Iterator[Store]:
    made = Store(tmp_path / "state.db", on_event=heard.append)
    yield made
    made.close()


def test_first_come_first_served_across_managers(store: Store, tmp_path: Path) -> None:
    queue = Queue(store)
    commands = [DeployRequest(who="ana", ref="main"), RollbackRequest(who="bob", release="v3")]
    numbers = [
        queue.add(kind, command, behind="deploy v4")
        for kind, command in zip((Kind.DEPLOY, Kind.ROLLBACK), commands, strict=True)
    ]
    again = Queue(Store(tmp_path / "state.db"))
    assert again.numbers() == numbers
    assert [again.command(number)[1] for number in numbers] == commands
    assert [again.place(number) for number in numbers] == [1, 2]
    assert again.needs() == {"v3"}
    again._store.close()


def test_who_leaves_ends_like_any_other_rollout_and_the_others_move_up(store: Store, heard: list[Event]) -> None:
    queue = Queue(store)
    first, second = (queue.add(Kind.DEPLOY, DeployRequest(who="ana"), behind="x") for _ in range(2))
    heard.clear()
    queue.drop(first, Failure(reason="superseded", what="superseded by bob before it began"))
    finished, moved = heard
    assert (finished.event, finished.rollout, finished.data["exit_code"]) == ("rollout.finished", first, 6)
    assert finished.data["problem"].what == "superseded by bob before it began"
    assert (moved.event, moved.rollout, moved.data["place"]) == ("rollout.queued", second, 1)
    assert queue.numbers() == [second]


def test_what_fails_in_its_turn_keeps_its_exit_code(store: Store, heard: list[Event]) -> None:
    queue = Queue(store)
    number = queue.add(Kind.DEPLOY, DeployRequest(who="ana"), behind="x")
    queue.drop(number, Failure(reason="config", what="deployer.toml:3: unknown key", exit=78))
    assert heard[-1].data["exit_code"] == 78
