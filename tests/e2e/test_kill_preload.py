"""The sweep of test_kill_everywhere.py for workers that move, are forked, and stand by: SIGKILL to the manager at each
commit and message of a deploy with `preload`, and of a rollback on standby; SIGKILL to templates.

Points are taken one after the other on one cluster, under load; which: tests/sweep.py. After each the command has ended
well, all is as if nobody had been killed, and no release was imported more often than once: whoever follows uses the
template there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster import wait_until
from tests.e2e.shop import LIGHT
from tests.e2e.test_preload import Served
from tests.e2e.victim import Victim, numbered
from tests.load import LoadProcess
from tests.sweep import dealt

pytestmark = pytest.mark.long
MAKE = Callable[..., "Forking"]
CHUNKS = 2  # tests, side by side, among which points are dealt out
STANDBY = 'standby = "10m"\n'
BLANK = "(workers) + blank.starting"
TEMPLATE = "(workers) + template.starting"
ORDINARY = ("exited", "worker.drain")  # the ends of old workers, as in any deploy
DIES = """
def die(good=True):
    if good and not os.path.exists({marker!r}):
        open({marker!r}, "w").close()
        os.kill(TEMPLATE, 9)

TEMPLATE, forks = os.getpid(), []  # those before this one
os.register_at_fork(before=lambda: forks.append(1))
{when}
"""
MOMENTS = {
    "before it is ready": "die(os.environ['DEPLOYER_WORKER'] == '0')",
    "when it is asked to fork": "os.register_at_fork(before=die)",
    "between its two forks": "os.register_at_fork(before=lambda: die(os.getpid() != TEMPLATE))",
    "when it has forked": "os.register_at_fork(after_in_parent=lambda: die(os.getpid() == TEMPLATE))",
    "in the rolling phase": "os.register_at_fork(before=lambda: die(os.getpid() == TEMPLATE and forks == [1]))",
}


class Forking(Victim):
    """A cluster of two workers whose application is preloaded."""

    shop: Served

    def __init__(self, **options: Any) -> None:
        super().__init__(Served(count=2, soak="0s", **options))
        self.number = 0

    def deploy(self, **values: Any) -> dict[str, Any]:
        """The last event of one that ends well."""
        self.number += 1
        self.shop.write(label=f"label {self.number}", **values)
        return self.carry_out("deploy")

    def carry_out(self, *words: str) -> dict[str, Any]:
        done = self.shop.run(*words, "--json", code=0)
        assert done.last["outcome"] == "promoted"
        numbers = [event["seq"] for event in done.events]
        assert numbers == sorted(set(numbers))
        return done.last

    def killed(self, point: str, work: Callable[[], dict[str, Any]], templates: set[str]) -> dict[str, Any]:
        """The manager at this point of `work`; the status when all is whole. `templates`: beside the live release's."""
        manager, seq = self.shop.manager_pid(), self.seq
        self.arm(point, "manager")
        try:
            release = work()["release"]
            self.wait_for_the_kill(manager)
            status = self.assert_whole(release, templates | {release})
            told = self.events_after(seq)
            assert [event["event"] for event in told].count("manager.started") == 1
            assert [event["release"] for event in told if event["event"] == "rollout.finished"] == [release]
            assert not [event for event in told if event["event"] == "template.exited" and not event["expected"]]
            assert not any(worker["restarts"] for worker in status["workers"])
        except AssertionError as error:
            raise AssertionError(f"manager killed {point}: {error}") from error
        return status

    def assert_whole(self, release: str, templates: set[str]) -> dict[str, Any]:
        """Every slot, `current` and the answers are of one release; these have one template each; nobody else runs."""
        status = wait_until(lambda: self._settled(release, templates), f"{release}, templates {templates}", pause=0.05)
        assert self.shop.current() == release
        assert self.shop.release_served() == release
        return dict(status)

    def _settled(self, release: str, templates: set[str]) -> dict[str, Any] | None:
        status = self.shop.status()
        states = [(w["slot"], w["state"], w["release"]) for w in status["workers"]]
        found = sorted((t["release"], t["state"]) for t in status["templates"])
        ours = [status[who]["pid"] for who in ("keeper", "manager")]
        theirs = [found["pid"] for found in (*status["workers"], *status["templates"])]
        good = (
            status["rollout"] is None
            and states == [(slot, "ready", release) for slot in (1, 2)]
            and found == [(name, "ready") for name in sorted(templates)]
            and sorted(self.shop.processes()) == sorted([*ours, *theirs])
        )
        return status if good else None


@pytest.fixture
def forking(request: pytest.FixtureRequest) -> MAKE:
    def make(**options: Any) -> Forking:
        made = Forking(**options)
        request.addfinalizer(made.shop.close)
        return made

    return make


@contextlib.contextmanager
def visitors(shop: Served) -> Iterator[None]:
    """None of them is lost."""
    with LoadProcess(shop.address, **LIGHT, think_s=0.05) as load:
        yield
        report = load.stop()
    assert (report.lost, report.errors) == (0, 0), str(report)


def worthwhile(lines: list[str], first: str) -> list[str]:
    """Points, `where turn name`, from `first` on. Where READY=1 was noted, or that a signal was sent, "after" is the
    same as "before" the next."""
    both = [*zip(lines, numbered(lines), strict=True)][lines.index(first) :]
    return [point for line, point in both if not _is_ordinary(line)]


def _is_ordinary(line: str) -> bool:
    return line in ("before ", "after ", "after (workers)") or any(word in line for word in ORDINARY)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_manager_in_a_deploy_with_preload(forking: MAKE, chunk: int) -> None:
    """From what becomes its template on; what comes before is that of any deploy."""
    victim = forking()
    victim.shop.up()
    lines = victim.transactions(victim.deploy)
    points = worthwhile(lines, f"before {BLANK}")
    sent = ("send become", "send fork", "send serve")
    assert {f"{where} {what}" for where in ("before 1", "after 1") for what in sent} < {*points}
    assert f"before 1 {TEMPLATE}" in points
    with visitors(victim.shop):
        for point in dealt(points, chunk, CHUNKS):
            status = victim.killed(point, victim.deploy, set())
            assert victim.shop.imported(status["release"]) == [status["templates"][0]["pid"]], point
        victim.deploy()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_manager_in_a_rollback_on_standby(forking: MAKE, chunk: int) -> None:
    victim = forking(rollout=STANDBY)
    shop, both = victim.shop, {"v1", "v2"}
    shop.up()
    victim.deploy()
    victim.assert_whole("v2", both)
    lines = victim.transactions(lambda: victim.carry_out("rollback", "v1"))
    points = worthwhile(lines, "before send fork")
    victim.assert_whole("v1", both)
    boots = shop.imports.read_text()
    with visitors(shop):
        for number, point in enumerate(dealt(points, chunk, CHUNKS, odd=True)):
            to = ("v2", "v1")[number % 2]
            victim.killed(point, partial(victim.carry_out, "rollback", to), both)
        assert shop.imports.read_text() == boots, "nobody booted"
        assert victim.deploy()["release"] == "v3"


# Templates


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_templates_that_are_killed(forking: MAKE, chunk: int) -> None:
    """Somebody boots on its own then; in the end there is a template again, which is of use."""
    victim = forking()
    victim.shop.up()
    with visitors(victim.shop):
        for moment in [*MOMENTS][chunk::CHUNKS]:
            seq = victim.seq
            broken = DIES.format(marker=str(victim.shop.base / f"killed {moment}"), when=MOMENTS[moment])
            release = victim.deploy(broken=broken)["release"]
            status = victim.assert_whole(release, {release})
            told = victim.events_after(seq)
            ended = [event for event in told if event["event"] == "template.exited"]
            died = [event["pid"] for event in ended if event["release"] == release]
            boots = victim.shop.imported(release)
            assert died == boots[:1], moment
            assert status["templates"][0]["pid"] in boots, moment
            assert {worker["pid"] for worker in status["workers"]} & {*boots}, moment
            assert not [event for event in told if event["event"] == "worker.exited" and not event["expected"]], moment
            victim.shop.run("restart", code=0)
            victim.assert_whole(release, {release})
            assert victim.shop.imported(release) == boots, moment
