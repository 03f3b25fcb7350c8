"""What a worker's end took from visitors: read from its record on the scoreboard, kept with the rollout it went for."""

from __future__ import annotations

from typing import Any

import msgspec

from deployer.runtime.scoreboard import GONE, Row
from deployer.state.store import Store
from deployer.wire.schema import Cut
from deployer.workers.worker import State, Worker


def of(worker: Worker, row: Row | None) -> Cut | None:
    """None where nobody can tell: a plain command, a worker that was not asked to go, the preflight's own."""
    if row is None or worker.state is not State.DRAINING or not worker.in_slot:
        return None
    timeout = worker.release.config.worker.drain_timeout
    if row.state == GONE:  # it came to its own end, and has counted
        return Cut(requests=row.cut_requests, connections=row.cut_connections, drain_timeout=timeout)
    others = max(0, row.connections - row.in_flight)
    return Cut(requests=row.in_flight, connections=others, drain_timeout=timeout, estimated=True)


def is_any(cut: Cut | None) -> bool:
    return cut is not None and bool(cut.requests or cut.connections)


def fields(cut: Cut | None) -> dict[str, Any]:
    """As `worker.exited` tells it."""
    if cut is None:
        return {}
    told = {"cut_requests": cut.requests, "cut_connections": cut.connections}
    return told | ({"cut_estimated": True} if cut.estimated else {})


def added(before: Cut | None, cut: Cut) -> Cut:
    """Of all workers of a rollout; the drain_timeout is that of the last one that cut something."""
    if before is None:
        return cut
    return msgspec.structs.replace(
        cut,
        requests=before.requests + cut.requests,
        connections=before.connections + cut.connections,
        estimated=before.estimated or cut.estimated,
    )


def add(store: Store, rollout: int | None, cut: Cut | None) -> None:
    """In the transaction that takes the worker's row away: so it is counted once, whenever the manager is killed."""
    row = store.row("SELECT cut FROM rollouts WHERE id = ?", rollout)
    if row is None or cut is None or not is_any(cut):
        return
    total = added(decoded(row["cut"]), cut)
    store.update("rollouts", "id", rollout, cut=msgspec.json.encode(total).decode())


def decoded(text: str | None) -> Cut | None:
    return None if text is None else msgspec.json.decode(text, type=Cut)
