"""What sees the changes: the kernel; or a look now and then, where that is asked for or the kernel has no more to
give."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from deployer.watch.change import EVERYTHING, Change, Kind
from deployer.watch.checkout import Checkout
from deployer.watch.kernel import KernelWatch, LimitError
from deployer.watch.polling import PollingWatch
from deployer.watch.protocol import Fault, Settings, ToManager, Watching
from deployer.watch.selection import Selection, identity

TOP_S = 1.0
"""How often it is asked whether the source is still the directory that is watched: one that was removed and made
anew, or a link that leads elsewhere now, is another, and no kernel tells."""
FALLBACK_POLL_S = 1.0
POLL_SHARE = 10  # looking takes at most this part of the time


class Sight:
    def __init__(self, settings: Settings, tell: Callable[[ToManager], None]) -> None:
        self._settings = settings
        self._tell = tell
        self._poll_s = settings.poll_s
        self._poll_at = 0.0
        self._open()

    @property
    def fd(self) -> int | None:
        """Readable: there is something to `read`."""
        return self._watch.fd

    def due(self, *, settling: bool) -> float:
        """When to `read` whatever the descriptor says (time.monotonic); `settling`: a change waits to be told."""
        if self._poll_s is None:
            return self._top_at
        soon = self._settings.settle_s if settling else self._poll_s
        return min(self._top_at, self._poll_at - self._poll_s + max(soon, self._look_s))

    def counts(self, change: Change) -> bool:
        if change.kind is Kind.LOST or change.path == EVERYTHING:
            return True  # nobody knows what was in it
        if change.directory and change.kind not in (Kind.MADE, Kind.GONE):
            return False
        return self._selection.filters.counts(change.path, directory=change.directory)

    def read(self) -> list[Change]:
        """All that happened until now and matters."""
        if time.monotonic() >= self._top_at and self._replaced():
            self._watch.close()
            self._open()
            return [Change(EVERYTHING, Kind.CHANGED)]
        try:
            return self._look()
        except LimitError as error:
            self._watch.close()
            self._fall_back(error)
            return [Change(EVERYTHING, Kind.CHANGED)]

    def written_since(self, at: float) -> list[tuple[float, str]]:
        """Files by the time of their last write (seconds since the epoch, from `at` on), oldest first."""
        found = []
        for each in self._selection.walk():
            if not each.directory and (written := _written_at(each.entry)) >= at:
                found.append((written, each.path))
        return sorted(found)

    def close(self) -> None:
        self._watch.close()

    def _look(self) -> list[Change]:
        began = time.monotonic()
        changes = self._watch.read()
        if self._poll_s is not None:
            now = time.monotonic()
            self._look_s = (now - began) * POLL_SHARE
            self._poll_at = now + self._poll_s
        return changes

    def _open(self) -> None:
        self._identity = identity(self._settings.path)
        self._top_at = time.monotonic() + TOP_S
        self._look_s = 0.0
        self._selection = Selection(self._settings)
        self.checkout = Checkout(self._selection.top)
        self._watch: KernelWatch | PollingWatch
        if self._poll_s is not None:
            self._poll()
            return
        try:
            self._watch = KernelWatch(self._selection)
        except LimitError as error:
            self._fall_back(error)
        else:
            self._tell(Watching(mode="kernel", directories=self._watch.directories))

    def _poll(self) -> None:
        assert self._poll_s is not None
        self._watch = PollingWatch(self._selection)
        self._poll_at = time.monotonic() + self._poll_s
        self._tell(Watching(mode="poll", directories=self._watch.directories))

    def _fall_back(self, error: LimitError) -> None:
        self._poll_s = FALLBACK_POLL_S
        self._poll()
        self._tell(fault(error, self._watch.directories, _limit(error)))

    def _replaced(self) -> bool:
        self._top_at = time.monotonic() + TOP_S
        found = identity(self._settings.path)
        return found != self._identity or (found is not None and self._watch.blind)  # a number may be used again


def fault(error: LimitError, directories: int, limit: tuple[str, int] | None) -> Fault:
    """What a person should do about it. `limit`: the sysctl that says how much there is, and its value."""
    what = "inotify watches" if error.of_watches else "inotify instances"
    of = f" ({limit[0]} = {limit[1]})" if limit is not None else ""
    had = f"{error.directories} of {directories} directories were watched" if error.of_watches else "none is left"
    return Fault(
        what="not all directories can be watched: they are looked at once a second from now on",
        cause=f"the limit of {what} for all programs of this user is reached{of}; {had}",
        hint=_hint(error, limit),
    )


def _hint(error: LimitError, limit: tuple[str, int] | None) -> str:
    key, value = limit or (_SYSCTLS[error.of_watches][0], 0)
    enough = max(524_288 if error.of_watches else 1024, 2 * value)
    return f"sudo sysctl {key}={enough}  # then start the watch again"


_SYSCTLS = {
    True: ("fs.inotify.max_user_watches", "user.max_inotify_watches"),
    False: ("fs.inotify.max_user_instances", "user.max_inotify_instances"),
}
"""By whether watches are meant. The second is that of the user namespace, in a container."""


def _limit(error: LimitError) -> tuple[str, int] | None:
    """The lowest of those that count."""
    found = []
    for key in _SYSCTLS[error.of_watches]:
        try:
            found.append((int(Path("/proc/sys", *key.split(".")).read_text()), key))
        except (OSError, ValueError):
            continue
    return (min(found)[1], min(found)[0]) if found else None


def _written_at(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0  # it has just gone
