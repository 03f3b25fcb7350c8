"""When what died is tried again: at once, then 0.5 s later, then ever later."""

from __future__ import annotations

import time

from deployer.clock import uptime
from deployer.manager.reconcile import backoff

STABLE_S = 10.0  # what lived as long died of something else than its start


class Retries:
    """By name."""

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        """Did it die lately?"""
        return name in self._deaths

    def died(self, name: str, spawned_at: float | None = None) -> None:
        """`spawned_at` (`uptime`) of one that could be started."""
        if spawned_at is not None and uptime() - spawned_at > STABLE_S:
            self.forget(name)
        deaths = self._deaths[name] = self._deaths.get(name, 0) + 1
        self._not_before[name] = time.monotonic() + max(0.5 if deaths > 1 else 0.0, backoff(deaths))

    def wait_s(self, name: str) -> float:
        """How long the next try is to wait still; 0 or less: not at all."""
        return self._not_before.get(name, 0.0) - time.monotonic()

    def forget(self, name: str) -> None:
        self._deaths.pop(name, None)
        self._not_before.pop(name, None)
