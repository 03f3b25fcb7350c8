"""After a rollout: releases, environments and logs that nobody needs any more are removed. What fails is a warning."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import structlog

from deployer.config.model import Release as Keep
from deployer.paths import Layout
from deployer.releases import envs, tree
from deployer.releases.catalog import Catalog
from deployer.releases.retention import promoted, removable

ROLLOUT_LOGS = 50  # kept, each of at most 16 MB

log = structlog.get_logger()


class CleanUp:
    """Decides in the loop, journals it, and removes in a thread."""

    def __init__(self, *, catalog: Catalog, layout: Layout, used: Callable[[], Collection[str]]) -> None:
        self._catalog, self._layout, self._used = catalog, layout, used

    def after(self, keep: Keep, live: str | None, target: str | None) -> list[str]:
        """What would go when `target` (None: a release to come) is live in place of `live`."""
        kept = promoted(self._catalog.kept(), live, target)
        return removable(kept, keep=keep.keep, keep_failed=keep.keep_failed, used=self._used())

    async def run(self, keep: Keep) -> list[str]:
        """Remove what may go. Warnings, one for each thing that stays although it should not."""
        warnings = await self.releases(keep)
        return warnings + await asyncio.to_thread(self._remove_environments, self._catalog.environments())

    async def releases(self, keep: Keep) -> list[str]:
        """The part that is safe beside a rollout: an environment may be wanted by a release that is being staged."""
        kept = self._catalog.kept()
        names = removable(kept, keep=keep.keep, keep_failed=keep.keep_failed, used=self._used())
        self._catalog.condemn(names)  # from here on no rollback goes to them, were we killed in the middle of one
        if names:
            log.info("releases.removing", releases=names)
        # Listed here: a rollout that begins while the thread removes finds its own log where it put it.
        logs = [*self._catalog.spent_logs(keep.keep_failed), *oldest(self._layout.logs.glob("rollout-*.log"))]
        return await asyncio.to_thread(self._remove, self._catalog.condemned(), logs)

    def _remove(self, names: Sequence[str], logs: Sequence[Path]) -> list[str]:
        releases = [text for name in names if (text := self._attempt(name)) is not None]
        return releases + [text for path in logs if (text := _unlink(path)) is not None]

    def _attempt(self, name: str) -> str | None:
        try:
            tree.remove(self._layout.release(name))
        except OSError as error:
            log.warning("releases.not_removed", release=name, error=str(error))
            where = os.fsdecode(error.filename) if error.filename else str(self._layout.release(name))
            return f"release {name} could not be removed: {error.strerror or error} ({where})"
        return None

    def _remove_environments(self, used: Collection[str]) -> list[str]:
        """Those that no release refers to. While one is being built all stay: the next rollout looks again."""
        warnings = []
        for path in envs.unused(self._layout.envs, used):
            try:
                envs.remove(path)
            except BlockingIOError:
                break
            except OSError as error:
                log.warning("environment.not_removed", environment=path.name, error=str(error))
                warnings.append(f"environment {path.name} could not be removed: {error.strerror or error} ({path})")
        return warnings


def oldest(logs: Iterable[Path]) -> list[Path]:
    """All but the ROLLOUT_LOGS that were written to last."""
    written = {}
    for path in logs:
        with contextlib.suppress(FileNotFoundError):  # another clean-up was faster
            written[path] = path.stat().st_mtime_ns
    return sorted(written, key=lambda path: written[path], reverse=True)[ROLLOUT_LOGS:]


def _unlink(path: Path) -> str | None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("log.not_removed", path=str(path), error=str(error))
        return f"the log {path} could not be removed: {error.strerror or error}"
    return None
