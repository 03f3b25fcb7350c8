"""What the canary and its peers have answered since the soak began, read from the scoreboard."""

from __future__ import annotations

from collections.abc import Iterable

from deployer.config import model
from deployer.rollout.numbers import Judgement, Sample, judge
from deployer.runtime.histogram import added, since
from deployer.runtime.scoreboard import Row
from deployer.workers.pool import Pool
from deployer.workers.worker import State, Worker

Process = tuple[int, int]
"""pid and start time."""


class Tally:
    """What workers answered since the first look at each; of one that is gone, up to the last."""

    def __init__(self) -> None:
        self._first: dict[Process, Row] = {}
        self._warm: dict[Process, Row] | None = None
        self._last: dict[Process, Row] = {}

    def see(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._first.setdefault((row.pid, row.ticks), row)
            self._last[row.pid, row.ticks] = row

    def warm(self) -> None:
        """Latencies count from this look on."""
        self._warm = dict(self._last)

    def __bool__(self) -> bool:
        return bool(self._first)

    def sample(self) -> Sample:
        pairs = [(now, self._first[process]) for process, now in self._last.items()]
        warm = self._last if self._warm is None else self._first | self._warm
        timed = [(now, warm[process]) for process, now in self._last.items()]
        return Sample(
            answers=sum(now.requests - then.requests for now, then in pairs),
            failed=sum(now.status_5xx - then.status_5xx for now, then in pairs),
            broken=sum(now.broken - then.broken for now, then in pairs),
            latencies=added([since(now.histogram, then.histogram) for now, then in timed]),
        )


class Comparison:
    """Looks at the canary and at the ready workers of `generation` on the same sockets."""

    def __init__(self, pool: Pool, generation: int | None, limits: model.Rollout) -> None:
        self._pool, self._generation, self._limits = pool, generation, limits
        self._canary, self._peers = Tally(), Tally()
        self._is_warm = False
        self.last_error = ""  # of the canary

    def look(self, canary: Worker) -> Judgement | None:
        """None where there is nothing to compare: a `command`, whose answers nobody counts, or no release before."""
        rows = self._pool.board.rows()
        own = rows.get(_process(canary))
        if own is None:
            return None
        peers = [rows[_process(worker)] for worker in self._ready_peers() if _process(worker) in rows]
        self._canary.see([own])
        self._peers.see(row for row in peers if row.group == own.group)
        self.last_error = own.error
        one, others = self._canary.sample(), self._peers.sample()
        if not self._is_warm and one.answers:
            # The first answers of a process are slow in any release: what it loads at first use, empty caches.
            self._is_warm = True
            self._canary.warm()
            self._peers.warm()
        return judge(one, others, self._limits) if self._peers else None

    def _ready_peers(self) -> Iterable[Worker]:
        return (w for w in self._pool.workers.values() if w.generation == self._generation and w.state is State.READY)


def _process(worker: Worker) -> Process:
    return worker.pid, worker.ticks
