"""Records of workers in a file that all map."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.runtime import scoreboard as module
from deployer.runtime.scoreboard import (
    DRAINING,
    GONE,
    SERVING,
    STARTING,
    Record,
    Row,
    Scoreboard,
    is_alive,
    start_ticks,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Scoreboard.create(tmp_path / "board")
    return tmp_path / "board"


@pytest.fixture
def board(path: Path) -> Iterator[Scoreboard]:
    with Scoreboard.open(path) as found:
        yield found


def claim(board: Scoreboard, *, slot: int = 1, group: int = 7) -> Record:
    return board.claim(slot=slot, generation=3, release=12, group=group)


def only(board: Scoreboard) -> Row:
    (row,) = board.rows()
    return row


def kill(record: Record, *, ago: float = 0.0) -> None:
    """As though its process were gone."""
    record.set("ticks", 1)
    record.set_real("heartbeat", record.reals[record.base + module.FIELD["heartbeat"]] - ago)


def test_what_a_worker_writes_is_read_in_another_mapping(board: Scoreboard, path: Path) -> None:
    record = claim(board)
    record.set("status_2xx", 2**63)
    record.set_text("error", "ValueError: " + "ü" * 600)
    record.set_text("status", "line 1")
    record.histogram[5] += 9
    with Scoreboard.open(path) as other:
        row = only(other)
    assert (row.pid, row.slot, row.generation, row.release, row.group) == (os.getpid(), 1, 3, 12, 7)
    assert (row.state, row.requests, row.histogram[5], row.alive) == (STARTING, 2**63, 9, True)
    assert row.error.startswith("ValueError: üü")
    assert row.status == "line 1"


def test_the_record_of_a_living_worker_is_never_taken(board: Scoreboard) -> None:
    assert [claim(board).index for _ in range(3)] == [0, 1, 2]


def test_the_record_of_a_dead_worker_stays_readable_for_a_while(board: Scoreboard) -> None:
    first = claim(board)
    first.set("cut_requests", 4)
    kill(first)
    assert claim(board).index == 1
    assert board.rows()[0].cut_requests == 4
    assert not board.rows()[0].alive
    kill(first, ago=module.KEEP_S + 1)
    again = claim(board, slot=5)
    assert (again.index, again.get("cut_requests"), again.get("slot")) == (0, 0, 5)


def test_a_full_board_gives_the_place_of_the_longest_dead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS", 3)
    path.unlink()
    Scoreboard.create(path)
    with Scoreboard.open(path) as board:
        records = [claim(board) for _ in range(3)]
        with pytest.raises(RuntimeError, match="all 3 records"):
            claim(board)
        kill(records[0], ago=1)
        kill(records[2], ago=2)
        assert claim(board).index == 2


def test_competitors_serve_on_the_same_socket(board: Scoreboard) -> None:
    mine, other, draining, elsewhere, starting = (claim(board, group=group) for group in (7, 7, 7, 8, 7))
    for record in (mine, other, elsewhere):
        record.move(SERVING)
    draining.move(DRAINING)
    assert board.competitors(7, mine.index) == [other.base]
    before = board.epoch
    other.move(GONE)
    starting.move(SERVING)
    assert board.competitors(7, mine.index) == [starting.base]
    assert board.epoch == before + 2


def test_a_worker_whose_file_is_gone_or_anothers_leaves_all_the_same(
    board: Scoreboard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, before = claim(board), board.epoch
    path.unlink()
    record.move(SERVING)

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(module.os, "open", refuse)
    record.move(DRAINING)
    assert (record.get("state"), board.epoch) == (DRAINING, before + 2)


def test_no_reader_sees_half_a_text(board: Scoreboard) -> None:
    """A writer that never rests, and texts that are of one letter each."""
    record = claim(board)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for letter in "abc":
                record.set_text("error", letter * 400)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [row.error for row in (board.row(0) for _ in range(2000)) if row is not None]
    finally:
        stop.set()
        writer.join()
    assert all(len(set(text)) <= 1 for text in seen)


def test_a_file_of_another_version_is_refused_and_made_anew(path: Path) -> None:
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a scoreboard"):
        Scoreboard.open(path)
    Scoreboard.create(path)
    with Scoreboard.open(path) as board:
        claim(board)
    Scoreboard.create(path)  # nothing is lost of one that fits
    with Scoreboard.open(path) as board:
        assert only(board).slot == 1


def test_who_has_the_old_file_mapped_lives_on_when_it_is_replaced(
    board: Scoreboard, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cutting a file that is mapped kills with SIGBUS."""
    record = claim(board)
    monkeypatch.setattr(module, "VERSION", 99)
    Scoreboard.create(path)
    record.set("accepted", 5)
    assert only(board).accepted == 5
    with Scoreboard.open(path) as new:
        assert new.rows() == []


def test_pages_nobody_wrote_take_no_room(path: Path) -> None:
    assert path.stat().st_blocks * 512 < 64 * 1024 < path.stat().st_size


def test_a_process_is_told_from_another_of_its_number() -> None:
    ticks = start_ticks(os.getpid())
    assert is_alive(os.getpid(), ticks)
    assert not is_alive(os.getpid(), ticks + 1)
    assert not is_alive(0, 0)
    assert start_ticks(2**22) == 0
