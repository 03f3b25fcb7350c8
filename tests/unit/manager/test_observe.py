"""Facts that are seen by looking, for a manager that was not there when they happened."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.manager.observe import fact
from deployer.manager.reconcile import Seen
from deployer.rollout.events import (
    Aborted,
    Failure,
    NewFailed,
    NewReady,
    OldReady,
    SoakPassed,
)
from deployer.rollout.machine import FINAL, PAST_TURNING, Kind, Phase, Policy, Rollout, Step, advance, begin

OLD, NEW = 3, 7


def rolled(phase: Phase, **slots: str) -> Rollout:
    """A rollout in `phase` whose slots are at the given steps: rolled(phase, s1="new", s2="old")."""
    start = begin(9, Kind.ROLLBACK, range(1, 3), target=NEW, previous=OLD, release="v1")
    steps = {int(name[1:]): Step(step) for name, step in slots.items()}
    return msgspec.structs.replace(start, phase=phase, slots=steps)


def new(slot: int = 1, *, ready: bool = True, condemned: bool = False) -> Seen:
    return Seen(slot, slot, NEW, ready, condemned)


def old(slot: int = 1, *, ready: bool = True, condemned: bool = False) -> Seen:
    return Seen(slot + 10, slot, OLD, ready, condemned)


@pytest.mark.parametrize("phase", [Phase.CANARY, Phase.ROLLING])
def test_a_started_worker_that_is_ready_is_seen(phase: Phase) -> None:
    there = rolled(phase, s1="starting")
    assert fact(there, [old(), new()]) == NewReady(slot=1)
    assert fact(there, [old(), new(ready=False)]) is None
    assert fact(there, [old(), new(condemned=True)]) is None


@pytest.mark.parametrize("phase", [Phase.REVERTING, Phase.HELD])
def test_an_old_worker_that_is_ready_again_is_seen(phase: Phase) -> None:
    there = rolled(phase, s1="restoring")
    assert fact(there, [old(), new()]) == OldReady(slot=1)
    assert fact(there, [old(ready=False), new()]) is None
    assert fact(there, [old(condemned=True), new()]) is None


@pytest.mark.parametrize(("phase", "step"), [(Phase.SOAKING, "starting"), (Phase.ROLLING, "new"), (Phase.HELD, "new")])
def test_a_proven_worker_that_is_gone_is_seen(phase: Phase, step: str) -> None:
    """Nobody heard it end; the rollout turns back, or the held slot goes back to the old release."""
    there = rolled(phase, s1=step)
    found = fact(there, [old()])
    assert isinstance(found, NewFailed)
    assert (found.slot, found.failure.slot, found.failure.reason) == (1, 1, "worker_exit")
    assert "while the manager was being replaced" in found.failure.what
    assert fact(there, [new()]) is None


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        (Phase.CANARY, "starting"),  # it is started, perhaps again
        (Phase.ROLLING, "starting"),
        (Phase.FINISHING, "new"),
        (Phase.PROMOTING, "new"),  # past turning back: it is started again
        (Phase.REVERTING, "restoring"),
        (Phase.HELD, "restoring"),
        (Phase.HELD, "starting"),  # its old worker serves
        (Phase.PREFLIGHT, "old"),
        (Phase.STAGING, "old"),
    ],
)
def test_an_empty_slot_says_nothing_where_reconciling_will_fill_it(phase: Phase, step: str) -> None:
    assert fact(rolled(phase, s1=step), []) is None


def test_workers_of_other_slots_and_generations_say_nothing() -> None:
    there = rolled(Phase.ROLLING, s1="starting", s2="old")
    assert fact(there, [new(2), Seen(5, 1, NEW + 1, True, False), old()]) is None


def test_facts_come_one_at_a_time_in_the_order_of_slots() -> None:
    there = rolled(Phase.ROLLING, s2="starting", s1="starting")
    assert fact(there, [new(2), new(1)]) == NewReady(slot=1)
    assert fact(advance(there, NewReady(slot=1)), [new(2), new(1)]) == NewReady(slot=2)


workers = st.lists(
    st.builds(Seen, st.integers(1, 99), st.integers(1, 4), st.sampled_from([OLD, NEW]), st.booleans(), st.just(False)),
    max_size=8,
)


@given(
    st.lists(st.tuples(st.sampled_from(["see", "soaked", "abort", "fail"]), workers), max_size=12),
    st.sampled_from([Kind.ROLLBACK, Kind.SCALE, Kind.RESTART]),
    st.booleans(),
    st.integers(1, 3),
)
def test_what_is_seen_can_always_happen_and_comes_to_an_end(
    life: list[tuple[str, list[Seen]]], kind: Kind, hold: bool, batch: int
) -> None:
    """Whatever workers there are: each fact is one the machine takes, and looking again and again ends."""
    policy = Policy(preflight=False, hold=hold, batch=batch)
    previous = None if kind is Kind.SCALE else OLD
    now = begin(9, kind, range(1, 4), target=NEW, previous=previous, release="v1", policy=policy)
    for what, there in life:
        if now.phase in FINAL:
            return
        for _ in range(8):  # three slots, each of which moves at most twice
            found = fact(now, there)
            if found is None:
                break
            assert advance(now, found) != now
            now = advance(now, found)
        assert fact(now, there) is None
        if what == "soaked" and now.phase is Phase.SOAKING:
            now = advance(now, SoakPassed())
        elif what == "abort" and now.phase not in (*FINAL, *PAST_TURNING):
            now = advance(now, Aborted(by="ann"))
        elif what == "fail" and now.phase in (Phase.CANARY, Phase.SOAKING, Phase.ROLLING):
            now = advance(now, NewFailed(slot=1, failure=Failure(reason="worker_exit", what="died")))
