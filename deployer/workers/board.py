"""The scoreboard of `[worker] app`s as the manager reads it: what each worker says of itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from deployer.runtime.scoreboard import FIELD, SERVING, Row, Scoreboard


class Pulse(NamedTuple):
    """When a worker that serves last showed that it lives (time.monotonic)."""

    heartbeat: float  # its event loop turned
    progress: float  # ... and not every thread was stuck


class Board:
    """Opened when it is there, and anew when another file took its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._board: Scoreboard | None = None
        self._inode = 0

    def row(self, pid: int, ticks: int) -> Row | None:
        """The record of a worker, also when it has ended; None for one that never had any (a `command`)."""
        return self.rows().get((pid, ticks))

    def rows(self) -> dict[tuple[int, int], Row]:
        """(pid, start time) -> record of every worker whose record no other has taken yet."""
        board = self._open()
        return {} if board is None else {(row.pid, row.ticks): row for row in board.rows()}

    def is_empty(self, pid: int, ticks: int) -> bool:
        """Does the worker say that it has no visitors? One that says nothing may have some."""
        row = self.row(pid, ticks)
        return row is not None and not row.connections and not row.in_flight

    def pulses(self) -> dict[tuple[int, int], Pulse]:
        """(pid, start time) -> pulse of every worker that serves, or did until it was killed. Reads little: it is
        asked all the time."""
        board = self._open()
        found: dict[tuple[int, int], Pulse] = {}
        for index in range(0 if board is None else board.used):
            assert board is not None
            base = board.base(index)
            pid, ticks, state = (board.words[base + FIELD[name]] for name in ("pid", "ticks", "state"))
            pulse = Pulse(*(board.reals[base + FIELD[name]] for name in Pulse._fields))
            if pid and state == SERVING and pid == board.words[base + FIELD["pid"]]:
                found[pid, ticks] = pulse
        return found

    def _open(self) -> Scoreboard | None:
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            return None
        if self._board is None or inode != self._inode:
            self.close()
            try:
                self._board, self._inode = Scoreboard.open(self._path), inode
            except (OSError, ValueError):
                return None  # of another version, until a worker of ours is started
        return self._board

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
