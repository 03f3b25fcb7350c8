"""How the project is judged: load through many deploys, some of them broken, while the manager is killed at random.

DEPLOYER_JUDGE_DEPLOYS=100 for the full run (20 of them broken); 20 with 4 broken unless given.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import wait_until
from tests.e2e.shop import Shop
from tests.load import LoadProcess

DEPLOYS = int(os.environ.get("DEPLOYER_JUDGE_DEPLOYS", "20"))
BROKEN = ("raises_at_import", "health_500", "exits_zero", "third_worker_crashes", "missing_program")
KILL_PAUSE_S = (0.3, 4.0)
HALTED = {3, 4}
ROOM_KB = 8 * 1024  # what memory may grow by, from the first quarter of the run to its end
SEED = int(os.environ.get("DEPLOYER_JUDGE_SEED", "0")) or random.randrange(1, 10**6)


class Killer(threading.Thread):
    """kill -9 of the manager at random moments, each time once the one before was replaced."""

    def __init__(self, cluster: Shop, chance: random.Random) -> None:
        super().__init__(name="killer")
        self.kills = 0
        self._cluster, self._chance, self._over = cluster, chance, threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._chance.uniform(*KILL_PAUSE_S)):
            self._cluster.kill_manager()
            self.kills += 1

    def stop(self) -> None:
        self._over.set()
        self.join(60)


def usage(pid: int) -> tuple[int, int]:
    """(resident kB, open descriptors)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    rss = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return rss, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.serial
@pytest.mark.timeout(60 + DEPLOYS * 30)
def test_many_deploys_under_load(shop: Callable[..., Shop]) -> None:
    """0 lost; every slot on the promoted release at the end; keeper and manager have not grown."""
    chance = random.Random(SEED)
    cluster = shop(count=4, soak="300ms", ready_timeout="10s", interval="500ms")
    cluster.up()
    every = max(1, DEPLOYS // max(1, DEPLOYS // 5))
    began, serving, broken_ones, seconds, sizes = time.monotonic(), "v1", 0, [], []
    with LoadProcess(cluster.address, keepalive=16, fresh=4, slow=4) as load:
        killer = Killer(cluster, chance)
        killer.start()
        try:
            for number in range(1, DEPLOYS + 1):
                load.mark(f"deploy {number}")
                bad = number % every == 0
                behaviour = BROKEN[(number // every) % len(BROKEN)] if bad else "good"
                started = time.monotonic()
                done = cluster.deploy(behaviour, label=f"number {number}")
                seconds.append(time.monotonic() - started)
                assert done.code in (HALTED if bad else {0}), f"deploy {number} {behaviour}: {done.code}\n{done.text}"
                broken_ones += bad
                serving = serving if bad else done.last["release"]
                assert done.last["serving"] == serving
                sizes.append((usage(cluster.keeper_pid()), settled_manager(cluster)))
        finally:
            killer.stop()
        load.mark("end")
        load.more(50)
        report = load.stop()
    cluster.assert_serves(serving)
    early, late = sizes[len(sizes) // 4], (usage(cluster.keeper_pid()), settled_manager(cluster))
    print(
        f"seed {SEED}: {DEPLOYS} deploys, {broken_ones} broken, {killer.kills} kills of the manager in "
        f"{time.monotonic() - began:.0f} s; a deploy took {sorted(seconds)[len(seconds) // 2]:.2f} s (median), "
        f"{max(seconds):.2f} s (longest)\n{report}\n"
        f"keeper (rss kB, fds) {early[0]} -> {late[0]}; manager {early[1]} -> {late[1]}"
    )
    assert report.lost == 0, str(report)
    assert report.errors == 0, str(report)
    assert killer.kills > 0
    for before, after in zip(early, late, strict=True):
        assert after[0] < before[0] + ROOM_KB
        assert after[1] <= before[1] + 8


def settled_manager(cluster: Shop) -> tuple[int, int]:
    """The manager may be killed in the very moment we look."""

    def look() -> tuple[int, int] | None:
        try:
            return usage(cluster.manager_pid())
        except (OSError, ValueError, StopIteration):
            return None

    found: tuple[int, int] = wait_until(look, "a manager to measure")
    return found


def test_a_manager_that_lives_does_not_grow(shop: Callable[..., Shop]) -> None:
    """The same, without kills: descriptors and memory of one manager over many rollouts."""
    cluster = shop(count=2, soak="50ms")
    cluster.up()
    manager, sizes = cluster.manager_pid(), []
    for number in range(12):
        cluster.run(*(("restart",) if number % 3 else ("deploy", "--force")), code=0)
        cluster.settled()
        sizes.append(usage(manager))
    assert cluster.manager_pid() == manager
    print(f"manager (rss kB, fds): {sizes[3]} -> {sizes[-1]}; keeper: {usage(cluster.keeper_pid())}")
    assert sizes[-1][1] <= sizes[3][1] + 2
    assert sizes[-1][0] < sizes[3][0] + ROOM_KB
