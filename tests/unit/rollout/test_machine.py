"""The rollout's table, whole: which facts each phase takes, where they lead, and what the ending is worth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import msgspec
import pytest

from deployer.errors import Exit
from deployer.rollout import machine
from deployer.rollout.events import (
    Aborted,
    AnyFact,
    DeadlinePassed,
    Fact,
    Failure,
    Finished,
    NewFailed,
    NewReady,
    OldFailed,
    OldReady,
    PreflightFailed,
    PreflightPassed,
    Promoted,
    SoakPassed,
    Staged,
    StagingFailed,
    Unchanged,
)
from deployer.rollout.machine import (
    FINAL,
    KEEPS_WORKER,
    PAST_TURNING,
    TRANSITIONS,
    WORKING,
    InvalidTransitionError,
    Kind,
    Phase,
    Policy,
    Rollout,
    Step,
    Want,
    advance,
    begin,
    exit_code,
    outcome,
    wants,
    warned,
)

OLD, NEW = 3, 7  # generations
DIED = Failure(reason="worker_exit", what="it died")
SICK = Failure(reason="health", what="it answers 500")
LATE = Failure(reason="deadline", what="too late")
TURN_BACK = {DeadlinePassed, Aborted}

TAKES: dict[Phase, set[type[Fact]]] = {
    Phase.STAGING: {Staged, Unchanged, StagingFailed, *TURN_BACK},
    Phase.PREFLIGHT: {PreflightPassed, PreflightFailed, *TURN_BACK},
    Phase.CANARY: {NewReady, NewFailed, *TURN_BACK},
    Phase.SOAKING: {SoakPassed, NewFailed, *TURN_BACK},
    Phase.ROLLING: {NewReady, NewFailed, *TURN_BACK},
    Phase.PROMOTING: {Promoted, NewReady, NewFailed},
    Phase.FINISHING: {Finished, NewReady, NewFailed},
    Phase.REVERTING: {OldReady, OldFailed, NewReady, NewFailed, Aborted},
    Phase.HELD: {OldReady, OldFailed, NewReady, NewFailed, Aborted},
    **{phase: set() for phase in FINAL},
}
"""What each phase may hear, written down once more by hand."""

FACTS: dict[type[Fact], AnyFact] = {
    Staged: Staged(release="v2"),
    Unchanged: Unchanged(),
    StagingFailed: StagingFailed(failure=Failure(reason="source", what="no such ref")),
    PreflightPassed: PreflightPassed(),
    PreflightFailed: PreflightFailed(failure=SICK),
    NewReady: NewReady(slot=1),
    NewFailed: NewFailed(slot=1, failure=DIED),
    SoakPassed: SoakPassed(),
    OldReady: OldReady(slot=1),
    OldFailed: OldFailed(slot=1, failure=DIED),
    Promoted: Promoted(),
    Finished: Finished(),
    DeadlinePassed: DeadlinePassed(failure=LATE),
    Aborted: Aborted(by="ann"),
}


def rollout(kind: Kind = Kind.DEPLOY, *, count: int = 3, previous: int | None = OLD, **policy: Any) -> Rollout:
    release = None if kind is Kind.DEPLOY else "v1"
    return begin(9, kind, range(1, count + 1), target=NEW, previous=previous, release=release, policy=Policy(**policy))


def after(start: Rollout, *facts: AnyFact) -> Rollout:
    for fact in facts:
        start = advance(start, fact)
    return start


def ready(*slots: int) -> Iterator[NewReady]:
    return (NewReady(slot=slot) for slot in slots)


def deployed(count: int = 3, **policy: Any) -> Rollout:
    """A deploy with all slots on the new release, about to be promoted."""
    proven = (Staged(release="v2"), PreflightPassed(), NewReady(slot=1), SoakPassed())
    return after(rollout(count=count, **policy), *proven, *ready(*range(2, count + 1)))


def in_phase(phase: Phase) -> Rollout:
    """A rollout of two slots that is in `phase` and took the shortest way there."""
    staged, proven = (Staged(release="v2"), PreflightPassed()), (NewReady(slot=1), SoakPassed())
    ways: dict[Phase, tuple[AnyFact, ...]] = {
        Phase.STAGING: (),
        Phase.UNCHANGED: (Unchanged(),),
        Phase.FAILED: (FACTS[StagingFailed],),
        Phase.PREFLIGHT: staged[:1],
        Phase.CANARY: staged,
        Phase.SOAKING: (*staged, NewReady(slot=1)),
        Phase.ROLLING: (*staged, *proven),
        Phase.REVERTING: (*staged, *proven, Aborted(by="ann")),
        Phase.REVERTED: (*staged, Aborted(by="ann")),
        Phase.HELD: (*staged, *proven, Aborted(by="ann"), FACTS[OldFailed]),
        Phase.PROMOTING: (*staged, *proven, NewReady(slot=2)),
        Phase.FINISHING: (*staged, *proven, NewReady(slot=2), Promoted()),
        Phase.PROMOTED: (*staged, *proven, NewReady(slot=2), Promoted(), Finished()),
    }
    found = after(rollout(count=2), *ways[phase])
    assert found.phase is phase
    return found


# The table


def test_every_kind_of_fact_has_a_sample_here() -> None:
    assert set(FACTS) == set(get_args(AnyFact)) == set(Fact.__subclasses__())


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.__name__)
def test_each_pair_is_in_the_table_or_refused(phase: Phase, kind: type[Fact]) -> None:
    """Refused with a name for both halves; taken without any other exception."""
    if kind in TAKES[phase]:
        assert isinstance(advance(in_phase(phase), FACTS[kind]), Rollout)
    else:
        assert (phase, kind) not in TRANSITIONS
        with pytest.raises(InvalidTransitionError, match=rf"^{kind.__name__} cannot happen in phase {phase}$"):
            advance(in_phase(phase), FACTS[kind])


def test_the_table_has_no_pair_beyond_those() -> None:
    assert set(TRANSITIONS) == {(phase, kind) for phase, kinds in TAKES.items() for kind in kinds}


FAILS_BY = {
    Phase.STAGING: StagingFailed,
    Phase.PREFLIGHT: PreflightFailed,
    Phase.CANARY: NewFailed,
    Phase.SOAKING: NewFailed,
    Phase.ROLLING: NewFailed,
}


@pytest.mark.parametrize("phase", sorted(WORKING))
@pytest.mark.parametrize("hold", [False, True])
def test_every_working_phase_can_fail_time_out_and_be_aborted(phase: Phase, hold: bool) -> None:
    """Each leads out of the working phases, and the first failure is the one that is told."""
    start = msgspec.structs.replace(in_phase(phase), policy=Policy(hold=hold))
    for fact, reason in (
        (FACTS[FAILS_BY[phase]], None),
        (FACTS[DeadlinePassed], "deadline"),
        (Aborted(by="x"), "aborted"),
    ):
        turned = advance(start, fact)
        assert turned.phase not in WORKING
        assert turned.phase not in (*PAST_TURNING, Phase.PROMOTED, Phase.UNCHANGED)
        assert turned.failure is not None
        assert reason in (None, turned.failure.reason)


@pytest.mark.parametrize("phase", sorted(FINAL))
def test_a_final_phase_has_no_way_out(phase: Phase) -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is phase]


@cache
def reached_by_table() -> dict[Phase, set[Phase]]:
    """Phase -> phases that one fact leads to, from starts of every kind and policy, with an old release and without."""
    found: dict[Phase, set[Phase]] = {phase: set() for phase in Phase}
    policies = [
        {"preflight": preflight, "soak": soak, "hold": hold, "batch": batch}
        for preflight in (True, False)
        for soak in (True, False)
        for hold in (True, False)
        for batch in (1, 2)
    ]
    ahead = [
        rollout(kind, count=count, previous=previous, **policy)
        for kind in Kind
        for count in (1, 2)
        for previous in (OLD, None)
        for policy in policies
    ]
    seen = set(map(msgspec.json.encode, ahead))
    while ahead:
        now = ahead.pop()
        for kind in TAKES[now.phase]:
            for slot in now.slots:
                sample = FACTS[kind]
                fact = msgspec.structs.replace(sample, slot=slot) if hasattr(sample, "slot") else sample
                if isinstance(fact, NewReady) and now.slots[slot] is not Step.STARTING:
                    continue  # the manager tells of a new worker only where one is being started
                if isinstance(fact, OldReady) and now.slots[slot] is not Step.RESTORING:
                    continue
                then = advance(now, fact)
                found[now.phase].add(then.phase)
                key = msgspec.json.encode(then)
                if key not in seen:
                    seen.add(key)
                    ahead.append(then)
    return found


def test_every_phase_is_reachable_and_leads_to_an_end() -> None:
    leads = reached_by_table()
    reached = {Phase.STAGING}.union(*leads.values())
    assert reached == set(Phase)
    ends = set(FINAL)
    while more := {phase for phase, to in leads.items() if to & ends} - ends:
        ends |= more
    assert ends == set(Phase), f"no way to an end from {set(Phase) - ends}"


def test_the_drawing_in_the_docstring_shows_the_ways_there_are() -> None:
    """Its names are the phases; its main line is what a good deploy goes through, arrow by arrow."""
    drawing = machine.__doc__ or ""
    names = set(re.findall(r"\b[A-Z]{4,}\b", drawing))
    assert names == {phase.name for phase in Phase}
    line = next(line for line in drawing.splitlines() if "STAGING ->" in line)
    leads = reached_by_table()
    main = [Phase[name] for name in re.findall(r"[A-Z]+", line)]
    assert all(then in leads[now] for now, then in pairwise(main))
    assert {phase for phase, to in leads.items() if to & {Phase.REVERTING, Phase.REVERTED}} - {Phase.REVERTING} == {
        *WORKING - {Phase.STAGING},
        Phase.HELD,
    }
    assert {phase for phase, to in leads.items() if Phase.HELD in to} - {Phase.HELD} == {
        Phase.CANARY,
        Phase.SOAKING,
        Phase.ROLLING,
        Phase.REVERTING,
    }
    assert Phase.FAILED in leads[Phase.STAGING]
    assert Phase.UNCHANGED in leads[Phase.STAGING]


@pytest.mark.parametrize("kind", [NewFailed, NewReady])
@pytest.mark.parametrize(("phase", "then"), [(Phase.PROMOTING, Phase.FINISHING), (Phase.FINISHING, Phase.PROMOTED)])
def test_promoting_and_finishing_cannot_be_turned_back(phase: Phase, then: Phase, kind: type[Fact]) -> None:
    """Abort and deadline are refused, a death changes nothing: the slot starts the new release again."""
    there = in_phase(phase)
    for fact in (Aborted, DeadlinePassed, PreflightFailed, OldReady):
        with pytest.raises(InvalidTransitionError):
            advance(there, FACTS[fact])
    assert advance(there, FACTS[kind]) == there
    assert set(wants(there).values()) == {(Want(NEW, True),)}
    assert reached_by_table()[phase] == {phase, then}


def test_warnings_are_kept_and_change_only_the_exit_code() -> None:
    finished = advance(in_phase(Phase.FINISHING), Finished(warnings=("hook after_rollout failed", "v1 stays")))
    assert (outcome(finished), exit_code(finished)) == ("promoted", Exit.LIVE_WITH_WARNINGS)
    assert finished.warnings == ("hook after_rollout failed", "v1 stays")
    reverted = in_phase(Phase.REVERTED)
    told = warned(warned(reverted, ["a"]), ["b"])
    assert told.warnings == ("a", "b")
    assert (outcome(told), exit_code(told)) == (outcome(reverted), exit_code(reverted))


# What slots want


def test_an_untouched_slot_wants_the_old_release_alone() -> None:
    assert wants(rollout()) == dict.fromkeys((1, 2, 3), (Want(OLD, True),))


def test_the_canary_is_the_first_slot_and_starts_beside_the_old_worker() -> None:
    found = wants(after(rollout(), Staged(release="v2"), PreflightPassed()))
    assert found == {1: (Want(OLD, True), Want(NEW, True)), 2: (Want(OLD, True),), 3: (Want(OLD, True),)}


def test_the_old_worker_stays_beside_the_canary_until_it_has_soaked() -> None:
    soaking = after(rollout(), Staged(release="v2"), PreflightPassed(), NewReady(slot=1))
    assert Want(OLD, True) in wants(soaking)[1]
    assert wants(advance(soaking, SoakPassed()))[1] == (Want(NEW, False),)


def test_a_proven_worker_that_dies_is_not_started_again_before_promotion() -> None:
    rolling = in_phase(Phase.ROLLING)
    assert wants(rolling)[1] == (Want(NEW, False),)
    assert wants(in_phase(Phase.PROMOTING))[1] == (Want(NEW, True),)


def test_a_slot_that_goes_back_keeps_its_new_worker_until_the_old_is_ready() -> None:
    reverting = in_phase(Phase.REVERTING)
    assert wants(reverting)[1] == (Want(OLD, True), Want(NEW, False))
    assert wants(advance(reverting, OldReady(slot=1)))[1] == (Want(OLD, True),)


# Kinds and policies


@pytest.mark.parametrize(
    ("kind", "policy", "phase"),
    [
        (Kind.DEPLOY, {}, Phase.STAGING),
        (Kind.ROLLBACK, {}, Phase.PREFLIGHT),
        (Kind.ROLLBACK, {"preflight": False}, Phase.CANARY),
        (Kind.ROLLBACK, {"prepare": True}, Phase.STAGING),
        (Kind.RESTART, {}, Phase.CANARY),
        (Kind.SCALE, {}, Phase.ROLLING),
    ],
)
def test_each_kind_begins_where_there_is_something_to_prove(kind: Kind, policy: dict[str, Any], phase: Phase) -> None:
    assert rollout(kind, **policy).phase is phase


@pytest.mark.parametrize("kind", [Kind.ROLLBACK, Kind.RESTART, Kind.SCALE])
def test_only_a_deploy_begins_without_a_release(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"a {kind} starts from a release that is there"):
        begin(1, kind, range(1, 3), target=NEW, previous=OLD)


def test_without_preflight_and_soak_a_ready_canary_is_enough() -> None:
    rolling = after(rollout(preflight=False, soak=False), Staged(release="v2"), NewReady(slot=1))
    assert rolling.phase is Phase.ROLLING
    assert rolling.slots == {1: Step.NEW, 2: Step.STARTING, 3: Step.OLD}


def test_a_hook_for_the_canary_is_waited_for_even_without_a_soak() -> None:
    """Only the staged release can say that it has one."""
    canary = after(rollout(preflight=False, soak=False), Staged(release="v2", canary_hook=True))
    assert advance(canary, NewReady(slot=1)).phase is Phase.SOAKING


def test_a_hook_that_fails_before_a_rollback_starts_no_worker() -> None:
    start = rollout(Kind.ROLLBACK, prepare=True)
    failed = advance(start, StagingFailed(failure=Failure(reason="hook", what="no")))
    assert (failed.phase, exit_code(failed)) == (Phase.FAILED, Exit.NOT_STARTED)
    assert advance(start, Staged(release="v1")).phase is Phase.PREFLIGHT


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_a_batch_is_never_exceeded_and_the_canary_goes_alone(batch: int) -> None:
    """Slots follow in order, the next as soon as one is ready."""
    now = after(rollout(count=5, batch=batch), Staged(release="v2"), PreflightPassed())
    assert list(now.slots.values()).count(Step.STARTING) == 1
    now = after(now, NewReady(slot=1), SoakPassed())
    order = [1]
    while now.phase is Phase.ROLLING:
        moving = [slot for slot, step in now.slots.items() if step is Step.STARTING]
        assert len(moving) == min(batch, 5 - len(order))
        order.append(moving[-1])
        now = advance(now, NewReady(slot=moving[-1]))
    assert now.phase is Phase.PROMOTING
    assert sorted(order) == [1, 2, 3, 4, 5]


def test_one_slot_is_canary_and_all() -> None:
    assert deployed(count=1).phase is Phase.PROMOTING


def test_a_first_deploy_that_fails_leaves_nothing_running() -> None:
    """There is no old release: slots want nobody, and the rollout is over at once."""
    failed = after(
        rollout(previous=None),
        Staged(release="v1"),
        PreflightPassed(),
        NewReady(slot=1),
        SoakPassed(),
        FACTS[NewFailed],
    )
    assert failed.phase is Phase.REVERTED
    assert wants(failed) == {1: (), 2: (), 3: ()}


def test_a_first_deploy_is_not_held() -> None:
    """A hold keeps the old release beside the failed canary; here is none."""
    failed = after(rollout(previous=None, hold=True), Staged(release="v1"), PreflightPassed(), FACTS[NewFailed])
    assert failed.phase is Phase.REVERTED


def test_scaling_fills_its_slots_in_batches_and_takes_them_away_when_one_fails() -> None:
    start = begin(
        5, Kind.SCALE, range(3, 6), target=OLD, previous=None, release="v1", policy=Policy(batch=2, preflight=True)
    )
    assert start.slots == {3: Step.STARTING, 4: Step.STARTING, 5: Step.OLD}
    assert wants(start) == {3: (Want(OLD, True),), 4: (Want(OLD, True),), 5: ()}
    failed = after(start, NewReady(slot=3), NewFailed(slot=4, failure=DIED))
    assert failed.phase is Phase.REVERTED
    assert set(wants(failed).values()) == {()}


def test_a_restart_goes_from_one_generation_to_the_next_of_the_same_release() -> None:
    restarted = after(rollout(Kind.RESTART, soak=False), *ready(1, 2, 3), Promoted(), Finished())
    assert (restarted.phase, restarted.release, restarted.target) == (Phase.PROMOTED, "v1", NEW)
    assert set(wants(restarted).values()) == {(Want(NEW, True),)}


# Turning back


def test_every_touched_slot_goes_back_at_once() -> None:
    rolling = after(deployed_to(2), FACTS[Aborted])
    assert rolling.slots == {1: Step.RESTORING, 2: Step.RESTORING, 3: Step.OLD, 4: Step.OLD}
    assert after(rolling, OldReady(slot=2)).phase is Phase.REVERTING
    assert after(rolling, OldReady(slot=2), OldReady(slot=1)).phase is Phase.REVERTED


def deployed_to(last: int) -> Rollout:
    """Four slots, those up to `last` on the new release."""
    start = after(rollout(count=4), Staged(release="v2"), PreflightPassed(), NewReady(slot=1), SoakPassed())
    return after(start, *ready(*range(2, last + 1)))


def test_a_second_abort_and_late_news_of_new_workers_change_nothing() -> None:
    reverting = in_phase(Phase.REVERTING)
    for kind in (Aborted, NewReady, NewFailed):
        assert advance(reverting, FACTS[kind]) == reverting


def test_the_first_failure_is_kept() -> None:
    """What halted the rollout is told, not what came of it."""
    held = after(rollout(hold=True), Staged(release="v2"), PreflightPassed(), NewFailed(slot=1, failure=SICK))
    assert after(held, Aborted(by="ann")).failure == SICK


def test_an_old_release_that_does_not_come_back_asks_for_a_person() -> None:
    """Held; nothing is stopped, the slots go on trying, and one that succeeds counts."""
    held = advance(in_phase(Phase.REVERTING), FACTS[OldFailed])
    assert (held.phase, exit_code(held)) == (Phase.HELD, Exit.HELD)
    assert wants(held)[1] == (Want(OLD, True), Want(NEW, False))
    assert wants(advance(held, OldReady(slot=1)))[1] == (Want(OLD, True),)


@pytest.mark.parametrize("reason", sorted(KEEPS_WORKER))
def test_a_hold_keeps_a_failed_worker_that_still_runs(reason: str) -> None:
    """It is what the person wants to look at; it is not started again should it die."""
    canary = after(rollout(hold=True), Staged(release="v2"), PreflightPassed())
    held = advance(canary, NewFailed(slot=1, failure=Failure(reason=reason, what="bad")))
    assert held.phase is Phase.HELD
    assert wants(held)[1] == (Want(OLD, True), Want(NEW, False))
    assert wants(advance(held, FACTS[NewFailed]))[1] == (Want(OLD, True),)


def test_a_hold_gives_the_slot_of_a_dead_worker_back_to_the_old_release() -> None:
    held = advance(msgspec.structs.replace(deployed_to(2), policy=Policy(hold=True)), NewFailed(slot=2, failure=DIED))
    assert held.phase is Phase.HELD
    assert held.slots == {1: Step.NEW, 2: Step.RESTORING, 3: Step.STARTING, 4: Step.OLD}
    assert advance(held, OldReady(slot=2)).phase is Phase.HELD
    assert after(held, Aborted(by="ann"), OldReady(slot=1), OldReady(slot=2)).phase is Phase.REVERTED


# Endings


def endings() -> Iterator[tuple[str, Rollout, str, Exit]]:
    """(what happened, rollout, outcome, exit code)"""
    canary = after(rollout(), Staged(release="v2"), PreflightPassed())
    bad_config = StagingFailed(failure=Failure(reason="config", what="line 3", exit=int(Exit.CONFIG)))
    scale = begin(5, Kind.SCALE, range(3, 4), target=OLD, previous=None, release="v1")
    yield "promoted", after(deployed(), Promoted(), Finished()), "promoted", Exit.OK
    late = Finished(warnings=("the hook failed",))
    yield "promoted with a warning", after(deployed(), Promoted(), late), "promoted", Exit.LIVE_WITH_WARNINGS
    yield "live already", after(rollout(), Unchanged()), "unchanged", Exit.OK
    yield "source failed", after(rollout(), FACTS[StagingFailed]), "failed", Exit.NOT_STARTED
    yield "staging aborted", after(rollout(), Aborted(by="x")), "failed", Exit.NOT_STARTED
    yield "staging too slow", after(rollout(), FACTS[DeadlinePassed]), "failed", Exit.NOT_STARTED
    yield "bad config in the release", after(rollout(), bad_config), "failed", Exit.CONFIG
    yield "preflight failed", after(rollout(), Staged(release="v2"), FACTS[PreflightFailed]), "reverted", Exit.HALTED
    yield "canary died", after(canary, FACTS[NewFailed]), "reverted", Exit.HALTED
    yield "canary died in soak", after(canary, NewReady(slot=1), FACTS[NewFailed]), "reverted", Exit.HALTED
    yield "aborted at canary", after(canary, Aborted(by="x")), "reverted", Exit.HALTED
    yield (
        "second worker died",
        after(canary, NewReady(slot=1), SoakPassed(), NewFailed(slot=2, failure=DIED), OldReady(slot=1)),
        "reverted",
        Exit.REVERTED,
    )
    yield "scaling failed", after(scale, NewFailed(slot=3, failure=DIED)), "reverted", Exit.REVERTED
    yield "old does not come back", in_phase(Phase.HELD), "held", Exit.HELD
    yield (
        "on_failure = hold",
        after(rollout(hold=True), Staged(release="v2"), PreflightPassed(), FACTS[NewFailed]),
        "held",
        Exit.HELD,
    )


@pytest.mark.parametrize(("what", "end", "word", "code"), list(endings()), ids=[e[0] for e in endings()])
def test_an_ending_has_its_outcome_and_exit_code(what: str, end: Rollout, word: str, code: Exit) -> None:
    """DESIGN.md, "Command line": 3 nothing replaced, 4 put back, 5 a person, 6 not started, 78 configuration."""
    assert (outcome(end), exit_code(end)) == (word, code)


@pytest.mark.parametrize("phase", sorted({*WORKING, *PAST_TURNING, Phase.REVERTING}))
def test_a_rollout_that_goes_on_has_neither_outcome_nor_exit_code(phase: Phase) -> None:
    assert outcome(in_phase(phase)) is None
    assert exit_code(in_phase(phase)) is None


def test_that_a_slot_was_replaced_is_not_forgotten_on_the_way_back() -> None:
    back = after(in_phase(Phase.REVERTING), OldReady(slot=1))
    assert (back.phase, back.replaced, exit_code(back)) == (Phase.REVERTED, True, Exit.REVERTED)


# The journal


@pytest.mark.parametrize("phase", Phase)
def test_a_rollout_comes_back_from_json_as_it_was(phase: Phase) -> None:
    there = in_phase(phase)
    back = msgspec.json.decode(msgspec.json.encode(there), type=Rollout)
    assert back == there
    assert wants(back) == wants(there)


@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.__name__)
def test_a_fact_comes_back_from_json_as_it_was(kind: type[Fact]) -> None:
    """The tag tells them apart: the journal holds facts of all kinds."""
    full = Failure(reason="oom", what="w", cause="c", hint="h", slot=2, tail=("a", "b"), exit=78)
    fact = FACTS[kind]
    if hasattr(fact, "failure"):
        fact = msgspec.structs.replace(fact, failure=full)
    assert msgspec.json.decode(msgspec.json.encode(fact), type=AnyFact) == fact
