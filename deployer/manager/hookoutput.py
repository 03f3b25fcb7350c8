"""What a hook prints: all of it in the rollout's log, batched as events for those who watch, its end kept."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from pathlib import Path

from deployer.state.store import Store

BATCH_S = 0.2  # a hook's lines are told at most this often: each telling is a commit
BATCH_LINES = 200
LINES_TOLD = 5000  # of one hook; the log has the rest
LINE_TOLD = 2000  # characters of a line
LOG_MAX = 16 * 1024 * 1024  # bytes of a rollout's log
TAIL_LINES = 30


class HookOutput:
    """Feed it with `line`; `close` when there are no more."""

    def __init__(self, store: Store, rollout: int, stage: str, hook: str, path: Path) -> None:
        self._store, self._rollout, self._stage, self._hook = store, rollout, stage, hook
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._batch: list[str] = []
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fd: int | None = None
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            pass  # a full disk is no reason to stop a rollout: the events have it
        self._write(f"--- {stage}: {hook}")

    def line(self, text: str) -> None:
        self.tail.append(text[:LINE_TOLD])
        self._write(text)
        if self._told == LINES_TOLD:
            self._batch.append("... more lines are in the rollout's log")
        if self._told < LINES_TOLD:
            self._batch.append(text[:LINE_TOLD])
        self._told += 1
        if len(self._batch) >= BATCH_LINES:
            self._tell()
        elif self._batch and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._tell)

    def close(self) -> None:
        self._tell()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._batch = self._batch, []
        if lines:
            self._store.emit("hook.output", rollout=self._rollout, stage=self._stage, hook=self._hook, lines=lines)

    def _write(self, text: str) -> None:
        data = text.encode() + b"\n"
        if self._fd is None or self._size + len(data) > LOG_MAX:
            return
        try:
            os.write(self._fd, data)
            self._size += len(data)
        except OSError:
            pass  # as above
