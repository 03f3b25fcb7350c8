"""What is wanted and what is there, to what must be done: examples for people, properties for the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.manager.reconcile import Plan, Seen, backoff, plan, retired_by
from deployer.rollout.machine import Want

NOTHING = Plan((), (), None)
OLD, NEW, OTHER = 1, 2, 3
SLOTS = range(1, 5)


def seen(number: int, slot: int = 1, generation: int = OLD, *, ready: bool = True, condemned: bool = False) -> Seen:
    return Seen(number, slot, generation, ready, condemned)


def keep(generation: int) -> Want:
    return Want(generation, False)


def run(generation: int) -> Want:
    return Want(generation, True)


def test_an_empty_slot_is_filled() -> None:
    assert plan({1: [run(OLD)], 2: [run(OLD)]}, [seen(1)], {}, 0.0).spawn == ((2, OLD),)


def test_what_is_only_kept_is_not_started() -> None:
    assert plan({1: [keep(NEW)]}, [], {}, 0.0) == NOTHING


def test_a_slot_nobody_wants_is_emptied() -> None:
    """Scaled down, or taken back: ready or not."""
    assert plan({}, [seen(1, 3), seen(2, 3, ready=False)], {}, 0.0).retire == (1, 2)


def test_the_old_worker_goes_when_the_new_one_is_ready_and_not_before() -> None:
    wants = {1: [keep(NEW)]}
    assert plan(wants, [seen(1), seen(2, 1, NEW, ready=False)], {}, 0.0) == NOTHING
    assert plan(wants, [seen(1), seen(2, 1, NEW)], {}, 0.0).retire == (1,)


def test_an_unwanted_worker_that_is_not_ready_goes_at_once() -> None:
    """A canary that is taken back serves nobody."""
    assert plan({1: [run(OLD)]}, [seen(1, ready=False), seen(2, 1, NEW, ready=False)], {}, 0.0).retire == (2,)


def test_a_sick_worker_stays_until_its_replacement_is_ready() -> None:
    sick = seen(1, condemned=True)
    assert plan({1: [run(OLD)]}, [sick], {}, 0.0) == Plan(((1, OLD),), (), None)
    assert plan({1: [run(OLD)]}, [sick, seen(2, ready=False)], {}, 0.0) == NOTHING
    assert plan({1: [run(OLD)]}, [sick, seen(2)], {}, 0.0) == Plan((), (1,), None)


def test_sick_workers_are_replaced_one_at_a_time_while_dead_ones_are_not_kept_waiting() -> None:
    wants = {slot: [run(OLD)] for slot in SLOTS}
    sick = [seen(slot, slot, condemned=True) for slot in (1, 2, 3)]
    assert plan(wants, sick, {}, 0.0).spawn == ((1, OLD), (4, OLD))
    assert plan(wants, [*sick, seen(9, 1, ready=False)], {}, 0.0).spawn == ((4, OLD),)


def test_a_slot_in_back_off_waits_and_says_until_when() -> None:
    wants = {1: [run(OLD)], 2: [run(OLD)], 3: [run(OLD)]}
    found = plan(wants, [], {(1, OLD): 12.0, (2, OLD): 11.0, (3, OLD): 10.0, (3, NEW): 99.0}, 10.0)
    assert found == Plan(((3, OLD),), (), 11.0)


@pytest.mark.parametrize(
    ("deaths", "seconds"),
    [(0, 0), (1, 0), (2, 0.5), (3, 1), (4, 2), (5, 4), (6, 8), (7, 16), (8, 30), (9, 30), (10_000, 30)],
)
def test_the_first_try_is_at_once_and_the_pauses_double_up_to_half_a_minute(deaths: int, seconds: float) -> None:
    assert backoff(deaths) == seconds


# Properties

generations = st.sampled_from([OLD, NEW, OTHER])
wanted = st.lists(st.builds(Want, generations, st.booleans()), max_size=2, unique_by=lambda want: want.generation)
all_wants = st.dictionaries(st.sampled_from(SLOTS), wanted)
states = st.tuples(st.integers(1, 5), generations, st.booleans(), st.booleans())
all_workers = st.lists(states, max_size=12).map(lambda found: [Seen(n, *state) for n, state in enumerate(found)])
healthy = all_workers.map(lambda workers: [replace(worker, condemned=False) for worker in workers])
waits = st.dictionaries(st.tuples(st.sampled_from(SLOTS), generations), st.floats(0, 100), max_size=4)
Wants = dict[int, list[Want]]


def carried_out(done: Plan, workers: list[Seen]) -> list[Seen]:
    """Retired workers drain and count no more; spawned ones are there and not ready yet."""
    left = [worker for worker in workers if worker.id not in done.retire]
    first = 1 + max((worker.id for worker in workers), default=0)
    return left + [Seen(first + n, slot, made, False, False) for n, (slot, made) in enumerate(done.spawn)]


@given(all_wants, all_workers, waits)
def test_the_last_ready_worker_of_a_wanted_slot_is_never_retired(
    wants: Wants, workers: list[Seen], not_before: dict[tuple[int, int], float]
) -> None:
    left = carried_out(plan(wants, workers, not_before, 50.0), workers)
    for slot in (slot for slot in wants if wants[slot]):
        if any(worker.ready for worker in workers if worker.slot == slot):
            assert any(worker.ready for worker in left if worker.slot == slot)


@given(all_wants, healthy, waits)
def test_a_plan_carried_out_leaves_nothing_to_do(
    wants: Wants, workers: list[Seen], not_before: dict[tuple[int, int], float]
) -> None:
    first = plan(wants, workers, not_before, 50.0)
    assert plan(wants, carried_out(first, workers), not_before, 50.0) == replace(NOTHING, wake_at=first.wake_at)


@given(all_wants, all_workers)
def test_with_sick_workers_it_comes_to_rest_too(wants: Wants, workers: list[Seen]) -> None:
    """A second plan may begin the next replacement, since the one before has just ended; it never undoes anything."""
    for _ in range(2):
        workers = carried_out(plan(wants, workers, {}, 0.0), workers)
    assert plan(wants, workers, {}, 0.0) == NOTHING


@given(all_wants, all_workers)
def test_at_most_one_sick_worker_is_being_replaced(wants: Wants, workers: list[Seen]) -> None:
    under_way = sum(
        any(other.condemned and (other.slot, other.generation) == (worker.slot, worker.generation) for other in workers)
        for worker in workers
        if not worker.condemned
    )
    begun = [
        made
        for made in plan(wants, workers, {}, 0.0).spawn
        if any((worker.slot, worker.generation) == made for worker in workers)
    ]
    assert len(begun) <= (0 if under_way else 1)


@given(all_wants, all_workers, waits)
def test_only_what_is_wanted_missing_and_not_in_back_off_is_started(
    wants: Wants, workers: list[Seen], not_before: dict[tuple[int, int], float]
) -> None:
    found = plan(wants, workers, not_before, 50.0)
    assert len(set(found.spawn)) == len(found.spawn)
    well = {(worker.slot, worker.generation) for worker in workers if not worker.condemned}
    for slot, generation in found.spawn:
        assert Want(generation, True) in wants[slot]
        assert (slot, generation) not in well
        assert not_before.get((slot, generation), 0.0) <= 50.0


@given(all_wants, all_workers, waits)
def test_back_off_always_says_when_to_look_again(
    wants: Wants, workers: list[Seen], not_before: dict[tuple[int, int], float]
) -> None:
    """Each empty slot that wants a worker gets one now or has a time for it that is waited for."""
    found = plan(wants, workers, not_before, 50.0)
    for slot, wishes in wants.items():
        for want in wishes:
            there = any((worker.slot, worker.generation) == (slot, want.generation) for worker in workers)
            if want.start and not there and (slot, want.generation) not in found.spawn:
                assert found.wake_at is not None
                assert 50.0 < found.wake_at <= not_before[slot, want.generation]


@given(all_wants, all_workers, st.randoms(use_true_random=False))
def test_the_order_in_which_workers_are_named_does_not_matter(wants: Wants, workers: list[Seen], dice: object) -> None:
    mixed = list(workers)
    dice.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = plan(wants, workers, {}, 0.0), plan(wants, mixed, {}, 0.0)
    assert (one.spawn, sorted(one.retire)) == (other.spawn, sorted(other.retire))


@pytest.mark.parametrize(
    ("generation", "running", "promoted", "surplus_of", "goes_for"),
    [
        (3, 4, 3, None, 4),  # replaced by the rollout that runs
        (4, None, 3, None, 4),  # the canary of one that has turned back
        (3, None, 4, None, 4),  # an old worker, heard of late
        (4, None, None, None, 4),  # the first deploy ever, which failed
        (4, None, 4, 9, 9),  # its slot was closed
        (4, None, 4, None, None),  # sick, and replaced
        (-1, None, 4, None, None),  # a stray
    ],
)
def test_a_worker_goes_for_the_rollout_that_left_no_place_for_it(
    generation: int, running: int | None, promoted: int | None, surplus_of: int | None, goes_for: int | None
) -> None:
    assert retired_by(generation, running=running, promoted=promoted, surplus_of=surplus_of) == goes_for
