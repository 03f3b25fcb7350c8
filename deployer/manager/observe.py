"""Facts that can be seen by looking: what the workers there are mean for the rollout that runs. Pure.

Most facts are also heard of when they happen. A manager that was killed between hearing and journaling one sees it
here when it looks again, so no fact is ever lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deployer.manager.reconcile import Seen
from deployer.rollout.events import AnyFact, Failure, NewFailed, NewReady, OldReady
from deployer.rollout.machine import Phase, Rollout, Step


def fact(rollout: Rollout, workers: Sequence[Seen]) -> AnyFact | None:
    """One fact that the rollout does not know yet, or None. Ask again after `advance`."""
    for slot, step in sorted(rollout.slots.items()):
        new = [w for w in workers if w.slot == slot and w.generation == rollout.target]
        old = [w for w in workers if w.slot == slot and w.generation == rollout.previous]
        if step is Step.STARTING and rollout.phase in (Phase.CANARY, Phase.ROLLING) and _ready(new):
            return NewReady(slot=slot)
        if step is Step.RESTORING and rollout.phase in (Phase.REVERTING, Phase.HELD) and _ready(old):
            return OldReady(slot=slot)
        if _must_live(rollout.phase, step) and not new:
            return NewFailed(slot=slot, failure=_unseen(slot))
    return None


def _ready(workers: Iterable[Seen]) -> bool:
    return any(worker.ready and not worker.condemned for worker in workers)


def _must_live(phase: Phase, step: Step) -> bool:
    """A new worker that was ready once: without it the rollout cannot go on, and a held slot would stay empty."""
    if step is Step.NEW:
        return phase in (Phase.ROLLING, Phase.HELD)
    return phase is Phase.SOAKING and step is Step.STARTING


def _unseen(slot: int) -> Failure:
    what = f"worker {slot} ended while the manager was being replaced"
    return Failure(reason="worker_exit", what=what, slot=slot, hint=f"deployer logs --slot {slot}")
