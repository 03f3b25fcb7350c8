"""Writes what a stream of members holds (git archive, tar, zip, wheel) into the new release.

Nothing is ever written through a link of the archive's own: each directory is opened component by component, none
of them a link. A file that equals the previous release's is shared with it. Memory does not grow with the tree.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from deployer.errors import SourceError
from deployer.releases.digest import Summary, TreeHash
from deployer.releases.index import Entry, IndexWriter
from deployer.releases.links import NONE, OWN, Previous, PreviousDirectory
from deployer.releases.sources.base import check_depth, shown

Read = Callable[[int], bytes]

CHUNK = 1 << 20  # bytes: what is smaller is hashed before it is written, and not written when it is there already
OPEN_DIRECTORIES = 48
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class _Open:
    """A directory of the new tree, with what the previous release had there."""

    fd: int
    previous: PreviousDirectory | None

    @property
    def entries(self) -> dict[bytes, Entry]:
        return self.previous.entries if self.previous is not None else NONE

    def close(self) -> None:
        os.close(self.fd)
        if self.previous is not None:
            self.previous.close()


class TreeWriter:
    def __init__(self, into: Path, index: IndexWriter, previous: Previous) -> None:
        self.into = into
        self._into = os.fsencode(into)
        self._links = 0
        self._index = index
        self._previous = previous
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._waiting: list[tuple[str, Entry]] = []

    def directory(self, path: str) -> None:
        """Make it, and those above it."""
        self._enter(path)

    def file(self, path: str, executable: bool, mtime: float, size: int, read: Read) -> None:
        """A file of `size` bytes, which `read(n)` gives. Raises SourceError when they are fewer."""
        parent, name, place = self._prepare(path)
        mode = 0o755 if executable else 0o644
        mtime_ns = int(mtime * 1_000_000_000)
        raw = os.fsencode(name)
        old = place.entries.get(raw)
        inode = 0
        data: bytes | None = None
        if size <= CHUNK:
            data = _read_whole(read, size, path)
            digest = hashlib.sha256(data).digest()
        else:
            inode, digest = _write(place.fd, name, mode, mtime_ns, _chunks(read, size, path))
        shared = None
        if old is not None and (old.digest, old.mode, old.size) == (digest, mode, size):
            shared = _share(place, old, name)
            if shared is not None and shared != OWN:
                self._note(parent, Entry(raw, size, old.mtime_ns, mode, *shared, 0, 0, digest))
                return
        if data is not None:
            inode = _write(place.fd, name, mode, mtime_ns, [data])[0]
        inode = 0 if shared == OWN else inode
        self._note(parent, Entry(raw, size, mtime_ns, mode, inode, False, 0, 0, digest))

    def link(self, path: str, target: str) -> None:
        _, name, place = self._prepare(path)
        os.symlink(target, name, dir_fd=place.fd)
        self._links += 1

    def remove(self, name: str) -> None:
        """Take a file at the top away again."""
        self._flush()
        os.unlink(name, dir_fd=self._enter("").fd)
        self._index.drop(b"", os.fsencode(name))

    def copy(self, path: str, earlier: str) -> bool:
        """A file with the content of one that is there; whether there is one."""
        above, _, name = earlier.rpartition("/")
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._enter(above).fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR):
                return False
            raise
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or path == earlier:
                return path == earlier
            self.file(
                path, bool(found.st_mode & 0o100), found.st_mtime, found.st_size, lambda count: os.read(fd, count)
            )
        finally:
            os.close(fd)
        return True

    def link_that_leaves(self) -> str | None:
        """A link whose way, followed through other links, ends outside of the tree; None when there is none."""
        if not self._links:
            return None
        top = os.path.realpath(self._into)
        for directory, directories, files in os.walk(self._into):
            for name in (*directories, *files):
                path = os.path.join(directory, name)
                if os.path.islink(path) and not _is_below(os.path.realpath(path), top):
                    return os.fsdecode(os.path.relpath(path, self._into))
        return None

    def only_directory(self) -> str | None:
        """The name of the one directory that holds all there is."""
        with os.scandir(self._into) as entries:
            found = list(islice(entries, 2))
        alone = len(found) == 1 and found[0].is_dir(follow_symlinks=False)
        return os.fsdecode(found[0].name) if alone else None

    def seal(self) -> Summary:
        """When all is written: the tree's digest, and every directory with its mode."""
        self._flush()
        while self._open:
            self._open.popitem()[1].close()
        total = TreeHash()
        pending: list[Iterator[tuple[bytes, os.DirEntry[bytes], Entry | None]]] = [self._list(b"")]
        while pending:
            for name, found, entry in pending[-1]:
                if entry is not None:
                    total.file(name, bool(entry.mode & 0o100), entry.digest, entry.size)
                elif found.is_symlink():
                    total.link(name, os.readlink(found.path))
                else:
                    total.directory(name)
                    pending.append(self._list(name))
                    break
            else:
                pending.pop()
        return total.summary()

    def _list(self, directory: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes], Entry | None]]:
        known = self._index.directory(directory)
        path = os.path.join(self._into, directory)
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        prefix = directory + b"/" if directory else b""
        return iter([(prefix + entry.name, entry, known.get(entry.name)) for entry in ordered])

    def _prepare(self, path: str) -> tuple[str, str, _Open]:
        """The open parent, in which nothing is called so: what an archive holds twice is what came last."""
        check_depth(path)
        parent, _, name = path.rpartition("/")
        place = self._enter(parent)
        try:
            os.stat(name, dir_fd=place.fd, follow_symlinks=False)
        except FileNotFoundError:
            return parent, name, place
        try:
            os.unlink(name, dir_fd=place.fd)
        except IsADirectoryError:
            raise SourceError(f"{shown(path)} is a directory and a file at once in the archive") from None
        self._flush()
        self._index.drop(os.fsencode(parent), os.fsencode(name))
        return parent, name, place

    def _note(self, parent: str, entry: Entry) -> None:
        if self._waiting and (self._waiting[0][0] != parent or len(self._waiting) >= 256):
            self._flush()
        self._waiting.append((parent, entry))

    def _flush(self) -> None:
        if self._waiting:
            self._index.put(os.fsencode(self._waiting[0][0]), [entry for _, entry in self._waiting])
            self._waiting.clear()

    def _enter(self, path: str) -> _Open:
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        if not path:
            fd = os.open(self._into, _DIRECTORY)
        else:
            above, _, name = path.rpartition("/")
            check_depth(path)
            fd = _open_directory(self._enter(above).fd, name, path)
        place = _Open(fd, self._previous.open(os.fsencode(path)))
        self._open[path] = place
        if len(self._open) > OPEN_DIRECTORIES:
            self._open.popitem(last=False)[1].close()
        return place


def _share(place: _Open, old: Entry, name: str) -> tuple[int, bool] | None:
    """As PreviousDirectory.share, also when the file was written already, to learn what it holds: it then gives way."""
    assert place.previous is not None
    aside = f".deployer-{old.digest.hex()[:16]}"
    try:
        os.rename(name, aside, src_dir_fd=place.fd, dst_dir_fd=place.fd)
    except FileNotFoundError:
        return place.previous.share(old, place.fd, name, old.mtime_ns)
    shared = place.previous.share(old, place.fd, name, old.mtime_ns)
    if shared is None or shared == OWN:
        os.rename(aside, name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
    else:
        os.unlink(aside, dir_fd=place.fd)
    return shared


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _open_directory(above: int, name: str, path: str) -> int:
    try:
        os.mkdir(name, 0o755, dir_fd=above)
        made = True
    except FileExistsError:
        made = False
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise SourceError(
            f"{shown(path)} is a file or a link in the archive, and something lies below it",
            hint="make the archive again: deployer pack",
        ) from None
    if made:
        os.fchmod(fd, 0o755)
    return fd


def _read_whole(read: Read, size: int, path: str) -> bytes:
    data = read(size)
    while len(data) < size:
        more = read(size - len(data))
        if not more:
            raise _cut(path)
        data += more
    return data


def _chunks(read: Read, size: int, path: str) -> Iterator[bytes]:
    left = size
    while left:
        chunk = read(min(left, CHUNK))
        if not chunk:
            raise _cut(path)
        left -= len(chunk)
        yield chunk


def _cut(path: str) -> SourceError:
    return SourceError(f"the archive ends in the middle of {shown(path)}", hint="fetch or make it again")


def _write(
    directory: int, name: str, mode: int, mtime_ns: int, chunks: list[bytes] | Iterator[bytes]
) -> tuple[int, bytes]:
    """The new file's inode and digest."""
    value = hashlib.sha256()
    fd = os.open(name, _NEW, 0o600, dir_fd=directory)
    try:
        for chunk in chunks:
            value.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        return os.fstat(fd).st_ino, value.digest()
    finally:
        os.close(fd)
