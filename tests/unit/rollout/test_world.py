"""The promise of the engine: whatever happens, and wherever the manager dies, every slot ends on one release.

Random lives of a cluster (see world.py, which also holds what must be true at every single step).
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from deployer.rollout.machine import Kind, Phase, Policy
from tests.unit.rollout.world import World, world

NATURES = ("good", "good", "crash", "crash_later", "silent", "sick", "source", "preflight")

policies = st.builds(Policy, preflight=st.booleans(), soak=st.booleans(), batch=st.integers(1, 3), hold=st.booleans())
numbers = st.integers(0, 9)
starts = st.tuples(st.just("start"), st.sampled_from(Kind), st.sampled_from(NATURES), policies, st.integers(1, 2))
small = st.tuples(st.sampled_from(["step", "hear", "say_ready", "say_ready", "crash", "silence", "sicken"]), numbers)
happenings = st.one_of(
    small,
    starts,
    st.tuples(st.just("job"), st.sampled_from([True, True, True, False])),
    st.tuples(st.sampled_from(["restart", "run", "run_on", "run_on"])),
    st.tuples(st.just("die"), st.integers(0, 25)),
    st.tuples(st.sampled_from(["abort", "deadline", "unchanged", "shrink", "spawn_fails", "reboot"])),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 0.6, 5.0, 20.0])),
)


def happen(there: World, what: str, *how: Any) -> None:
    match what:
        case "start":
            kind, nature, policy, more = how
            there.start(kind, behaviour=nature, policy=policy, more=more)
        case "step":
            there.step()
        case "job":
            there.manager(lambda engine: engine.finish_job(good=how[0]))
        case "run":
            while there.step() or there.hear(0):
                pass
        case "run_on":  # as far as a good release goes
            for _ in range(20):
                there.restart()
                there.say_ready(0)
                there.manager(lambda engine: engine.finish_job(good=True))
                happen(there, "run")
        case "die":
            there.dies_in = how[0]
        case "tick":
            there.now += how[0]
        case "spawn_fails":
            there.spawn_fails = True
        case _:
            getattr(there, what)(*how)


def come_to_rest(there: World) -> None:
    """A held rollout stays held until somebody aborts it."""
    there.settle()
    rollout = there.engine.rollout if there.engine else None
    if rollout is not None:
        there.check_held()
        there.abort()
        there.settle()
    there.check_at_rest()


episodes = st.lists(
    st.tuples(
        starts,
        st.none() | st.integers(0, 40),
        st.lists(st.tuples(happenings, st.booleans()), max_size=25),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
"""Each: a rollout, after how many writes its manager dies, what happens (and whether that is heard at once), and
whether all comes to rest before the next."""


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(count=st.integers(1, 5), first=policies, life=episodes)
def test_whatever_happens_all_slots_end_on_one_release(count: int, first: Policy, life: list[tuple[Any, ...]]) -> None:
    """Crashes, silence, sickness, aborts, deadlines and deaths of the manager, in any order, through many rollouts."""
    with world(count) as there:
        there.start(Kind.DEPLOY, behaviour="good", policy=first, more=0)
        if first.preflight:  # else the life begins in the middle of the first deploy
            there.settle()
            there.check_at_rest()
        for start, dies_in, happened, rest in life:
            there.restart()
            there.dies_in = dies_in
            happen(there, *start)
            for what, then_run in happened:
                happen(there, *what)
                if then_run:
                    happen(there, "run")
            if rest:
                come_to_rest(there)
        come_to_rest(there)
        event(f"manager lives: {min(there.lives, 5)}")
        event(f"rollouts: {min(len(there.disk.rollouts), 6)}")
        for number in there.disk.rollouts:
            event(f"ending: {there.disk.rollout(number).phase}")


@pytest.mark.parametrize("nature", sorted(set(NATURES)))
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("hold", [False, True], ids=["revert", "hold"])
def test_the_death_of_a_manager_at_any_write_does_not_decide_the_ending(kind: Kind, nature: str, hold: bool) -> None:
    """The same rollout again and again, its manager killed one write later each time, until none is left to die at."""
    endings = set()
    for dies_in in itertools.count():
        with world(3) as there:
            live(there)
            there.dies_in = dies_in
            there.start(kind, behaviour=nature, policy=Policy(batch=2, hold=hold), more=2)
            there.let_run()
            if len(there.disk.rollouts) == 2:  # else it died before anything was asked of it
                endings.add(there.disk.rollout(2).phase)
            come_to_rest(there)
            if there.lives == 1:
                break
    assert dies_in > 3
    assert len(endings) == 1


def live(there: World) -> None:
    """Bring the first release up."""
    there.start(Kind.DEPLOY, behaviour="good", policy=Policy(), more=0)
    there.settle()
    there.check_at_rest()
    assert there.disk.promoted == 1


def test_a_canary_that_is_taken_back_serves_on_while_nobody_else_does() -> None:
    """The old worker of its slot crashed meanwhile, and its successor is not ready yet."""
    with world(2) as there:
        live(there)
        there.start(Kind.DEPLOY, behaviour="good", policy=Policy(preflight=False), more=0)
        for what in (("job", True), ("run",), ("say_ready", 0), ("run",), ("crash", 0), ("run",), ("abort",), ("run",)):
            happen(there, *what)
        assert there.engine is not None
        states = [(w.slot, w.generation, str(w.state)) for w in there.engine.pool.workers.values()]
        assert sorted(states) == [(1, 1, "starting"), (1, 2, "ready"), (2, 1, "ready")]
        come_to_rest(there)


def test_a_reboot_while_held_leaves_no_slot_empty() -> None:
    """The new worker of a held slot is gone and nobody saw it go: the old release takes the slot back."""
    with world(2) as there:
        live(there)
        there.start(Kind.DEPLOY, behaviour="good", policy=Policy(hold=True, soak=False, preflight=False), more=0)
        for what in (("job", True), ("run",), ("say_ready", 0), ("run",), ("deadline",), ("run",)):
            happen(there, *what)
        assert there.engine is not None
        assert there.engine.rollout is not None
        assert there.engine.rollout.phase is Phase.HELD
        there.reboot()
        come_to_rest(there)


def test_a_plan_is_given_up_when_carrying_it_out_ends_the_rollout() -> None:
    """The first of a batch cannot be started: the second is not, since the release has failed by then."""
    with world(1) as there:
        live(there)
        there.spawn_fails = True
        there.start(Kind.SCALE, behaviour="good", policy=Policy(batch=2), more=2)
        happen(there, "step", 0)
        assert there.disk.rollout(2).phase is Phase.REVERTED
        assert {process.slot for process in there.processes.values()} == {1}
        come_to_rest(there)


def test_a_worker_that_was_never_ready_is_not_taken_for_that_of_the_next_rollout() -> None:
    """A second `scale` is asked for before the first one's worker was sent away; both are of one generation."""
    with world(1) as there:
        live(there)
        there.start(Kind.SCALE, behaviour="good", policy=Policy(), more=1)
        happen(there, "run")
        there.silence(0)
        assert there.disk.rollout(2).phase is Phase.REVERTED
        there.start(Kind.SCALE, behaviour="good", policy=Policy(), more=1)
        come_to_rest(there)
        assert there.disk.rollout(3).phase is Phase.PROMOTED
