"""The manager's reader of the scoreboard: it follows the file, and knows workers by pid and start time."""

from __future__ import annotations

import os
from pathlib import Path

from deployer.runtime.scoreboard import DRAINING, SERVING, Scoreboard, start_ticks
from deployer.workers.board import Board, Pulse


def test_workers_are_found_by_pid_and_start_time(tmp_path: Path) -> None:
    """A pid alone may be another's by now; and there may be no file at all."""
    board, me = Board(tmp_path / "board"), os.getpid()
    assert board.row(me, start_ticks(me)) is None
    Scoreboard.create(tmp_path / "board")
    with Scoreboard.open(tmp_path / "board") as writer:
        writer.claim(slot=3, generation=1, release=1, group=7)
        found = board.row(me, start_ticks(me))
        assert found is not None
        assert found.slot == 3
        assert board.row(me, start_ticks(me) + 1) is None
    board.close()


def test_a_file_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    """As when a newer deployer made one of another version."""
    path, board, me = tmp_path / "board", Board(tmp_path / "board"), os.getpid()
    Scoreboard.create(path)
    assert board.rows() == {}
    path.unlink()
    path.write_bytes(b"another version")
    assert board.rows() == {}
    path.unlink()
    Scoreboard.create(path)
    with Scoreboard.open(path) as writer:
        writer.claim(slot=1, generation=1, release=1, group=7)
    assert board.row(me, start_ticks(me)) is not None
    board.close()


def test_the_pulse_of_those_that_serve(tmp_path: Path) -> None:
    """One that still starts has no heart that could stand still."""
    Scoreboard.create(tmp_path / "board")
    board, me = Board(tmp_path / "board"), os.getpid()
    with Scoreboard.open(tmp_path / "board") as writer:
        record = writer.claim(slot=1, generation=1, release=1, group=7)
        assert board.pulses() == {}
        record.move(SERVING)
        record.set_real("heartbeat", 12.5)
        record.set_real("progress", 11.5)
        assert board.pulses() == {(me, start_ticks(me)): Pulse(12.5, 11.5)}
        record.move(DRAINING)
        assert board.pulses() == {}
    board.close()
