"""Which worker has served its time, and since when one is stuck."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployer.manager.limits import (
    BACKOFF_MAX_S,
    QUICK_S,
    SPREAD,
    End,
    Limits,
    Pulses,
    Reason,
    Still,
    Vitals,
    age_limit_s,
    backoff,
    held_back_s,
    held_back_text,
    hung,
    is_large,
    stuck,
    worn,
)

MB = 1024**2
HOUR = 3600.0
LIMITS = Limits(memory=512 * MB, age_s=24 * HOUR, watchdog_s=60.0)


def vitals(number: int = 1, **changes: object) -> Vitals:
    return replace(Vitals(number, number, LIMITS, age_s=HOUR, memory=100 * MB), **changes)  # type: ignore[arg-type]


def beats(heartbeat: float, progress: float) -> dict[int, dict[str, float]]:
    return {1: {"heartbeat": heartbeat, "progress": progress}}


def test_one_that_is_well_stays() -> None:
    assert worn([vitals(1), vitals(2)]) is None
    assert hung([vitals(1), vitals(2)], rollout=False) == []


def test_the_largest_in_relation_to_its_limit_goes_first_and_says_why() -> None:
    found = worn([vitals(1, memory=600 * MB), vitals(2, memory=700 * MB), vitals(3, age_s=25 * HOUR)])
    assert found == End(2, Reason.MEMORY, "it uses 700 MB, memory_limit is 512 MB", 0)


def test_the_oldest_goes_when_none_is_too_large() -> None:
    found = worn([vitals(1, age_s=24 * HOUR), vitals(2, age_s=25 * HOUR)])
    assert found == End(2, Reason.AGE, "it has served for 1d 1h, max_age is 1d 0h")


def test_one_at_a_time() -> None:
    assert worn([vitals(1, condemned=True), vitals(2, memory=600 * MB), vitals(3, age_s=25 * HOUR)]) is None


def test_without_limits_nothing_is_too_much() -> None:
    free = vitals(limits=Limits(), age_s=9000 * HOUR, memory=9000 * MB)
    assert not is_large(free)
    assert age_limit_s(free) == float("inf")
    assert worn([free]) is None


def test_workers_started_together_are_due_at_different_times_and_never_late() -> None:
    due = [age_limit_s(vitals(slot)) for slot in range(1, 9)]
    assert max(due) <= 24 * HOUR
    assert min(due) >= 24 * HOUR * (1 - SPREAD)
    apart = [later - earlier for earlier, later in zip(sorted(due), sorted(due)[1:], strict=False)]
    assert min(apart) > 24 * HOUR * SPREAD / 16, "evenly enough"
    assert due == [age_limit_s(vitals(slot)) for slot in range(1, 9)], "every manager finds the same"


def test_a_release_that_is_too_large_at_once_is_replaced_more_and_more_slowly() -> None:
    """Each worker that became too large soon after its start makes the next one serve longer, up to ten minutes."""
    quick, ages = 0, []
    for _ in range(12):
        age = backoff(quick)
        young = vitals(memory=600 * MB, age_s=age - 1, quick=quick)
        if quick:
            assert worn([young]) is None
        end = worn([replace(young, age_s=age + 5)])
        assert end is not None
        quick = end.quick
        ages.append(age)
    assert ages[:5] == [0, 10, 20, 40, 80]
    assert ages[-1] == BACKOFF_MAX_S


def test_one_that_leaks_slowly_is_not_held_back() -> None:
    assert worn([vitals(memory=600 * MB, age_s=QUICK_S + 1)]) == End(1, Reason.MEMORY, _text(600), 0)
    after_many = worn([vitals(memory=600 * MB, age_s=HOUR, quick=3)])
    assert after_many is not None
    assert after_many.quick == 0


def _text(megabytes: int) -> str:
    return f"it uses {megabytes} MB, memory_limit is 512 MB"


def test_being_held_back_is_told() -> None:
    young = vitals(memory=600 * MB, age_s=4.0, quick=2)
    assert held_back_s(young) == 16
    assert held_back_text(young) == (
        "it uses 600 MB, memory_limit is 512 MB, and so it was with the one before, right after its start: "
        "replaced in 16s"
    )


STUCK = Still("heartbeat", 5.0, 61.0)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("heartbeat", "its event loop has been stuck for 1m 1s, watchdog is 1m 0s"),
        ("progress", "all its threads have been stuck for 1m 1s, watchdog is 1m 0s"),
    ],
)
def test_a_hung_worker_says_what_hangs_and_for_how_long(field: str, text: str) -> None:
    found = hung([vitals(still=replace(STUCK, field=field)), vitals(2)], rollout=False)
    assert found == [End(1, Reason.HUNG, text)]


def test_during_a_rollout_a_hung_old_worker_waits_and_a_new_one_does_not() -> None:
    workers = [vitals(1, still=STUCK), vitals(2, still=STUCK, candidate=True), vitals(3, still=STUCK, condemned=True)]
    assert [end.id for end in hung(workers, rollout=True)] == [2]
    assert [end.id for end in hung(workers, rollout=False)] == [1, 2]


def test_a_worker_of_a_held_rollout_is_kept() -> None:
    assert worn([vitals(1, candidate=True, memory=600 * MB)]) is None


@pytest.mark.parametrize(
    ("heartbeat_s", "progress_s", "found"),
    [(0, 0, None), (59, 59, None), (0, 60, "progress"), (60, 60, "heartbeat"), (60, 70, "heartbeat")],
)
def test_a_stuck_loop_stops_both_pulses_and_is_the_one_named(
    heartbeat_s: float, progress_s: float, found: str | None
) -> None:
    stills = [Still("progress", 1.0, progress_s), Still("heartbeat", 1.0, heartbeat_s)]
    still = stuck(stills, LIMITS)
    assert (still.field if still else None) == found
    assert stuck(stills, Limits()) is None, "the watchdog is off"


def test_a_pulse_that_stands_still_is_timed() -> None:
    pulses = Pulses()
    for second in range(10):
        stills = {still.field: still.seconds for still in pulses.look(second, 1.0, beats(second, 3.0))[1]}
        assert stills == {"heartbeat": 0.0, "progress": second}
    assert {still.seconds for still in pulses.look(10, 1.0, beats(10, 10))[1]} == {0.0}, "it moves again"


def test_time_in_which_the_manager_did_not_run_either_counts_for_nobody() -> None:
    """A laptop that slept, a cluster that was stopped: all pulses are old, and none is the worker's fault."""
    pulses = Pulses()
    pulses.look(0, 1.0, beats(0, 0))
    pulses.look(1, 1.0, beats(0, 0))
    (after, _) = pulses.look(3601, 1.0, beats(0, 0))[1]
    assert after.seconds == 1.0
    (later, _) = pulses.look(3602, 1.0, beats(0, 0))[1]
    assert later.seconds == 2.0
    (beating, _) = pulses.look(3603, 1.0, beats(3602.9, 3602.9))[1]
    assert beating.seconds == 0.0


def test_a_new_worker_starts_anew_and_one_that_left_is_forgotten() -> None:
    pulses = Pulses()
    pulses.look(0, 1.0, beats(5, 5))
    pulses.look(1, 1.0, {})
    assert {still.seconds for still in pulses.look(2, 1.0, beats(5, 5))[1]} == {0.0}
