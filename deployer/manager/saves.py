"""What saves need and leave behind: quick commits and a warm template while a watch goes on; of their files, and of
what state.db knows of them, only the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

import structlog

from deployer.manager.warm import Warm
from deployer.osutil.tasks import watched
from deployer.paths import Layout
from deployer.releases import tree
from deployer.releases.catalog import Catalog
from deployer.rollout.machine import Rollout
from deployer.state.store import Store

KEPT = 5  # saves that stay beside what serves and what is being made, to go back to
ROLLOUTS = 100  # rollouts of saves that are remembered
FORGET_EVERY = 20  # rollouts

log = structlog.get_logger()


class Saves:
    """One removal at a time, in a thread; what comes meanwhile is looked at when it is over."""

    def __init__(
        self,
        *,
        store: Store,
        catalog: Catalog,
        layout: Layout,
        used: Callable[[], Collection[str]],
        warm: Warm,
        on_end: Callable[[], object],
    ) -> None:
        self._store, self._catalog, self._layout, self._used, self._warm = store, catalog, layout, used, warm
        self._on_end = on_end
        self._removing = False
        self._due = False
        self._kept = KEPT

    def begin(self) -> None:
        """A watch begins."""
        self._store.hurry(on=True)
        self._kept = KEPT
        self._warm_up()

    def tidy(self, rollout: Rollout) -> None:
        """A rollout of the watch is decided."""
        if rollout.id % FORGET_EVERY == 0:
            self._store.forget_rollouts(ROLLOUTS)
            self._catalog.forget_saves(ROLLOUTS)
            self._store.trim_events()
        self._warm_up()
        self._remove()

    def end(self) -> None:
        """The watch is over: what serves stays."""
        self._store.hurry(on=False)
        self._warm.want(None)
        self._kept = 0
        self._remove()
        self._on_end()

    def _warm_up(self) -> None:
        """The next save will be like what is live."""
        live: str | None = self._store.get("release")
        if live is not None:
            self._warm.want(self._catalog.release(live))

    def _remove(self) -> None:
        self._due = True
        if not self._removing:
            self._removing = True
            watched(self._remove_due())

    async def _remove_due(self) -> None:
        while self._due:
            self._due = False
            used = self._used()
            spare = [name for name in self._catalog.saves() if name not in used]
            self._catalog.condemn(spare[self._kept :])
            await asyncio.to_thread(self._take_away, self._catalog.condemned())
        self._removing = False

    def _take_away(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                tree.remove(self._layout.release(name))
            except OSError as error:  # the next removal tries again
                log.warning("releases.not_removed", release=name, error=str(error))
            self._layout.build_log(name).unlink(missing_ok=True)
