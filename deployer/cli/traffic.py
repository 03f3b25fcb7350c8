"""Visitors in words: what workers of `[worker] app` count, and what the end of a drain cut."""

from __future__ import annotations

from deployer.cli.output import clean
from deployer.units import format_duration
from deployer.wire.schema import Cut, Traffic, WorkerInfo

COLUMNS = ("REQ/S", "P50", "P99", "5XX")
SPARED = ("LAST EXIT", "RESTARTS", "CPU", "UP")
"""Columns that a narrow terminal goes without, in this order, where there are the ones above."""

Rows = list[tuple[str, ...]]


def cells(traffic: Traffic | None, dash: str) -> tuple[str, ...]:
    """For COLUMNS; of the 5xx the total, and their share of the recent answers."""
    if traffic is None:
        return (dash,) * len(COLUMNS)
    share = f" {traffic.error_ratio:.1%}" if traffic.error_ratio else ""
    p50, p99 = (dash if ms is None else latency(ms) for ms in (traffic.p50_ms, traffic.p99_ms))
    return rate(traffic.requests_per_s), p50, p99, f"{traffic.status_5xx}{share}"


def rate(per_s: float) -> str:
    if per_s >= 9999.5:
        return f"{per_s / 1000:.0f}k"
    return f"{per_s:.0f}" if per_s >= 9.95 or not per_s else f"{per_s:.1f}"


def latency(ms: float) -> str:
    """Two digits or more: 0.3ms, 12ms, 1.2s."""
    if ms >= 999.5:
        return f"{ms / 1000:.1f}s"
    return f"{ms:.0f}ms" if ms >= 9.95 else f"{ms:.1f}ms"


def fit(head: tuple[str, ...], rows: Rows, width: int | None) -> tuple[tuple[str, ...], Rows]:
    """The table without as many SPARED columns as it takes; none where nobody counts visitors."""
    for name in SPARED if COLUMNS[0] in head else ():
        if width is None or _width(head, rows) <= width:
            break
        number = head.index(name)
        head, *rows = ((*row[:number], *row[number + 1 :]) for row in (head, *rows))
    return head, rows


def _width(head: tuple[str, ...], rows: Rows) -> int:
    cells = [head, *(tuple(map(clean, row)) for row in rows)]
    return sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True)) - 2


def told(worker: WorkerInfo, now: float) -> list[str]:
    """What is to be said of a worker below the table."""
    traffic, texts = worker.traffic, []
    if traffic is None:
        return []
    if worker.state == "draining":
        texts.append(f"pid {worker.pid} {draining(traffic.in_flight, traffic.connections)}")
    if traffic.report:
        texts.append(f"says: {traffic.report}")
    if traffic.last_error:
        ago = format_duration(max(0.0, now - (traffic.last_error_at or now)))
        texts.append(f"last error {ago} ago: {traffic.last_error}")
    return texts


def draining(requests: int, connections: int) -> str:
    return f"draining: {counted(requests, 'request')}, {counted(connections, 'connection')}"


def cut_words(cut: Cut) -> str:
    """2 requests were cut at the end of drain_timeout = 30s."""
    parts = [counted(cut.requests, "request")] if cut.requests else []
    if cut.connections:
        parts.append(counted(cut.connections, "other connection" if cut.requests else "connection"))
    verb = "was" if cut.requests + cut.connections == 1 else "were"
    counted_by = " (as last seen: a worker was killed before it could count)" if cut.estimated else ""
    return f"{' and '.join(parts)} {verb} cut at the end of drain_timeout = {cut.drain_timeout}{counted_by}"


def still_draining(workers: int) -> str:
    return f"{counted(workers, 'old worker')} still drain{'s' if workers == 1 else ''} (deployer status)"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
