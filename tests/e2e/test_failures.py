"""Every way a release can be broken is caught, and nobody notices: the list of the issue's point 4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.cluster import Done, wait_until
from tests.e2e.shop import FAST_HEALTH, LIGHT, Shop, alive, own_traceback
from tests.load import LoadReport, LoadThread

HALTED, REVERTED = 3, 4


@dataclass(frozen=True)
class Broken:
    """A release, how its halt is told by machine word and in words, and what of its output is shown."""

    behaviour: str
    reason: str
    words: str
    shown: str = ""
    preflight_words: str = ""  # where the preflight sees more than the canary can

    def words_with(self, preflight: bool) -> str:
        return (preflight and self.preflight_words) or self.words


HALTING = (
    Broken("raises_at_import", "worker_exit", "exited with code 1", "this release is broken on purpose"),
    Broken("exits_zero", "worker_exit", "exited with code 0"),
    Broken("never_ready", "never_ready", "did not send READY=1 within 2s"),
    Broken("crash_in_soak", "worker_exit", "worker 1 of v5 exited with code 3", "serves"),
    Broken("health_500", "health", "500 'sick'"),
    Broken("missing_program", "worker_exit", "its program could not be run", "cannot run './no-such-server'"),
    Broken("never_serves", "health", "accepts no connection", "serves", preflight_words="no answer within 1 s"),
)


@pytest.mark.parametrize("preflight", [True, False], ids=["preflight", "no_preflight"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_broken_release_halts_and_the_old_one_serves(count: int, preflight: bool, shop: Callable[..., Shop]) -> None:
    """One release after the other on one cluster, under load: each is halted before any slot is replaced, says why,
    and leaves the old workers as they were. Then the release whose third worker crashes, and one that ignores
    SIGTERM."""
    extra = "" if preflight else "preflight = false\n"
    cluster = shop(
        count=count, soak="600ms", ready_timeout="2s", drain_timeout="1500ms", extra=extra, edits=[FAST_HEALTH]
    )
    cluster.up()
    pids = cluster.assert_serves("v1")
    with LoadThread(cluster.address, **LIGHT) as load:
        for broken in HALTING:
            load.mark(broken.behaviour)
            halt(cluster, broken, preflight)
            cluster.assert_serves("v1", pids)
        load.mark("third_worker_crashes")
        third_worker_crashes(cluster, count, pids)
        load.mark("ignores_sigterm")
        cluster.deploy("ignores_sigterm", label="stubborn", code=0)
        report = load.stop()
    assert_lost_only_by_the_crash(report)
    replace_one_that_ignores_sigterm(cluster)


def assert_lost_only_by_the_crash(report: LoadReport) -> None:
    """A canary that serves and then dies (os._exit) takes along what it was answering: at most one request of each
    of these four visitors. Nothing else is lost, and the canary with the failing health check serves its pages."""
    lost = [loss for loss in report.losses if loss.step != "crash_in_soak"]
    assert not lost, str(report)
    moments = [loss.at for loss in report.losses]
    assert report.lost <= 4, str(report)
    assert not moments or max(moments) - min(moments) < 2, str(report)
    assert report.errors == 0, str(report)
    if report.lost:
        print(f"taken along by the crashing canary: {report.lost} of {report.requests}")


def halt(cluster: Shop, broken: Broken, preflight: bool) -> None:
    done = cluster.deploy(broken.behaviour, label=broken.behaviour, code=HALTED)
    last = done.last
    problem = last["problem"]
    told = f"{problem['what']} / {problem['cause']}"
    assert (last["outcome"], last["reason"], last["serving"]) == ("reverted", broken.reason, "v1"), told
    assert broken.words_with(preflight) in told
    assert problem["hint"]
    assert broken.shown in "\n".join(last["tail"]), f"the dead worker's last lines: {last['tail']}"
    where = slot_that_failed(done)
    passes_preflight = broken.behaviour == "crash_in_soak"
    assert where == (0 if preflight and not passes_preflight else 1), f"{broken.behaviour} was caught in slot {where}"
    assert not own_traceback(done.err), done.err


def slot_that_failed(done: Done) -> int | None:
    slot: int | None = next(event["slot"] for event in done.events if event["event"] == "rollout.failed")
    return slot


def third_worker_crashes(cluster: Shop, count: int, pids: dict[int, int]) -> None:
    """With five workers the first two slots are put back; with fewer nobody ever sees the fault."""
    if count < 3:
        cluster.deploy("third_worker_crashes", label="third", code=0)
        cluster.assert_serves(str(cluster.current()))
        return
    done = cluster.deploy("third_worker_crashes", label="third", code=REVERTED)
    assert (done.last["outcome"], done.last["reason"]) == ("reverted", "worker_exit")
    assert "worker 3" in done.last["problem"]["what"]
    assert "the third worker is broken on purpose" in "\n".join(done.last["tail"])
    untouched = {slot: pid for slot, pid in pids.items() if slot >= 3}
    now = cluster.assert_serves("v1", untouched)
    assert not {pids[1], pids[2]} & set(now.values()), "slots 1 and 2 were replaced, so they must have been put back"


def replace_one_that_ignores_sigterm(cluster: Shop) -> None:
    """Without load: until it is killed such a worker goes on accepting, so what it held then is lost by its own
    doing."""
    old = cluster.assert_serves(str(cluster.current()))
    cluster.deploy(label="after", code=0)
    wait_until(lambda: not any(alive(pid) for pid in old.values()), "the stubborn workers are killed")
    cluster.assert_serves(str(cluster.current()))
    ends = {event["pid"]: event for event in cluster.events("worker.exited")}
    for pid in old.values():
        assert (ends[pid]["signal"], ends[pid]["expected"]) == ("SIGKILL", True)
        assert 1.4 < ends[pid]["seconds"] < 30, "killed after drain_timeout, not before"
