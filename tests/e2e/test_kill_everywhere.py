"""SIGKILL at every journal step of a deploy, of the manager alone and of everything: the next one goes on.

No hook in the product: `killsite/sitecustomize.py`, on PYTHONPATH of the manager, sees the statements that SQLite is
given, and kills right before the COMMIT of a given transaction (it is lost) or at the first statement after it (it is
there, and what follows from it has been begun). Every event is written in one of them, so that this is every event too.
A first deploy lists the transactions; then there is one deploy for each, before or after it (both with
DEPLOYER_EVERY_KILL=1: tests/sweep.py; what is tried before it with the manager is tried after it with everything):

- all of staging up to the first worker: the beginning of the rollout, start, output and end of each hook
  (before_stage, after_build, before_rollout), each line of progress of the staging child (which is killed with the
  manager: test_kill_everywhere.py in tests/integration has each step of its own), the result, the first worker;
- after that every decision of the rollout's machine (the transactions with a row in `journal`) up to its end.

The deploy has a directory source, a build of two commands and a hook for each stage; each is deployed over the one
before, so that what a kill left has to bear the next deploy. Where rollout.queued is killed is a test of its own.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployer import launch
from deployer.paths import Layout
from tests.cluster import wait_until
from tests.e2e.shop import Shop
from tests.e2e.victim import Victim, numbered
from tests.sweep import dealt

pytestmark = pytest.mark.long
MAKE = Callable[..., Shop]
CHUNKS = 3  # tests, side by side, among which points are dealt out
LEAST = 40  # kill points; fewer would mean that the journal is not seen any more
BUILD = "\n[build]\nrun = ['echo one > built', 'echo two >> built']\n"
STAGES = ("before_stage", "after_build", "before_rollout")
BEGINNING = "rollout.started + rollout.phase staging"
FIRST_WORKER = "(workers) + worker.starting"
QUEUED = "(rollouts) + (rollouts) + rollout.queued + (rollouts)"
CANARY = "before 1 (journal) + (rollouts) + rollout.phase canary"
SEEN = {
    *(f"(hooks) + hook.{what} {stage}" for stage in STAGES for what in ("started", "finished")),
    "release.progress",
    "(releases) + release.staged",
    FIRST_WORKER,
    *(f"(journal) + (rollouts) + rollout.phase {phase}" for phase in ("preflight", "canary")),
}
"""What must be among the transactions that were counted."""


class Deploying(Victim):
    """One that deploys a release with a build and hooks."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop)
        self.label = "first"
        shop.up(label=self.label)
        for stage in STAGES:
            hook = shop.root / "hooks" / stage
            hook.parent.mkdir(exist_ok=True)
            hook.write_text("#!/bin/sh\necho $DEPLOYER_STAGE\n")
            hook.chmod(0o755)
        self.points = self._count()
        assert len(self.points) >= LEAST
        shop.settled()
        self.usual = self.lying_about()

    def _count(self) -> list[str]:
        """A deploy that nobody kills: `where turn name` of each transaction in question."""
        self.write("counted")
        seen = self.transactions(lambda: self.shop.run("deploy", code=0))
        assert {line.partition(" ")[2] for line in seen} >= SEEN, seen
        first = seen.index(f"before {FIRST_WORKER}") + 2
        names = [line.partition(" ")[2] for line in seen]
        wanted = [bool(name) and (at < first or name.startswith("(journal)")) for at, name in enumerate(names)]
        return [point for point, is_wanted in zip(numbered(seen), wanted, strict=True) if is_wanted]

    def write(self, label: str) -> None:
        self.label = label
        self.shop.write(label=label)

    # What is promised

    def deployed(self) -> None:
        """What was written last is live, was built once, and nothing else lies about."""
        status = self.shop.settled()
        release = status["release"]
        assert self.shop.current() == release
        assert f"{self.label} release {release} ".encode() in self.shop.get()[2]
        assert (self.shop.root / "releases" / release / "built").read_text() == "one\ntwo\n"
        there = os.listdir(self.shop.root / "releases")
        whole = [name for name in there if (self.shop.root / "releases" / name / ".deployer.json").exists()]
        assert set(there) <= {*whole, *(f".{name}.index" for name in whole)}
        assert self.lying_about() == self.usual

    def in_staging(self, point: str) -> bool:
        """No worker of the rollout is meant to serve yet."""
        return self.points.index(point) < self.points.index(CANARY)

    def kill_all(self) -> None:
        """Workers, the staging child and what it started; also a process that one of them is just starting."""
        self.shop.kill_everything()

    def deploy_once_more(self) -> None:
        self.write("at last")
        self.shop.run("deploy", code=0)
        self.deployed()
        assert not self.shop.half_made()

    def live(self) -> dict[str, tuple[Any, ...]]:
        """What tells that somebody touched the files of the release that is live; caches are the workers' own."""
        directory = self.shop.root / "releases" / str(self.shop.current())
        paths = [path for path in directory.rglob("*") if "__pycache__" not in path.parts]
        return {str(path): _fact(path) for path in paths}

    def untouched(self, live: dict[str, tuple[Any, ...]]) -> None:
        assert {name: _fact(Path(name)) for name in live} == live

    def ended(self, seq: int) -> list[str]:
        return [event["outcome"] for event in self.events_after(seq) if event["event"] == "rollout.finished"]


def _fact(path: Path) -> tuple[Any, ...]:
    found = path.lstat()
    if path.is_dir():
        return (found.st_mode, found.st_ino)
    return found.st_mode, found.st_ino, found.st_mtime_ns, path.read_bytes()


@pytest.fixture
def victim(shop: MAKE) -> Deploying:
    return Deploying(shop(soak="0s", extra=BUILD))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_manager_alone(victim: Deploying, chunk: int) -> None:
    """The command follows the same rollout to its end with the next manager, and no old worker is started again.

    When the manager dies before it has answered that there is a rollout, the command asks the next one: if its begin
    was committed it is told of that rollout; if not, nothing of it is left and it begins now.
    """
    shop = victim.shop
    for point in dealt(victim.points, chunk, CHUNKS):
        files = victim.live()
        seq, manager = victim.seq, shop.manager_pid()
        victim.write(f"manager killed {point}")
        victim.arm(point, "manager")
        done = shop.run("deploy", "--json")
        victim.wait_for_the_kill(manager)
        assert done.code == 0, (point, done.text)
        assert done.last["outcome"] == "promoted"
        numbers = [event["seq"] for event in done.events]
        assert numbers == sorted(set(numbers))
        victim.deployed()
        victim.untouched(files)
        told = victim.events_after(seq)
        (end,) = (event for event in told if event["event"] == "rollout.finished")
        (begun,) = (event for event in told if event["event"] == "manager.started")
        assert end["outcome"] == "promoted"
        assert begun["resumed"] == (None if not_begun(point) or is_over(point) else end["rollout"])
        assert {event["release"] for event in told if event["event"] == "worker.starting"} == {end["release"]}
    victim.deploy_once_more()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_everything(victim: Deploying, chunk: int) -> None:
    """`up` starts the release that was live, and only then goes on with the rollout, when it was begun."""
    shop = victim.shop
    for point in dealt(victim.points, chunk, CHUNKS, odd=True):
        live, files = shop.current(), victim.live()
        seq, pids = victim.seq, [shop.keeper_pid(), shop.manager_pid()]
        victim.write(f"all killed {point}")
        victim.arm(point, "keeper")
        with shop.begin("deploy"):
            victim.wait_for_the_kill(*pids)
            victim.kill_all()
        shop.run("up", code=0)
        shop.settled()
        victim.untouched(files)
        told = victim.events_after(seq)
        at = [event["event"] for event in told].index("manager.started")
        ended = [event for event in told if event["event"] == "rollout.finished"]
        if victim.in_staging(point):
            first = [event["release"] for event in told[at:] if event["event"] == "worker.starting" and event["slot"]]
            assert first[:2] == [live, live], point
        if not_begun(point):
            assert not ended
        else:  # a canary that died with all the others is one that failed
            assert ended[0]["outcome"] in ("promoted", "promoted" if victim.in_staging(point) else "reverted"), point
        if not ended or ended[0]["outcome"] == "reverted":
            assert shop.current() == live
            shop.run("deploy", code=0)
        victim.deployed()
    victim.deploy_once_more()


def not_begun(point: str) -> bool:
    return point.startswith("before") and BEGINNING in point


def is_over(point: str) -> bool:
    return point.startswith("after") and "rollout.finished" in point


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("how", ["manager", "keeper"])
def test_where_a_deploy_waits_for_its_turn(victim: Deploying, how: str, where: str) -> None:
    """What runs ends, and so does what waits when its place in the queue was committed."""
    shop, go = victim.shop, victim.shop.base / "go"
    hook = shop.root / "hooks" / "before_stage"
    hook.write_text(f"#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.02; done\n")
    seq, pids = victim.seq, [shop.manager_pid(), *([shop.keeper_pid()] if how == "keeper" else [])]
    victim.write("first in the queue")
    with shop.begin("deploy") as running:
        running.until("hook.started", stage="before_stage")
        victim.write("second in the queue")
        victim.arm(f"{where} 1 {QUEUED}", how)
        queued = shop.start("deploy", "--queue", "--json")
        victim.wait_for_the_kill(*pids)
        go.touch()
        if how == "keeper":
            victim.kill_all()
            shop.run("up", code=0)
        else:
            assert running.finish() == 0
    queued.communicate(timeout=60)
    if how == "keeper":
        assert queued.returncode in (69, -signal.SIGKILL)  # it was not told its number
        waited = 1 if where == "after" else 0
    else:
        assert queued.returncode == 0
        waited = 1
    shop.settled()
    wait_until(lambda: len(victim.ended(seq)) == 1 + waited, "all that was begun has ended")
    assert set(victim.ended(seq)) <= {"promoted", "unchanged"}
    if not waited:
        shop.run("deploy", code=0)
    victim.deployed()


def test_a_keeper_that_has_not_said_its_token_yet_is_waited_for(tmp_path: Path) -> None:
    """After SIGKILL the dead keeper's word is still in its pid file, when the next one holds the lock already."""
    layout = Layout(tmp_path)
    launch.make_directories(layout)
    layout.keeper_pid.write_text("1\nof-the-dead\n")
    assert not launch.keeper_runs(layout)  # `up` looks, and starts a keeper
    with open(layout.keeper_pid, "r+") as file, ThreadPoolExecutor() as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = pool.submit(launch.launch, SimpleNamespace(root=tmp_path))  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.1)
        os.pwrite(file.fileno(), b"2\nof-the-living\n", 0)
        assert answer.result(timeout=30) == "of-the-living"
