"""A directory as it is now, copied: no link followed, nothing changed in it, and no half of a change taken along."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from deployer.errors import SourceError
from deployer.releases.digest import Summary, TreeHash
from deployer.releases.index import Entry, IndexWriter, encode
from deployer.releases.linker import Linker, NotLinked
from deployer.releases.links import OWN, Previous, PreviousDirectory
from deployer.releases.request import Directory
from deployer.releases.sources.base import Exclude, Origin, Progress, check_depth, shown
from deployer.releases.sources.filecopy import OPEN, ChangedError, content, copy_link, copy_whole, is_settled, lstat
from deployer.releases.sources.ignore import Ignore, Level
from deployer.units import format_size

ALWAYS_EXCLUDED = (".git", "__pycache__", "*.pyc", ".venv")
TRIES = 5
"""How often a file or directory that changes under the copy is copied anew before that is an error."""
RETRY_PAUSE_S = 0.05
"""Between tries: an editor or compiler has then finished the file it was writing."""
LINKED_HERE = 100  # files; for no more a process that links them would take longer to start than it saves
PROGRESS_S = 2.0  # between two lines of progress

_REPLACED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE}
_SPECIAL: list[tuple[Callable[[int], bool], str]] = [
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a fifo"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
]


_Record = tuple[bytes, int, bytes, int]
"""One entry for the digest: path, kind, content digest or link target, size."""
_FILE, _EXECUTABLE, _LINK, _DIRECTORY = range(4)


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
    try:
        summary = copier.run()
    finally:
        copier.close()
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
    """The directory that is being copied: descriptors of it and of the new one, and the previous release's."""

    def __init__(
        self, relative: str, fd: int, target: str, old: PreviousDirectory | None, ignores: list[Level]
    ) -> None:
        self.relative = relative
        self.prefix = os.fsencode(relative) + b"/" if relative else b""
        self.fd = fd
        self.old = old
        self.ignores = ignores
        self.entries: list[Entry] = []
        self.own: set[bytes] = set()  # names of files that no release may share
        self.to_link: list[Entry] = []
        self._target = target
        self._new = -1

    @property
    def new(self) -> int:
        """Opened when something is to be written there: of a directory that did not change, nothing is."""
        if self._new < 0:
            self._new = os.open(self._target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._new

    def close(self) -> None:
        os.close(self.fd)
        if self._new >= 0:
            os.close(self._new)
        if self.old is not None:
            self.old.close()


class _Level(NamedTuple):
    """A directory whose own entries are copied, and which of its records are still to be counted."""

    relative: str
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
        self._linker: Linker | None = None

    def close(self) -> None:
        if self._linker is not None:
            self._linker.close()

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
                self._seal(level)
                pending.pop()
        for missing in self._linker.finish() if self._linker else []:
            self._copy_after_all(missing)
        return total.summary()

    def _seal(self, level: _Level) -> None:
        """Its own mode may forbid writing into it, and each entry made moves its mtime: now that all is in it."""
        mode, times_ns = stat.S_IMODE(level.found.st_mode) & 0o777, (level.found.st_atime_ns, level.found.st_mtime_ns)
        if self._linker is not None:
            self._linker.seal(os.fsencode(level.relative), mode, times_ns)
        else:
            path = os.path.join(self._into, level.relative)
            os.chmod(path, mode)
            os.utime(path, ns=times_ns)

    def _copy_after_all(self, missing: NotLinked) -> None:
        """What another process was to link, and could not; its digest is part of the total already."""
        relative, name = os.fsdecode(missing.directory), os.fsdecode(missing.name)
        target = os.path.join(self._into, relative)
        kept = os.stat(target)
        expected = self._index.directory(missing.directory)[missing.name]
        place = _Place(relative, self._open_directory(relative), target, None, [])
        if missing.own:
            place.own.add(missing.name)
            self._previous.changed(missing.directory, missing.name, missing.links)
        try:
            os.chmod(target, 0o700)
            made = self._copy_file(place, f"{relative}/{name}" if relative else name, missing.name, name)
            os.chmod(target, stat.S_IMODE(kept.st_mode))
            os.utime(target, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        except ChangedError:
            made = None
        finally:
            place.close()
        if made is None or (made.digest, made.mode) != (expected.digest, expected.mode):
            raise _unstable(self._path(f"{relative}/{name}"))
        self._previous.shared_files -= 1
        self._index.put(missing.directory, [made])

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
            except ChangedError:
                continue
        raise _unstable(self._path(relative))

    def _copy_entries(self, relative: str, target: str, ignores: list[Level]) -> _Level:
        fd = self._open_directory(relative)
        place = _Place(relative, fd, target, self._previous.open(os.fsencode(relative)), ignores)
        try:
            before = os.fstat(fd)
            with os.scandir(fd) as scan:
                entries = sorted([(os.fsencode(entry.name), entry) for entry in scan], key=itemgetter(0))
            has_own = any(raw == b".gitignore" for raw, _ in entries)
            own = self._ignore.level(f"/proc/self/fd/{fd}/.gitignore", relative) if has_own else None
            if own is not None:
                place.ignores = [*ignores, own]
            records = [record for raw, entry in entries if (record := self._copy_entry(place, raw, entry)) is not None]
            if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
                raise ChangedError
        finally:
            place.close()
        if place.entries:
            encoded = encode(place.entries)
            self._index.put_encoded(os.fsencode(relative), encoded)
            if place.to_link:
                all_linked = len(place.to_link) == len(place.entries)
                self._link(os.fsencode(relative), encoded if all_linked else encode(place.to_link))
                self._previous.shared_files += len(place.to_link)
        self._tell()
        return _Level(relative, before, place.ignores, iter(records))

    def _link(self, directory: bytes, entries: bytes) -> None:
        if self._linker is None:
            self._linker = Linker(self._previous.path, os.fsencode(self._into))
        self._linker.link(directory, entries)

    def _copy_entry(self, place: _Place, raw: bytes, entry: os.DirEntry[str]) -> _Record | None:
        name = entry.name
        child = f"{place.relative}/{name}" if place.relative else name
        is_directory = entry.is_dir(follow_symlinks=False)
        if self._is_left_out(place, child, directory=is_directory):
            return None
        path = place.prefix + raw
        if is_directory:
            found = lstat(place.fd, name)
            if (found.st_dev, found.st_ino) in self._left_out:
                return None
            return path, _DIRECTORY, b"", 0
        if entry.is_symlink():
            self._files += 1
            return path, _LINK, copy_link(place.fd, name, place.new), 0
        if entry.is_file(follow_symlinks=False):
            self._files += 1
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError as error:
                raise ChangedError from error
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

    def _share(self, place: _Place, raw: bytes, name: str, found: os.stat_result) -> Entry | None:
        """The previous release's file, when it holds what the source does; None when that must be copied."""
        if place.old is None or (old := place.old.entries.get(raw)) is None:
            return None
        if (old.size, old.mtime_ns, old.mode) != (found.st_size, found.st_mtime_ns, found.st_mode & 0o777):
            return None
        known = (old.source_inode, old.source_ctime_ns) == (found.st_ino, found.st_ctime_ns)
        # Another inode or a moved ctime with the same size and time: a new checkout, or a build that sets all times.
        if not known and content(place.fd, name) != old.digest:
            return None
        ctime_ns = found.st_ctime_ns if known or is_settled(found) else 0
        many = self._previous.links and self._previous.shared_files + len(place.to_link) >= LINKED_HERE
        if many and place.old.linkable(old):
            if not known or not old.linked:
                old = old._replace(linked=True, source_inode=found.st_ino, source_ctime_ns=ctime_ns)
            place.to_link.append(old)
            return old
        shared = place.old.share(old, place.new, name, found.st_mtime_ns)
        if shared is None:
            return None
        if shared == OWN:
            place.own.add(raw)
            return None
        return Entry(raw, old.size, old.mtime_ns, old.mode, *shared, found.st_ino, ctime_ns, old.digest)

    def _copy_file(self, place: _Place, relative: str, raw: bytes, name: str) -> Entry:
        for attempt in range(TRIES):
            if attempt:
                time.sleep(RETRY_PAUSE_S)
            source = self._open(name, place.fd, relative)
            try:
                made = copy_whole(source, raw, name, place.new)
            finally:
                os.close(source)
            if made is not None:
                return made._replace(inode=0) if raw in place.own else made
            os.unlink(name, dir_fd=place.new)
        raise _unstable(self._path(relative))

    def _open_directory(self, relative: str) -> int:
        try:
            # The top may be named through a link (`path = "current-build"`); below it none is followed.
            flags = os.O_DIRECTORY | (OPEN if relative else OPEN & ~os.O_NOFOLLOW)
            return os.open(self._path(relative), flags)
        except OSError as error:
            raise _unreadable(self._path(relative), error) from error

    def _open(self, name: str, fd: int, relative: str) -> int:
        try:
            return os.open(name, OPEN, dir_fd=fd)
        except OSError as error:
            if error.errno in _REPLACED:
                raise ChangedError from error
            raise _unreadable(self._path(relative), error) from error

    def _skip_special(self, fd: int, relative: str, name: str) -> None:
        mode = lstat(fd, name).st_mode
        kind = next((text for test, text in _SPECIAL if test(mode)), "a special file")
        self._progress(f"skipped {shown(relative)}: {kind}")

    def _path(self, relative: str) -> str:
        return os.path.join(self._source, relative) if relative else self._source

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_S:
            self._told_at = now
            self._progress(f"copied {self._files} files so far")


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
