"""What can happen to a rollout. Facts in the past tense; frozen; journaled as JSON."""

from __future__ import annotations

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a rollout halts. `reason` is the machine word of DESIGN.md, the rest is for people."""

    reason: str
    what: str
    cause: str | None = None
    hint: str | None = None
    slot: int | None = None
    tail: tuple[str, ...] = ()
    exit: int | None = None  # where the kind of failure fixes the exit code (a bad config: 78)


class Fact(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all events; the tag is the class name."""


class Staged(Fact, frozen=True, kw_only=True):
    """The release is whole, and the hooks before the rollout passed."""

    release: str
    canary_hook: bool = False  # it has a hook for the canary, which then soaks, were it for no time
    preload: bool = False  # its workers are forked from a template, which the preflight makes


class Unchanged(Fact, frozen=True, kw_only=True):
    """What was asked for is live already."""


class StagingFailed(Fact, frozen=True, kw_only=True):
    failure: Failure


class PreflightPassed(Fact, frozen=True, kw_only=True):
    pass


class PreflightFailed(Fact, frozen=True, kw_only=True):
    failure: Failure


class NewReady(Fact, frozen=True, kw_only=True):
    """The slot's worker of the target generation is ready."""

    slot: int


class NewFailed(Fact, frozen=True, kw_only=True):
    """The slot's worker of the target generation died, never got ready or is unhealthy."""

    slot: int
    failure: Failure


class SoakPassed(Fact, frozen=True, kw_only=True):
    pass


class OldReady(Fact, frozen=True, kw_only=True):
    """A worker of the previous generation is ready in the slot again (only while reverting)."""

    slot: int


class OldFailed(Fact, frozen=True, kw_only=True):
    """The previous release does not come up in the slot any more (only while reverting)."""

    slot: int
    failure: Failure


class Promoted(Fact, frozen=True, kw_only=True):
    pass


class Finished(Fact, frozen=True, kw_only=True):
    """What comes after promotion is done; what went wrong with it is no reason to go back."""

    warnings: tuple[str, ...] = ()


class DeadlinePassed(Fact, frozen=True, kw_only=True):
    failure: Failure


class Aborted(Fact, frozen=True, kw_only=True):
    by: str
    reason: str = "aborted"  # or superseded: by a newer one


AnyFact = (
    Staged
    | Unchanged
    | StagingFailed
    | PreflightPassed
    | PreflightFailed
    | NewReady
    | NewFailed
    | SoakPassed
    | OldReady
    | OldFailed
    | Promoted
    | Finished
    | DeadlinePassed
    | Aborted
)
