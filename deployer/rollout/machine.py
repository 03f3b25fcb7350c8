"""The rollout as a state machine: every decision of the engine, and nothing else.

`advance(rollout, fact)` answers the next rollout; `wants(rollout)` says which generations each slot should
run in that state. Both are pure: no clock, no process, no file. The manager journals what `advance` answers
before anything is done about it, and a manager that was killed goes on by calling the same two functions.

            +--> FAILED (staging failed; no worker was started)         UNCHANGED (it is live already)
            |
    STAGING -> PREFLIGHT -> CANARY -> SOAKING -> ROLLING -> PROMOTING -> FINISHING -> PROMOTED
                   |           |          |         |
                   +-----------+----------+---------+--> REVERTING -> REVERTED
                                                    |        |
                                 (on_failure: hold) +--------+--> HELD -> (abort) REVERTING

Turning back is legal up to PROMOTING; from there one goes on. FINISHING is what comes after the new release is live:
hooks, and the removal of old releases. What goes wrong there is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum

import msgspec

from deployer.errors import Exit
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


class Kind(StrEnum):
    DEPLOY = "deploy"
    ROLLBACK = "rollback"
    RESTART = "restart"
    SCALE = "scale"


class Phase(StrEnum):
    STAGING = "staging"
    PREFLIGHT = "preflight"
    CANARY = "canary"
    SOAKING = "soaking"
    ROLLING = "rolling"
    PROMOTING = "promoting"
    FINISHING = "finishing"
    REVERTING = "reverting"
    HELD = "held"
    PROMOTED = "promoted"
    REVERTED = "reverted"
    FAILED = "failed"
    UNCHANGED = "unchanged"


WORKING = frozenset({Phase.STAGING, Phase.PREFLIGHT, Phase.CANARY, Phase.SOAKING, Phase.ROLLING})
"""Phases that can fail and can be turned back."""
PAST_TURNING = frozenset({Phase.PROMOTING, Phase.FINISHING})
"""Phases that only go on: a worker that dies is started again, on the new release."""
FINAL = frozenset({Phase.PROMOTED, Phase.REVERTED, Phase.FAILED, Phase.UNCHANGED})


class Step(StrEnum):
    """Where one slot stands in the rollout."""

    OLD = "old"  # untouched, or put back
    STARTING = "starting"  # the new worker runs beside the old one, not yet proven
    NEW = "new"  # the new worker serves alone
    RESTORING = "restoring"  # the old release is being started again; the new worker serves until it is ready


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The knobs of `[rollout]` that decisions depend on."""

    preflight: bool = True
    soak: bool = True
    batch: int = 1
    hold: bool = False
    prepare: bool = False  # hooks have to run before the first worker of a release that is staged already


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is decided about one rollout so far."""

    id: int
    kind: Kind
    phase: Phase
    slots: dict[int, Step]
    target: int  # generation the slots go to
    previous: int | None  # generation they come from; None: there was nothing in these slots
    policy: Policy = Policy()
    release: str | None = None
    replaced: bool = False  # a slot ran on the new release alone at some time
    failure: Failure | None = None
    warnings: tuple[str, ...] = ()  # what went wrong without changing the outcome


class Want(msgspec.Struct, frozen=True):
    """A slot should run a worker of `generation`: started when it is not there, or only kept while it is."""

    generation: int
    start: bool


class InvalidTransitionError(Exception):
    """A fact that cannot happen in this phase: a bug of the caller."""


def begin(
    rollout_id: int,
    kind: Kind,
    slots: range,
    *,
    target: int,
    previous: int | None,
    release: str | None = None,
    policy: Policy | None = None,
) -> Rollout:
    """A new rollout in its first phase."""
    policy = policy or Policy()
    if kind is not Kind.DEPLOY and release is None:
        raise ValueError(f"a {kind} starts from a release that is there")
    rollout = Rollout(
        id=rollout_id,
        kind=kind,
        phase=Phase.STAGING,
        slots=dict.fromkeys(slots, Step.OLD),
        target=target,
        previous=previous,
        policy=policy,
        release=release,
    )
    return rollout if kind is Kind.DEPLOY or policy.prepare else _after_staging(rollout)


def warned(rollout: Rollout, warnings: Iterable[str]) -> Rollout:
    """The rollout with more to tell; its outcome stays."""
    return msgspec.structs.replace(rollout, warnings=(*rollout.warnings, *warnings))


def advance(rollout: Rollout, fact: AnyFact) -> Rollout:
    """The rollout after `fact`. Raises InvalidTransitionError where the table has no such pair."""
    handler = TRANSITIONS.get((rollout.phase, type(fact)))
    if handler is None:
        raise InvalidTransitionError(f"{type(fact).__name__} cannot happen in phase {rollout.phase}")
    return handler(rollout, fact)


def wants(rollout: Rollout) -> dict[int, tuple[Want, ...]]:
    """What each slot of the rollout should run now. Says nothing about slots outside the rollout."""
    return {slot: _slot_wants(rollout, step) for slot, step in rollout.slots.items()}


def outcome(rollout: Rollout) -> str | None:
    """promoted, reverted, held, failed or unchanged; None while it goes on."""
    if rollout.phase in FINAL or rollout.phase is Phase.HELD:
        return str(rollout.phase)
    return None


def exit_code(rollout: Rollout) -> Exit | None:
    """What the command that waits for the rollout ends with; None while it goes on."""
    if rollout.phase is Phase.PROMOTED:
        return Exit.LIVE_WITH_WARNINGS if rollout.warnings else Exit.OK
    if rollout.phase is Phase.UNCHANGED:
        return Exit.OK
    if rollout.phase is Phase.FAILED:
        failure = rollout.failure
        return Exit(failure.exit) if failure and failure.exit else Exit.NOT_STARTED
    if rollout.phase is Phase.REVERTED:
        return Exit.REVERTED if rollout.replaced or rollout.kind is Kind.SCALE else Exit.HALTED
    if rollout.phase is Phase.HELD:
        return Exit.HELD
    return None


# Private: one small function per (phase, fact)


def _slot_wants(rollout: Rollout, step: Step) -> tuple[Want, ...]:
    """A new worker that dies is not started again before promotion: `advance` hears of it and turns back."""
    promoted = rollout.phase in PAST_TURNING or rollout.phase is Phase.PROMOTED
    old = () if rollout.previous is None else (Want(rollout.previous, True),)
    match step:
        case Step.OLD:
            return old
        case Step.STARTING:
            return (*old, Want(rollout.target, rollout.phase is not Phase.HELD))
        case Step.NEW:
            return (Want(rollout.target, promoted),)
        case Step.RESTORING:
            return (*old, Want(rollout.target, False))


def _to(rollout: Rollout, phase: Phase) -> Rollout:
    return msgspec.structs.replace(rollout, phase=phase)


def _put(rollout: Rollout, steps: dict[int, Step]) -> Rollout:
    replaced = rollout.replaced or Step.NEW in steps.values()
    return msgspec.structs.replace(rollout, slots=rollout.slots | steps, replaced=replaced)


def _staged(rollout: Rollout, fact: Staged) -> Rollout:
    knobs = rollout.policy
    policy = msgspec.structs.replace(
        knobs, soak=knobs.soak or fact.canary_hook, preflight=knobs.preflight or fact.preload
    )
    return _after_staging(msgspec.structs.replace(rollout, release=fact.release, policy=policy))


def _after_staging(rollout: Rollout) -> Rollout:
    if rollout.kind is Kind.SCALE:
        # The release is the promoted one: there is nothing to prove, only slots to fill.
        return _start_next(_to(rollout, Phase.ROLLING))
    if rollout.policy.preflight and rollout.kind is not Kind.RESTART:
        return _to(rollout, Phase.PREFLIGHT)
    return _canary(rollout)


def _canary(rollout: Rollout, _: PreflightPassed | None = None) -> Rollout:
    return _put(_to(rollout, Phase.CANARY), {min(rollout.slots): Step.STARTING})


def _canary_ready(rollout: Rollout, fact: NewReady) -> Rollout:
    soaking = _to(rollout, Phase.SOAKING)
    return soaking if rollout.policy.soak else _soaked(soaking)


def _soaked(rollout: Rollout, _: SoakPassed | None = None) -> Rollout:
    return _start_next(_put(_to(rollout, Phase.ROLLING), {min(rollout.slots): Step.NEW}))


def _new_ready(rollout: Rollout, fact: NewReady) -> Rollout:
    return _start_next(_put(rollout, {fact.slot: Step.NEW}))


def _start_next(rollout: Rollout) -> Rollout:
    """Keep `batch` slots in motion; promote when none is left."""
    under_way = sum(step is Step.STARTING for step in rollout.slots.values())
    waiting = sorted(slot for slot, step in rollout.slots.items() if step is Step.OLD)
    following = waiting[: max(0, rollout.policy.batch - under_way)]
    if not under_way and not following:
        return _to(rollout, Phase.PROMOTING)
    return _put(rollout, dict.fromkeys(following, Step.STARTING))


def _fail(rollout: Rollout, fact: NewFailed | PreflightFailed | DeadlinePassed) -> Rollout:
    failed = msgspec.structs.replace(rollout, failure=rollout.failure or fact.failure)
    # A hold keeps workers of both releases for inspection: it needs a canary to keep and an old release.
    if rollout.policy.hold and rollout.previous is not None and rollout.phase is not Phase.PREFLIGHT:
        return _held_without(failed, fact)
    return _revert(failed)


def _held_without(rollout: Rollout, fact: object) -> Rollout:
    held = _to(rollout, Phase.HELD)
    return _held_new_failed(held, fact) if isinstance(fact, NewFailed) else held


def _held_new_failed(rollout: Rollout, fact: NewFailed) -> Rollout:
    """While held, a new worker that served alone and died gives its slot back to the old release."""
    if fact.failure.reason in KEEPS_WORKER:
        return rollout  # it still runs, and is what the person wants to look at
    back = {Step.NEW: Step.RESTORING, Step.STARTING: Step.OLD}
    step = rollout.slots[fact.slot]
    return _put(rollout, {fact.slot: back.get(step, step)})


KEEPS_WORKER = frozenset({"health", "error_ratio", "latency", "inconclusive", "hook", "hung", "never_ready"})
"""Failures after which the worker is still there."""


def _abort(rollout: Rollout, fact: Aborted) -> Rollout:
    failure = rollout.failure or _aborted(fact)
    return _revert(msgspec.structs.replace(rollout, failure=failure))


def _abort_staging(rollout: Rollout, fact: Aborted) -> Rollout:
    return msgspec.structs.replace(_to(rollout, Phase.FAILED), failure=_aborted(fact))


def _aborted(fact: Aborted) -> Failure:
    return Failure(reason=fact.reason, what=f"{fact.reason} by {fact.by}")


def _staging_failed(rollout: Rollout, fact: StagingFailed | DeadlinePassed) -> Rollout:
    return msgspec.structs.replace(_to(rollout, Phase.FAILED), failure=fact.failure)


def _revert(rollout: Rollout) -> Rollout:
    """Every touched slot goes back at once: visitors should meet a bad release no longer than needed."""
    restart = Step.RESTORING if rollout.previous is not None else Step.OLD
    steps = {slot: restart for slot, step in rollout.slots.items() if step is Step.NEW}
    steps |= {slot: Step.OLD for slot, step in rollout.slots.items() if step is Step.STARTING}
    return _if_restored(_put(_to(rollout, Phase.REVERTING), steps))


def _old_ready(rollout: Rollout, fact: OldReady) -> Rollout:
    return _if_restored(_put(rollout, {fact.slot: Step.OLD}))


def _held_old_ready(rollout: Rollout, fact: OldReady) -> Rollout:
    return _put(rollout, {fact.slot: Step.OLD})


def _if_restored(rollout: Rollout) -> Rollout:
    done = all(step is Step.OLD for step in rollout.slots.values())
    return _to(rollout, Phase.REVERTED) if done else rollout


def _revert_failed(rollout: Rollout, fact: OldFailed) -> Rollout:
    """Nothing is stopped: what still serves goes on, and the slots keep trying the old release."""
    return _to(rollout, Phase.HELD)


def _finished(rollout: Rollout, fact: Finished) -> Rollout:
    return warned(_to(rollout, Phase.PROMOTED), fact.warnings)


def _same(rollout: Rollout, _: object) -> Rollout:
    return rollout


_GOING_ON: dict[tuple[Phase, type[Fact]], Callable[..., Rollout]] = {
    (Phase.STAGING, Staged): _staged,
    (Phase.STAGING, Unchanged): lambda rollout, _: _to(rollout, Phase.UNCHANGED),
    (Phase.STAGING, StagingFailed): _staging_failed,
    (Phase.STAGING, DeadlinePassed): _staging_failed,
    (Phase.STAGING, Aborted): _abort_staging,
    (Phase.PREFLIGHT, PreflightPassed): _canary,
    (Phase.PREFLIGHT, PreflightFailed): _fail,
    (Phase.PREFLIGHT, DeadlinePassed): _fail,
    (Phase.PREFLIGHT, Aborted): _abort,
    (Phase.CANARY, NewReady): _canary_ready,
    (Phase.SOAKING, SoakPassed): _soaked,
    (Phase.ROLLING, NewReady): _new_ready,
    (Phase.PROMOTING, Promoted): lambda rollout, _: _to(rollout, Phase.FINISHING),
    (Phase.PROMOTING, NewFailed): _same,  # past turning back: the slot respawns it
    (Phase.PROMOTING, NewReady): _same,
    (Phase.FINISHING, Finished): _finished,
    (Phase.FINISHING, NewFailed): _same,
    (Phase.FINISHING, NewReady): _same,
    (Phase.REVERTING, OldReady): _old_ready,
    (Phase.REVERTING, OldFailed): _revert_failed,
    (Phase.REVERTING, NewFailed): _same,  # on its way out anyway
    (Phase.REVERTING, NewReady): _same,
    (Phase.REVERTING, Aborted): _same,
    (Phase.HELD, NewFailed): _held_new_failed,
    (Phase.HELD, NewReady): _same,
    (Phase.HELD, OldReady): _held_old_ready,
    (Phase.HELD, OldFailed): _same,
    (Phase.HELD, Aborted): _abort,
}

_TURNING_BACK: dict[tuple[Phase, type[Fact]], Callable[..., Rollout]] = {
    (phase, fact): handler
    for phase in (Phase.CANARY, Phase.SOAKING, Phase.ROLLING)
    for fact, handler in ((NewFailed, _fail), (DeadlinePassed, _fail), (Aborted, _abort))
}

TRANSITIONS = _GOING_ON | _TURNING_BACK
