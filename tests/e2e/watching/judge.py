"""How `deployer watch` is judged: random saves under load, many of them broken.

    python -m tests.e2e.watching.judge [--saves 1000] [--kills] [--seed N]

Small app, one worker, constant load. It must hold:

- no request is lost. A process that the application itself ends takes with it the requests on its own connections;
  those are counted apart, each by the last words of that process, which name the connection (apps/watched/dying.py);
- what is served is what is on disk within 2 s of the last save, and of each good save that was followed by quiet;
- nothing that is half a file, or cannot run, is ever served;
- memory and descriptors of the manager are flat, what is on disk is bounded, and `q` leaves nothing behind.

With --kills also SIGKILL of the manager and of the watching child, amid pauses. Then the time counts from RESTART_S
after both are there again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster import wait_until
from tests.e2e.shop import alive
from tests.e2e.watching import editor
from tests.e2e.watching.books import Death, never_to_be_served, sorted_out
from tests.e2e.watching.plan import QUIET_S, Kind, Save, plan
from tests.load import LoadProcess, LoadReport
from tests.watchkit import FIRST, Tree, Watching, size_kb, usage

SERVED_S = 2.0
RESTART_S = 3.0  # manager and watching child may have to start anew, on a busy machine
KEEPER_S = 40.0  # the longest pause of the keeper before another manager, and some
DEV_RELEASES = 9  # eight that are kept, and one that is being made
ROOM_KB = 8 * 1024  # what the manager's memory may grow by, from the first quarter of the run to its end
ROOM_FDS = 8
ROOT_KB = 24 * 1024  # ROOT with state and logs, beside what each save leaves in the history
SAVE_KB = 16
LOAD: dict[str, float | str] = {"keepalive": 6, "fresh": 3, "slow": 1, "slow_path": "/slow?s=0.2", "think_s": 0.03}


@dataclass
class Sizes:
    """At a quiet moment."""

    manager_kb: int
    manager_fds: int
    dev_releases: int
    root_kb: int


@dataclass
class Run:
    """What was seen."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    caught_up_s: list[float] = field(default_factory=list)  # of good saves that were followed by quiet
    sizes: list[Sizes] = field(default_factory=list)
    most_dev_releases: int = 0
    wrong: list[str] = field(default_factory=list)


class Judge:
    def __init__(self, tree: Tree, saves: list[Save], seed: int) -> None:
        self.tree, self.saves, self.run = tree, saves, Run(seed)
        self.words = tree.base / "last-words"
        self._chance = random.Random(seed)
        self._killed = 0.0  # when, by the monotonic clock

    def __call__(self) -> Run:
        began = time.monotonic()
        self.tree.plant()
        with self.tree.watch() as watch:
            self.tree.until_served(FIRST)
            with LoadProcess(self.tree.address, **LOAD) as load:
                for save in self.saves:
                    self._make(save)
                report = load.stop()
            assert watch.process.poll() is None, f"the watch ended: {watch.error_text}"
            self._quit(watch)
        self._conclude(report, time.monotonic() - began)
        return self.run

    # Each save

    def _make(self, save: Save) -> None:
        editor.write(self.tree.views, *save.text(str(self.words)), way=save.way, amid_s=save.amid_s)
        ended = time.monotonic()
        if save.kill:
            time.sleep(save.pause_s * self._chance.random())
            self._kill(save.kill)
        if save.kind is Kind.GOOD and save.pause_s > SERVED_S:
            self._look(save, ended)
        self.run.most_dev_releases = max(self.run.most_dev_releases, len(self.tree.dev_releases()))
        time.sleep(max(0.0, ended + save.pause_s - time.monotonic()))

    def _kill(self, whom: str) -> None:
        """It may be on its way up or down in this very moment; then nobody is killed."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            pid = self.tree.manager_pid() if whom == "manager" else self.tree.watching_child()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                self.run.kills[whom] += 1
                self._killed = time.monotonic()

    def _look(self, save: Save, ended: float) -> None:
        """It is served in time, and stays."""
        late = max(ended, self._restarted() + RESTART_S) if save.kill or self._killed > ended - QUIET_S else ended
        while (served := self.tree.served()) != save.label:
            if time.monotonic() > late + SERVED_S:
                self.run.wrong.append(f"{save.label} is not served {SERVED_S:g} s after it was saved, but {served}")
                print(f"{self.run.wrong[-1]}\n{self.tree.log_tail(16)}", flush=True)
                return
            time.sleep(0.01)
        self.run.caught_up_s.append(time.monotonic() - ended)
        time.sleep(max(0.0, ended + save.pause_s - time.monotonic()) / 2)
        if (served := self.tree.served()) != save.label:
            self.run.wrong.append(f"{save.label} was served, and then {served}")
        self._measure()

    def _restarted(self) -> float:
        """When all that was killed was there again: the keeper waits longer for each manager that died young."""
        what = "a manager and a watching child, after they were killed"
        wait_until(lambda: self.tree.manager_is_ready() and self.tree.watching_child(), what, KEEPER_S)
        return time.monotonic()

    def _measure(self) -> None:
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            size = usage(self.tree.manager_pid())
            self.run.sizes.append(Sizes(*size, len(self.tree.dev_releases()), size_kb(self.tree.root)))

    # The end

    def _quit(self, watch: Watching) -> None:
        """The cluster was started for the watch, and ends with it."""
        processes = self.tree.processes()
        code = watch.quit()
        if code != 0:
            self.run.wrong.append(f"q: exit {code}: {watch.error_text}")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(alive(pid) for pid in processes if pid != os.getpid()), "all ended")
        for pid in self.tree.processes():
            if pid != os.getpid():
                self.run.wrong.append(f"left running: {pid} {_words(pid)}")
        left = [path.name for path in self.tree.root.glob("releases/.*") if path.is_dir()]
        if left:
            self.run.wrong.append(f"left half made: {left}")

    def _conclude(self, report: LoadReport, seconds: float) -> None:
        run, wrong = self.run, self.run.wrong
        deaths = [Death.read(line) for line in _lines(self.words)]
        losses = sorted_out(report.losses, deaths)
        wrong += [f"lost: {loss}" for loss in losses.lost]
        if report.errors:
            wrong.append(f"{report.errors} answers were errors")
        if unfit := never_to_be_served(report.releases_seen, self.saves, FIRST):
            wrong.append(f"served, and must not have been: {sorted(unfit)[:10]}")
        if run.most_dev_releases > 2 * DEV_RELEASES:  # old workers that drain, amid a burst of saves, need theirs
            wrong.append(f"{run.most_dev_releases} snapshots on disk")
        if run.sizes:
            if (most := max(size.dev_releases for size in run.sizes)) > DEV_RELEASES:
                wrong.append(f"{most} snapshots on disk, when all was quiet")
            wrong += _grown(run.sizes[len(run.sizes) // 4], run.sizes[-1], len(self.saves))
        kinds = Counter(save.kind.value for save in self.saves)
        print(
            f"seed {run.seed}: {len(self.saves)} saves in {seconds:.0f} s, {dict(kinds)}; killed {dict(run.kills)}\n"
            f"{report.requests} requests, {len(losses.lost)} lost; {len(losses.by_the_app)} cut off by {len(deaths)} "
            f"ends of the application's own; p99 {report.p99_s * 1000:.0f} ms, longest {report.max_s:.2f} s\n"
            f"{len(run.caught_up_s)} looks, served after {_spread(run.caught_up_s)}\n"
            f"at most {run.most_dev_releases} snapshots; (rss kB, fds) of the manager, kB of ROOT: "
            f"{[(s.manager_kb, s.manager_fds, s.root_kb) for s in run.sizes[:: max(1, len(run.sizes) // 6)]]}\n"
            + "\n".join(f"WRONG: {what}" for what in wrong[:30]),
            flush=True,
        )


def _grown(early: Sizes, late: Sizes, saves: int) -> list[str]:
    wrong = []
    if late.manager_kb > early.manager_kb + ROOM_KB:
        wrong.append(f"the manager's memory has grown: {early} -> {late}")
    if late.manager_fds > early.manager_fds + ROOM_FDS:
        wrong.append(f"the manager's descriptors have grown: {early} -> {late}")
    if late.root_kb > ROOT_KB + SAVE_KB * saves:
        wrong.append(f"ROOT has grown: {early} -> {late}")
    return wrong


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2] * 1000:.0f} ms (median), {ordered[-1] * 1000:.0f} ms (longest)"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _words(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return "gone"


def judge(saves: int, *, kills: bool = False, seed: int | None = None) -> Run:
    """One run, told on stdout; `wrong` of it is what must be empty."""
    seed = random.randrange(1, 10**6) if seed is None else seed
    tree = Tree()
    try:
        return Judge(tree, list(plan(seed, saves, kills=kills)), seed)()
    finally:
        tree.close(check=sys.exc_info()[0] is None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.watching.judge")
    parser.add_argument("--saves", type=int, default=1000)
    parser.add_argument("--kills", action="store_true", help="SIGKILL of the manager and of the watching child too")
    parser.add_argument("--seed", type=int)
    words = parser.parse_args()
    return 1 if judge(words.saves, kills=words.kills, seed=words.seed).wrong else 0


if __name__ == "__main__":
    sys.exit(main())
