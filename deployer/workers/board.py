"""The scoreboard of `[worker] app`s as the manager reads it: what each worker says of itself."""

from __future__ import annotations

import os
from pathlib import Path

from deployer.runtime.scoreboard import Row, Scoreboard


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
