"""What is saved in the source of a watch: the child that tells of it, started anew whenever it ends, and heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from deployer.manager import staging
from deployer.manager.occasion import FILES_TOLD, Watch
from deployer.manager.watchchild import ChildGoneError, WatchChild
from deployer.osutil.tasks import watched
from deployer.paths import Layout
from deployer.releases import tree
from deployer.releases.request import StageRequest, StageResult
from deployer.state.store import NO_ROLLOUT, Store
from deployer.watch.protocol import Fault, Saved, Settings, Watching
from deployer.wire.schema import Problem

TRIES = 3  # children that a staging waits for
CHILD_S = 10.0  # how long for each
AGAIN_S = 0.5  # before a child that ended is started anew

log = structlog.get_logger()


class Lookout:
    """Of one watch, from its beginning to its end. `on_news` is called when there may be something to begin.

    `pending` is the newest save that no snapshot has; `unseen`: something may have changed while nobody watched.
    """

    def __init__(
        self,
        store: Store,
        watch: Watch,
        settings: Callable[[], Settings],
        on_news: Callable[[], None],
        *,
        unseen: bool,
    ) -> None:
        self._store, self._watch, self._settings, self._on_news = store, watch, settings, on_news
        self.pending: Saved | None = None
        self.unseen = unseen
        self.saves = 0
        self.watching: Watching | None = None
        self._is_open = watch.active
        self._retry: asyncio.TimerHandle | None = None
        self._child: WatchChild | None = None
        self._is_up = asyncio.Event()  # there is one that watches
        self._start()

    @property
    def is_ready(self) -> bool:
        """Does it see what is saved from now on?"""
        return self._is_up.is_set()

    def open(self) -> None:
        """People are told from now on."""
        if self._is_open:
            return
        self._is_open = True
        if self.watching is not None:
            self._tell_started(self.watching)
        if self.pending is not None:
            self._tell_saved(self.pending)

    def tell_fault(self, fault: Fault) -> None:
        if self._is_open:
            self._emit("watch.fault", what=fault.what, cause=fault.cause, hint=fault.hint)

    def follow_settings(self) -> None:
        """[watch] in deployer.toml may be what was saved."""
        if self._child is not None and self._child.settings != self._settings():
            self.close()
            self.unseen = True
            self._start()

    async def stage(self, request: StageRequest, on_progress: Callable[[str], None]) -> StageResult | Problem:
        """By the child, which is warm and knows when all is of one moment, and no file half written. One that ends is
        waited for to be replaced; only where none comes it is done by a process that is started for it."""
        for _ in range(TRIES):
            try:
                await asyncio.wait_for(self._is_up.wait(), CHILD_S)
                assert self._child is not None
                self.pending = None  # it is part of this snapshot
                return await self._child.stage(request, on_progress)
            except (TimeoutError, ChildGoneError) as error:
                log.warning("watch.not_staged", error=str(error))
                # It may be whole, but who made it died before it could say so.
                tree.remove(Layout(Path(request.root)).release(request.name))
        return await staging.stage(request, on_progress)

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._child is not None:
            watched(self._child.close())
        self._gone()

    # Private

    def _start(self) -> None:
        self._retry = None
        self._child = WatchChild(self._settings(), self._hear, self._on_end)

    def _gone(self) -> None:
        self._child, self.watching = None, None
        self._is_up.clear()

    def _on_end(self, why: str) -> None:
        self._gone()
        self.unseen = True
        self.tell_fault(Fault(what="the process that watches has ended", cause=why, hint="it is started anew"))
        self._retry = asyncio.get_running_loop().call_later(AGAIN_S, self._start)

    def _hear(self, word: Watching | Fault | Saved) -> None:
        match word:
            case Watching():
                before, self.watching = self.watching, word
                self._is_up.set()
                if self._is_open and before != word:
                    self._tell_started(word)
            case Fault():
                self.tell_fault(word)
            case Saved():
                self.saves += 1
                self.pending = word
                if self._is_open:
                    self._tell_saved(word)
        self._on_news()

    def _tell_started(self, word: Watching) -> None:
        self._emit(
            "watch.started",
            kind=self._watch.kind,
            path=self._watch.path,
            mode=word.mode,
            directories=word.directories,
        )

    def _tell_saved(self, saved: Saved) -> None:
        self._emit("watch.saved", files=saved.files[:FILES_TOLD], count=saved.count, at=saved.at)

    def _emit(self, event: str, **fields: object) -> None:
        self._store.emit(event, rollout=NO_ROLLOUT, watch=self._watch.id, **fields)
