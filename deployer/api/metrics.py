"""The cluster in the text format of Prometheus.

Totals of workers carry slot, release and pid: each process counts from nothing and its counters end with it, so none
ever goes back, and `sum by (slot) (rate(...))` is right across deploys. A worker that has ended stays for as long
as its record does (a minute at least): what it counted after the last scrape is not lost. Totals of the cluster come
from state.db, which outlives every process; they count what is final, since a held rollout may still end otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from deployer import __version__
from deployer.manager.traffic import Key, cumulative, total_seconds
from deployer.manager.views import usage
from deployer.rollout.machine import FINAL
from deployer.runtime.api import name_of
from deployer.runtime.scoreboard import Row
from deployer.workers.worker import State, Worker

if TYPE_CHECKING:
    from deployer.manager.manager import Manager

ENDED_KEPT_S = 300.0  # a record that nobody needed again is told no longer than this
CLOCK_S = 1.0  # between two readings of the clock
PROCESS = ["slot", "release", "pid"]
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")


def exposition(manager: Manager) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Cluster(manager))
    return generate_latest(registry)


class _Cluster(Collector):
    """Made for one scrape."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._workers = [w for w in manager.pool.workers.values() if w.in_slot and w.exit is None]
        self._alive = {(worker.pid, worker.ticks) for worker in self._workers}
        self._rows = shown(manager.pool.board.rows(), self._alive, time.monotonic())

    def collect(self) -> Iterator[Metric]:
        yield from self._of_visitors()
        yield from self._of_processes()
        yield from self._of_cluster()
        yield from self._of_rollouts()

    def _of_visitors(self) -> Iterator[Metric]:
        """What workers of `[worker] app` counted."""
        requests = CounterMetricFamily(
            "deployer_worker_requests", "Answers by class of status.", labels=[*PROCESS, "status"]
        )
        broken = CounterMetricFamily(
            "deployer_worker_broken_answers", "Answers that an error of the application cut short.", labels=PROCESS
        )
        latency = HistogramMetricFamily(
            "deployer_worker_latency_seconds",
            "Time to the head of an answer; the sum is made of buckets 12.5 % wide.",
            labels=PROCESS,
        )
        for row in self._rows:
            labels = _row_labels(row)
            for name in CLASSES:
                requests.add_metric([*labels, name], getattr(row, f"status_{name}"))
            broken.add_metric(labels, row.broken)
            buckets = [("+Inf" if edge == float("inf") else repr(edge), n) for edge, n in cumulative(row.histogram)]
            latency.add_metric(labels, buckets, total_seconds(row.histogram))
        yield from (requests, broken, latency)
        yield from self._of_this_moment()

    def _of_this_moment(self) -> Iterator[Metric]:
        told = {
            "connections": "Open connections.",
            "websockets": "Open websockets; they are connections too.",
            "in_flight": "Requests that are being answered.",
        }
        for name, text in told.items():
            gauge = GaugeMetricFamily(f"deployer_worker_{name}", text, labels=PROCESS)
            for row in self._rows:
                if (row.pid, row.ticks) in self._alive:
                    gauge.add_metric(_row_labels(row), getattr(row, name))
            yield gauge

    def _of_processes(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "deployer_worker_up", "1: it is ready; 0: it starts, drains or is unhealthy.", labels=[*PROCESS, "state"]
        )
        memory = GaugeMetricFamily(
            "deployer_worker_resident_memory_bytes", "Of the worker and its children.", labels=PROCESS
        )
        cpu = CounterMetricFamily("deployer_worker_cpu_seconds", "Of the worker and its children.", labels=PROCESS)
        for worker in self._workers:
            labels, (rss, seconds) = _labels(worker), usage(worker)
            ready = worker.state is State.READY and worker.condemned is None
            up.add_metric([*labels, str(worker.state)], int(ready))
            memory.add_metric(labels, rss)
            cpu.add_metric(labels, seconds)
        yield from (up, memory, cpu)

    def _of_cluster(self) -> Iterator[Metric]:
        store, views = self._manager.store, self._manager.views
        info = GaugeMetricFamily("deployer_info", "Always 1.", labels=["app", "version"])
        info.add_metric([store.get("app"), __version__], 1)
        live = store.get("release")
        release = GaugeMetricFamily(
            "deployer_release_info", "The live release; always 1.", labels=["release", "commit"]
        )
        if live is not None:
            release.add_metric([live, self._manager.catalog.detail(live, []).info.commit or ""], 1)
        count = self._manager.supervisor.count
        wanted = GaugeMetricFamily("deployer_workers_wanted", "Slots.", value=count)
        ready = len({w.slot for w in self._workers if w.state is State.READY})
        serving = GaugeMetricFamily("deployer_workers_ready", "Slots with a ready worker.", value=ready)
        restarts = CounterMetricFamily(
            "deployer_worker_restarts", "Workers of the slot that died by themselves.", labels=["slot"]
        )
        for slot in range(1, count + 1):
            restarts.add_metric([str(slot)], store.slot(slot).restarts)
        uptime = GaugeMetricFamily(
            "deployer_manager_uptime_seconds", "Of this manager.", value=views.manager().uptime_s
        )
        yield from (info, release, wanted, serving, restarts, uptime)

    def _of_rollouts(self) -> Iterator[Metric]:
        store = self._manager.store
        final = ", ".join(f"'{phase}'" for phase in sorted(FINAL))
        counted = store.rows(
            f"SELECT kind, outcome, count(*) AS number FROM rollouts WHERE outcome IS NOT NULL AND phase IN ({final}) "  # noqa: S608
            "GROUP BY kind, outcome"
        )
        rollouts = CounterMetricFamily("deployer_rollouts", "Rollouts that are over.", labels=["kind", "outcome"])
        for row in counted:
            rollouts.add_metric([row["kind"], row["outcome"]], row["number"])
        running = GaugeMetricFamily("deployer_rollout_running", "1 for the one that runs.", labels=["kind", "phase"])
        rollout = self._manager.driver.rollout
        if rollout is not None:
            running.add_metric([str(rollout.kind), str(rollout.phase)], 1)
        sums = store.row(
            "SELECT total(json_extract(cut, '$.requests')) AS requests, "
            "total(json_extract(cut, '$.connections')) AS connections FROM rollouts"
        )
        assert sums is not None
        yield from (rollouts, running)
        for name, text in (("requests", "Requests"), ("connections", "Other connections")):
            help_text = f"{text} cut at the end of drain_timeout, by rollouts."
            yield CounterMetricFamily(f"deployer_cut_{name}", help_text, value=sums[name])


def _labels(worker: Worker) -> list[str]:
    return [str(worker.slot), worker.release.name, str(worker.pid)]


def _row_labels(row: Row) -> list[str]:
    return [str(row.slot), name_of(row.release), str(row.pid)]


def shown(rows: Mapping[Key, Row], alive: AbstractSet[Key], now: float) -> list[Row]:
    """Of the workers that live, and of those that ended lately: not before the machine started anew, when its clock
    was another. A pid that was given again within that time is told once."""
    found = (
        row
        for key, row in rows.items()
        if row.slot and (key in alive or now - ENDED_KEPT_S < row.heartbeat <= now + CLOCK_S)
    )
    return list({tuple(_row_labels(row)): row for row in sorted(found, key=lambda row: row.started)}.values())
