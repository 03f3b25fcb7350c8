"""Changes as the kernel tells them (inotify(7)): one descriptor, a watch for each directory that matters.

watchdog's bindings are used without its Observer, which passes over a reached limit in silence, holds moves back for
half a second, and cannot say "that was all until now".
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
import termios
import time
from typing import NamedTuple

from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import WatchDescriptor, inotify_add_watch, inotify_init, inotify_rm_watch

from deployer.watch.change import EVERYTHING, Change, Kind
from deployer.watch.selection import VENV_MARK, Selection

_MASK = (
    (In.IN_MODIFY | In.IN_ATTRIB | In.IN_CLOSE_WRITE | In.IN_CREATE | In.IN_DELETE)
    | (In.IN_MOVED_FROM | In.IN_MOVED_TO)
    | (In.IN_ONLYDIR | In.IN_DONT_FOLLOW | In.IN_EXCL_UNLINK)
)
_KINDS = (
    (In.IN_CREATE, Kind.MADE),
    (In.IN_MODIFY, Kind.WRITING),
    (In.IN_CLOSE_WRITE, Kind.WRITTEN),
    (In.IN_DELETE | In.IN_MOVED_FROM, Kind.GONE),
)
_HEAD = struct.Struct("iIII")
_READ = 1 << 18  # bytes at once
_LIMITS = (errno.ENOSPC, errno.EMFILE)  # of watches; of instances


class LimitError(Exception):
    """The kernel gives no more watches, or none at all."""

    def __init__(self, number: int, directories: int) -> None:
        super().__init__(os.strerror(number))
        self.of_watches = number == errno.ENOSPC
        self.directories = directories  # that are watched already


class _Event(NamedTuple):
    wd: WatchDescriptor
    mask: int
    name: str


class KernelWatch:
    """Watches the selection, also what is made in it later. Raises LimitError, from `read` too."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._by_wd: dict[WatchDescriptor, str] = {}
        self._by_path: dict[str, WatchDescriptor] = {}
        self._changes: list[Change] = []
        self._stale = False  # some .gitignore changed
        self._drained_ns = time.time_ns()
        self.fd = inotify_init()
        if self.fd < 0:
            raise _error(0)
        os.set_inheritable(self.fd, False)
        try:
            self._enter("", tell=False)
        except BaseException:
            self.close()
            raise

    @property
    def directories(self) -> int:
        return len(self._by_wd)

    @property
    def blind(self) -> bool:
        """The source itself is not watched: it was removed."""
        return "" not in self._by_path

    def close(self) -> None:
        os.close(self.fd)

    def read(self) -> list[Change]:
        """All that happened until now; who writes without end does not keep us here."""
        self._changes = []
        began_ns = time.time_ns()
        left = self._queued()
        while left > 0:
            data = os.read(self.fd, _READ)
            left -= len(data)
            for event in _events(data):
                self._take(event)
        if self._stale:
            self._stale = False
            self.rescan()
        self._drained_ns = began_ns
        return self._changes

    def rescan(self) -> None:
        """What matters may be something else now: watch what is new to it, and no more what is not."""
        self._selection.reload()
        paths = {found.path for found in self._selection.walk() if found.directory}
        for path in [path for path in self._by_path if path and path not in paths]:
            self._leave_one(path)
        for path in sorted(paths - self._by_path.keys()):
            self._watch(path)

    def _queued(self) -> int:
        """Bytes."""
        answer = fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    def _take(self, event: _Event) -> None:
        if event.mask & In.IN_Q_OVERFLOW:
            self._lost_events()
            return
        if event.mask & In.IN_IGNORED:
            self._forget(event.wd)
            return
        parent = self._by_wd.get(event.wd)
        if parent is None or not event.name:
            return  # of a directory that is watched no more; of a watched directory itself, which its parent tells
        path = f"{parent}/{event.name}" if parent else event.name
        if event.mask & In.IN_ISDIR:
            self._take_directory(path, event.mask)
            return
        if event.name == VENV_MARK and parent:
            self._leave(parent)  # somebody makes a virtual environment
            return
        if self._selection.matters(path, directory=False):
            self._take_file(path, event.mask)
            self._stale |= event.name == ".gitignore"

    def _take_directory(self, path: str, mask: int) -> None:
        if not self._selection.matters(path, directory=True):
            return
        self._selection.forget(path)
        if mask & (In.IN_CREATE | In.IN_MOVED_TO):
            self._enter(path, tell=True)
        elif mask & In.IN_MOVED_FROM:
            # Its watches would go on to tell of it, under the name that it had.
            if path in self._by_path:
                self._leave(path)
                self._changes.append(Change(path, Kind.LOST, directory=True))
        elif mask & In.IN_DELETE:
            self._changes.append(Change(path, Kind.GONE, directory=True))
        elif path not in self._by_path:
            self._enter(path, tell=True)  # its mode changed: it may be one that could not be read before

    def _take_file(self, path: str, mask: int) -> None:
        kind = next((kind for bit, kind in _KINDS if mask & bit), Kind.CHANGED)
        self._changes.append(Change(path, kind))
        if kind is Kind.MADE and _is_fresh(self._selection.absolute(path)):
            self._changes.append(Change(path, Kind.WRITING))  # it is about to be: links, and what was linked, are whole

    def _enter(self, path: str, *, tell: bool, since_ns: int = 0) -> None:
        """Watch a directory and all below it, each before it is listed: what is made in it meanwhile is seen by the
        one or the other. With `tell` all there is in it is told, or what changed since."""
        pending = [path]
        while pending:
            directory = pending.pop()
            known = directory in self._by_path and not since_ns
            if not self._selection.enters(directory) or not self._watch(directory):
                continue
            if tell and directory and not known:
                self._changes.append(Change(directory, Kind.MADE, directory=True))
            for found in self._selection.entries(directory):
                if found.directory:
                    pending.append(found.path)
                elif tell and _changed_ns(found.entry) >= since_ns:
                    self._changes.append(Change(found.path, Kind.CHANGED))

    def _watch(self, path: str) -> bool:
        """False for what is no directory that one may read: it went meanwhile, or the copy tells."""
        place = os.fsencode(self._selection.absolute(path))
        wd = inotify_add_watch(self.fd, place, _MASK)
        if wd < 0:
            if ctypes.get_errno() in _LIMITS:
                raise _error(len(self._by_wd))
            return False
        # The same directory has the same number, under whatever name it was known.
        former = self._by_wd.get(wd)
        if former is not None and former != path:
            del self._by_path[former]
        replaced = self._by_path.get(path)
        if replaced is not None and replaced != wd:
            del self._by_wd[replaced]
        self._by_wd[wd] = path
        self._by_path[path] = wd
        return True

    def _leave(self, path: str) -> None:
        for each in [each for each in self._by_path if each == path or each.startswith(f"{path}/")]:
            self._leave_one(each)

    def _leave_one(self, path: str) -> None:
        wd = self._by_path.pop(path)
        del self._by_wd[wd]
        inotify_rm_watch(self.fd, wd)  # fails for one that is gone, which is as well

    def _forget(self, wd: WatchDescriptor) -> None:
        path = self._by_wd.pop(wd, None)
        if path is not None:
            del self._by_path[path]

    def _lost_events(self) -> None:
        """More happened than the kernel keeps: all is looked at again, and told if it is not older."""
        self.rescan()
        self._changes.append(Change(EVERYTHING, Kind.CHANGED))
        self._enter("", tell=True, since_ns=self._drained_ns - 1_000_000_000)


def _events(data: bytes) -> list[_Event]:
    events, at = [], 0
    while at < len(data):
        wd, mask, _, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        events.append(_Event(WatchDescriptor(wd), mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
        at += length
    return events


def _error(directories: int) -> Exception:
    number = ctypes.get_errno()
    return LimitError(number, directories) if number in _LIMITS else OSError(number, os.strerror(number))


def _is_fresh(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return found.st_size == 0 and found.st_nlink == 1


def _changed_ns(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_ctime_ns
    except OSError:
        return time.time_ns()  # it has just gone
