"""A directory as it is now, copied: no link followed, nothing changed in it, and no half of a change taken along."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import SourceError
from deployer.releases.digest import Summary, TreeHash
from deployer.releases.index import Entry, IndexWriter
from deployer.releases.links import OWN, Previous, PreviousDirectory
from deployer.releases.request import Directory
from deployer.releases.sources.base import Exclude, Origin, Progress, check_depth, shown
from deployer.releases.sources.ignore import Ignore, Level
from deployer.units import format_size

ALWAYS_EXCLUDED = (".git", "__pycache__", "*.pyc", ".venv")
TRIES = 5
"""How often a file or directory that changes under the copy is copied anew before that is an error."""
RETRY_PAUSE_S = 0.05
"""Between tries: an editor or compiler has then finished the file it was writing."""
CHUNK = 1 << 20  # bytes read at a time: memory does not grow with the files
SETTLED_NS = 100_000_000  # a file changed so recently may change again within the same tick of the clock
PROGRESS_S = 2.0  # between two lines of progress

_REPLACED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE}
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # NONBLOCK: a name that became a fifo
_SPECIAL: list[tuple[Callable[[int], bool], str]] = [
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a fifo"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
]


_Record = tuple[bytes, int, bytes, int]
"""One entry for the digest: path, kind, content digest or link target, size."""
_FILE, _EXECUTABLE, _LINK, _DIRECTORY = range(4)


class _ChangedError(Exception):
    """What is being copied is not what it was a moment ago."""


def copy(
    source: Directory, base: Path, root: Path, into: Path, index: IndexWriter, previous: Previous, progress: Progress
) -> tuple[Origin, Summary]:
    """Fill the empty directory `into`; ROOT is left out wherever it lies in the source.

    Modes (without setuid and setgid: the copy has another owner) and times are kept, owners and extended
    attributes are not. Raises SourceError for the source's faults, OSError for those of the disk written to.
    """
    path = Path(os.path.normpath(base / os.path.expanduser(source.path)))
    _check(path, root)
    progress(f"copying {shown(str(path))}")
    exclude = Exclude((*ALWAYS_EXCLUDED, *source.exclude))
    copier = _Copier(path, into, exclude, Exclude(source.include), index, previous, progress)
    copier.leave_out(root)
    copier.leave_out(into)
    summary = copier.run()
    shared = previous.shared_files
    unchanged = f", {shared} of them unchanged and shared with the release before" if shared else ""
    progress(f"copied {summary.files} files, {format_size(summary.bytes)}{unchanged}")
    return Origin(description=f"path {path}"), summary


def _check(path: Path, root: Path) -> None:
    hint = "set `path` in [source] of deployer.toml, or run: deployer deploy --path DIR"
    try:
        found = path.stat()
    except OSError as error:
        what = f"cannot use the source directory {shown(str(path))}"
        raise SourceError(what, cause=error.strerror, hint=hint) from error
    if not stat.S_ISDIR(found.st_mode):
        raise SourceError(f"the source {shown(str(path))} is not a directory", hint=hint)
    if os.path.samestat(found, root.stat()):
        raise SourceError(
            f"the source {shown(str(path))} is ROOT itself, where deployer keeps its own files",
            hint='set `root = ".deployer"` in deployer.toml',
        )


class _Place:
    """The directory that is being copied: descriptors of it, of the new one and of the previous release's."""

    def __init__(self, relative: str, fd: int, new: int, old: PreviousDirectory | None, ignores: list[Level]) -> None:
        self.relative = relative
        self.prefix = os.fsencode(relative) + b"/" if relative else b""
        self.fd = fd
        self.new = new
        self.old = old
        self.ignores = ignores
        self.entries: list[Entry] = []
        self.own: set[bytes] = set()  # names of files that no release may share


@dataclass(slots=True)
class _Level:
    """A directory whose own entries are copied, and which of its records are still to be counted."""

    target: str
    found: os.stat_result
    ignores: list[Level]
    records: Iterator[_Record]


class _Copier:
    """One copy, directory by directory in the digest's order: what is remembered is the way down to where it is."""

    def __init__(
        self,
        source: Path,
        into: Path,
        exclude: Exclude,
        include: Exclude,
        index: IndexWriter,
        previous: Previous,
        progress: Progress,
    ) -> None:
        self._source = str(source)
        self._into = str(into)
        self._exclude = exclude
        self._include = include
        self._ignore = Ignore(source)
        self._index = index
        self._previous = previous
        self._progress = progress
        self._left_out: set[tuple[int, int]] = set()
        self._told_at = time.monotonic()
        self._files = 0

    def leave_out(self, path: Path) -> None:
        """By identity, not by name: ROOT may be reached through a link or a bind mount."""
        found = path.stat()
        self._left_out.add((found.st_dev, found.st_ino))

    def run(self) -> Summary:
        total = TreeHash()
        pending = [self._copy_directory("", [])]
        while pending:
            level = pending[-1]
            for path, kind, value, size in level.records:
                if kind == _DIRECTORY:
                    name = os.fsdecode(path)
                    check_depth(name)
                    total.directory(path)
                    os.mkdir(os.path.join(self._into, name), 0o700)
                    pending.append(self._copy_directory(name, level.ignores))
                    break
                if kind == _LINK:
                    total.link(path, value)
                else:
                    total.file(path, kind == _EXECUTABLE, value, size)
            else:
                # Its own mode may forbid writing into it, and each entry made moves its mtime: now that all is in it.
                os.chmod(level.target, stat.S_IMODE(level.found.st_mode) & 0o777)
                os.utime(level.target, ns=(level.found.st_atime_ns, level.found.st_mtime_ns))
                pending.pop()
        return total.summary()

    def _copy_directory(self, relative: str, ignores: list[Level]) -> _Level:
        """Copy what is no directory; note those that are. Anew when the list of names changed meanwhile."""
        target = os.path.join(self._into, relative)
        counted = self._files
        for attempt in range(TRIES):
            if attempt:
                time.sleep(RETRY_PAUSE_S)
                self._files = counted
                _empty(target)
            try:
                return self._copy_entries(relative, target, ignores)
            except _ChangedError:
                continue
        raise _unstable(self._path(relative))

    def _copy_entries(self, relative: str, target: str, ignores: list[Level]) -> _Level:
        fd = self._open_directory(relative)
        old = self._previous.open(os.fsencode(relative))
        new = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            before = os.fstat(fd)
            with os.scandir(fd) as scan:
                entries = sorted([(os.fsencode(entry.name), entry) for entry in scan], key=_first)
            own = self._ignore.level(f"/proc/self/fd/{fd}/.gitignore", relative) if _has_gitignore(entries) else None
            ignores = ignores if own is None else [*ignores, own]
            place = _Place(relative, fd, new, old, ignores)
            records = [record for raw, entry in entries if (record := self._copy_entry(place, raw, entry)) is not None]
            if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
                raise _ChangedError
        finally:
            os.close(new)
            os.close(fd)
            if old is not None:
                old.close()
        self._index.put(os.fsencode(relative), place.entries)
        self._tell()
        return _Level(target, before, ignores, iter(records))

    def _copy_entry(self, place: _Place, raw: bytes, entry: os.DirEntry[str]) -> _Record | None:
        name = entry.name
        child = f"{place.relative}/{name}" if place.relative else name
        is_directory = entry.is_dir(follow_symlinks=False)
        if self._is_left_out(place, child, directory=is_directory):
            return None
        path = place.prefix + raw
        if is_directory:
            if self._identity(place.fd, name) in self._left_out:
                return None
            return path, _DIRECTORY, b"", 0
        if entry.is_symlink():
            self._files += 1
            return path, _LINK, _copy_link(place.fd, name, place.new), 0
        if entry.is_file(follow_symlinks=False):
            self._files += 1
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError as error:
                raise _ChangedError from error
            made = self._share(place, raw, name, found) or self._copy_file(place, child, raw, name)
            place.entries.append(made)
            return path, _EXECUTABLE if made.mode & 0o100 else _FILE, made.digest, made.size
        self._skip_special(place.fd, child, name)
        return None

    def _is_left_out(self, place: _Place, child: str, *, directory: bool) -> bool:
        if self._exclude.matches(child, directory=directory):
            return True
        if not place.ignores and not self._ignore.above:
            return False
        return self._ignore.matches(place.ignores, child, directory=directory) and not self._include.reaches(
            child, directory=directory
        )

    def _identity(self, fd: int, name: str) -> tuple[int, int]:
        found = _lstat(fd, name)
        return found.st_dev, found.st_ino

    def _share(self, place: _Place, raw: bytes, name: str, found: os.stat_result) -> Entry | None:
        """The previous release's file, when it holds what the source does; None when that must be copied."""
        if place.old is None or (old := place.old.entries.get(raw)) is None:
            return None
        if (old.size, old.mtime_ns, old.mode) != (found.st_size, found.st_mtime_ns, found.st_mode & 0o777):
            return None
        known = (old.source_inode, old.source_ctime_ns) == (found.st_ino, found.st_ctime_ns)
        # Another inode or a moved ctime with the same size and time: a new checkout, or a build that sets all times.
        if not known and _content(place.fd, name) != old.digest:
            return None
        shared = place.old.share(old, place.new, name, found.st_mtime_ns)
        if shared is None:
            return None
        if shared == OWN:
            place.own.add(raw)
            return None
        ctime_ns = found.st_ctime_ns if known or _is_settled(found) else 0
        return Entry(raw, old.size, old.mtime_ns, old.mode, shared[0], shared[1], found.st_ino, ctime_ns, old.digest)

    def _copy_file(self, place: _Place, relative: str, raw: bytes, name: str) -> Entry:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(RETRY_PAUSE_S)
            source = self._open(name, place.fd, relative)
            try:
                made = _copy_whole(source, raw, name, place.new)
            finally:
                os.close(source)
            if made is not None:
                return made._replace(inode=0) if raw in place.own else made
            os.unlink(name, dir_fd=place.new)
        raise _unstable(self._path(relative))

    def _open_directory(self, relative: str) -> int:
        try:
            # The top may be named through a link (`path = "current-build"`); below it none is followed.
            flags = os.O_DIRECTORY | (_OPEN if relative else _OPEN & ~os.O_NOFOLLOW)
            return os.open(self._path(relative), flags)
        except OSError as error:
            raise _unreadable(self._path(relative), error) from error

    def _open(self, name: str, fd: int, relative: str) -> int:
        try:
            return os.open(name, _OPEN, dir_fd=fd)
        except OSError as error:
            if error.errno in _REPLACED:
                raise _ChangedError from error
            raise _unreadable(self._path(relative), error) from error

    def _skip_special(self, fd: int, relative: str, name: str) -> None:
        mode = _lstat(fd, name).st_mode
        kind = next((text for test, text in _SPECIAL if test(mode)), "a special file")
        self._progress(f"skipped {shown(relative)}: {kind}")

    def _path(self, relative: str) -> str:
        return os.path.join(self._source, relative) if relative else self._source

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_S:
            self._told_at = now
            self._progress(f"copied {self._files} files so far")


def _first(pair: tuple[bytes, os.DirEntry[str]]) -> bytes:
    return pair[0]


def _has_gitignore(entries: list[tuple[bytes, os.DirEntry[str]]]) -> bool:
    return any(raw == b".gitignore" for raw, _ in entries)


def _copy_link(fd: int, name: str, new: int) -> bytes:
    found = _lstat(fd, name)
    try:
        pointed = os.readlink(name, dir_fd=fd)
    except OSError as error:
        raise _ChangedError from error
    os.symlink(pointed, name, dir_fd=new)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=new, follow_symlinks=False)
    return os.fsencode(pointed)


def _copy_whole(source: int, raw: bytes, name: str, into: int) -> Entry | None:
    """Copy an open file; None when it changed on the way (the target is then not to be used)."""
    before = os.fstat(source)
    if not stat.S_ISREG(before.st_mode):
        raise _ChangedError
    mode = stat.S_IMODE(before.st_mode) & 0o777
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=into)
    try:
        copied, digest = _copy_bytes(source, fd, before.st_size)
        os.fchmod(fd, mode)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        inode = os.fstat(fd).st_ino
    finally:
        os.close(fd)
    after = os.fstat(source)
    same = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if not same or copied != before.st_size:
        return None
    ctime_ns = after.st_ctime_ns if _is_settled(after) else 0
    return Entry(raw, copied, before.st_mtime_ns, mode, inode, False, before.st_ino, ctime_ns, digest)


def _is_settled(found: os.stat_result) -> bool:
    """Whether a later write must show in the ctime: its clock ticks in steps."""
    return time.time_ns() - found.st_ctime_ns > SETTLED_NS


def _copy_bytes(source: int, target: int, size: int) -> tuple[int, bytes]:
    """Copy up to the end of the file: how many bytes, and their digest.

    Stops early past `size`, the file's size before: one that grows as fast as it is copied would have no end.
    """
    value = hashlib.sha256()
    copied = 0
    while copied <= size and (chunk := os.read(source, CHUNK)):
        value.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(target, rest) :]
        copied += len(chunk)
    return copied, value.digest()


def _content(fd: int, name: str) -> bytes | None:
    """The digest of a file of the source; None when it cannot be had: copying it tells why."""
    try:
        source = os.open(name, _OPEN, dir_fd=fd)
    except OSError:
        return None
    value = hashlib.sha256()
    try:
        while chunk := os.read(source, CHUNK):
            value.update(chunk)
    except OSError:
        return None
    finally:
        os.close(source)
    return value.digest()


def _lstat(fd: int, name: str) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError as error:
        raise _ChangedError from error


def _empty(directory: str) -> None:
    """Subdirectories are made only after their parent is whole: there are files and links alone."""
    with os.scandir(directory) as entries:
        for entry in entries:
            os.unlink(entry.path)


def _unstable(path: str) -> SourceError:
    return SourceError(
        f"{shown(path)} changes while it is copied",
        cause=f"it was different after each of {TRIES} copies",
        hint="stop what writes there or add it to `exclude` in [source], then deploy again",
    )


def _unreadable(path: str, error: OSError) -> SourceError:
    if error.errno in _REPLACED:
        return SourceError(
            f"{shown(path)} vanished while its parent was copied",
            cause=error.strerror,
            hint="deploy again when nothing changes the directory any more",
        )
    return SourceError(
        f"cannot read {shown(path)}",
        cause=error.strerror,
        hint="make it readable for the user that runs deployer, or add it to `exclude` in [source]",
    )
