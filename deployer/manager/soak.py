"""The canary's soak: it lives beside the worker it is to replace, stays healthy, and answers visitors as well."""

from __future__ import annotations

import asyncio
import time

from deployer.config.model import Inconclusive
from deployer.manager import verdict
from deployer.manager.comparison import Comparison
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.rollout.machine import Rollout
from deployer.rollout.numbers import Judgement, Verdict
from deployer.state.store import Store
from deployer.units import parse_duration
from deployer.workers.pool import Pool
from deployer.workers.readiness import health_of, waits_for_visitors
from deployer.workers.worker import State, Worker

CHECKS = 4  # health checks of the canary during its soak
MEET_S = 1.0  # how long a check tries to meet a canary that no preflight has proven
MEET_LIMIT_S = 10.0  # how much longer than its soak such a canary is looked for
NUMBERS_S = 1.0  # at most so long between two looks at what it answers to visitors
EXTENSION_S = 5.0  # at least so long is a soak that goes on
LOOK_S = 0.05


class Soak:
    """`watch` says why the canary failed, or None when it has passed. Its death is heard by the supervisor.

    Nothing of it is kept: the soak of a manager that was killed begins anew with the next one.
    """

    def __init__(self, store: Store, pool: Pool, rollout: Rollout, release: Release) -> None:
        self._store, self._pool = store, pool
        self._slot, self._generation = min(rollout.slots), rollout.target
        self._limits, self._health = release.config.rollout, release.config.health
        self._seconds = self._span = parse_duration(self._limits.soak)
        self._end = time.monotonic() + self._span
        self._comparison = Comparison(pool, rollout.previous, self._limits)
        self._judged: Judgement | None = None
        self._bad = 0  # health checks in a row
        self._met = rollout.policy.preflight  # which has proven that it serves
        self._probed_at = 0.0
        self._extended = False

    async def watch(self) -> Failure | None:
        while True:
            canary = newest(self._pool, self._slot, self._generation)
            if canary is None:  # the supervisor is about to see that, and ends this work
                await asyncio.sleep(LOOK_S)
                continue
            failure = await self._by_health(canary) or self._by_numbers(canary)
            if failure is not None:
                return failure
            if self._is_over() and not self._bad:
                if self._is_deaf(canary):
                    return verdict.failure_of_silence(canary, self._seconds)
                if self._was_met(canary) and not self._must_go_on():
                    return self._in_the_end(canary)
            await asyncio.sleep(min(max(self._left(), LOOK_S), self._span / CHECKS, NUMBERS_S))

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _is_over(self) -> bool:
        """An extension is over as soon as it has brought what it was for."""
        enough = self._judged is not None and self._judged.verdict is Verdict.GOOD
        return self._left() <= 0 or (self._extended and enough)

    # By its health

    async def _by_health(self, canary: Worker) -> Failure | None:
        """Ask the canary how it is, each time that is due."""
        now = time.monotonic()
        if now < min(self._probed_at + self._span / CHECKS, self._end):
            return None
        self._probed_at = now
        patience = 0.0 if self._met and not self._bad else MEET_S
        answer = await health_of(canary, patience) if _can_be_asked(canary) else None
        if answer is None:
            return None  # others answered each time, which says nothing
        self._met, self._bad = True, 0 if answer.status == self._health.expect else self._bad + 1
        if self._bad < min(self._health.unhealthy_after, CHECKS):
            return None
        return verdict.failure_of_health(canary, answer)

    def _is_deaf(self, canary: Worker) -> bool:
        return bool(canary.listeners) and not self._met and not waits_for_visitors(canary)

    def _was_met(self, canary: Worker) -> bool:
        """Or cannot be, or was looked for long enough."""
        return self._met or not _can_be_asked(canary) or self._health.http is None or self._left() < -MEET_LIMIT_S

    # By its numbers

    def _by_numbers(self, canary: Worker) -> Failure | None:
        """Visitors should meet a bad release no longer than it takes to know."""
        self._judged = self._comparison.look(canary)
        bad = self._judged is not None and self._judged.verdict is Verdict.BAD
        return self._in_the_end(canary) if bad else None

    def _must_go_on(self) -> bool:
        """Too few visitors came, and more are to be waited for: the rollout's deadline ends that."""
        judged = self._judged
        if judged is None or judged.verdict is not Verdict.INCONCLUSIVE:
            return False
        if self._limits.inconclusive is not Inconclusive.EXTEND:
            return False
        self._span, self._extended = max(self._seconds, EXTENSION_S), True
        self._end = time.monotonic() + self._span
        self._store.emit("soak.extended", seconds=self._span, text=judged.text)
        return True

    def _in_the_end(self, canary: Worker) -> Failure | None:
        """Tell what was judged, where anything was; the failure when the rollout must not go on."""
        judged = self._judged
        if judged is None:
            return None
        self._store.emit(
            "canary.judged",
            slot=self._slot,
            release=canary.release.name,
            verdict=judged.verdict,
            reason=judged.reason,
            text=judged.text,
            canary=judged.canary,
            peers=judged.peers,
            slow_s=judged.slow_s,
        )
        unproven = judged.verdict is Verdict.INCONCLUSIVE and self._limits.inconclusive is Inconclusive.REVERT
        if unproven or judged.verdict is Verdict.BAD:
            return verdict.failure_of_numbers(canary, judged, self._comparison.last_error)
        return None


def newest(pool: Pool, slot: int, generation: int | None) -> Worker | None:
    """The youngest worker of a generation in a slot."""
    found = (w for w in pool.workers.values() if w.slot == slot and w.generation == generation)
    return max(found, key=lambda worker: worker.id, default=None)


def _can_be_asked(canary: Worker) -> bool:
    return bool(canary.listeners) and canary.state is State.READY
