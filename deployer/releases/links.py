"""Sharing unchanged files between releases: never so that a write into one release shows in another.

1. Where the file system can, a file is *cloned* (FICLONE: btrfs, XFS): two files, one set of blocks, copied by the
   kernel at the first write. Nothing else has to be thought of.
2. Elsewhere it is *hard-linked*, one inode under two names, and then a write in place would go through. So a file
   is linked only when nothing of the deploy writes into the tree (`may_write`: a build, or a hook between staging
   and rollout; these get a tree of their own, see `separate`), and only when it is a file that a program does not
   write by itself: not writable by group or others, no database or log, not below a path of [release].shared, and
   not one that the app wrote to before (its entry in the index no longer fits, then it is copied from then on).
   What an app writes belongs into [release].shared; `link = false` in [source] is for an app that
   rewrites its own code.
3. Everything else is copied.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from pathlib import Path

from deployer.config.model import Config
from deployer.releases.index import Entry, IndexReader, place
from deployer.releases.release import is_dev
from deployer.releases.sources.base import shown

FICLONE = 0x40049409
NONE: dict[bytes, Entry] = {}
OWN = (0, False)
"""In the place of an inode: the app wrote into this file, or somebody replaced it. No inode has the number 0, so the
entry never again fits a file."""
TOLD = 3  # names in a warning

_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM}
NO_LINK = {errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EACCES}
_WRITTEN_BY_PROGRAMS = re.compile(
    rb".*(\.(db|db3|sqlite3?|sqlite3?-(wal|shm|journal)|log|pid|lock|mdb|ldb|rdb|aof|sock)|-wal|-shm|-journal)",
    re.IGNORECASE | re.DOTALL,
)
_HOOKS_THAT_BUILD = ("after_build", "before_rollout")


def may_write(config: Config, root: Path, release: Path | None = None) -> bool:
    """Whether something of the deploy may write into files of the new tree before it serves."""
    if config.build.run or config.build.python != "none":
        return True
    hooks = [root / "hooks", *([release / "hooks"] if release is not None else [])]
    return any(
        getattr(config.hooks, stage) is not None or any(os.access(place / stage, os.X_OK) for place in hooks)
        for stage in _HOOKS_THAT_BUILD
    )


class Previous:
    """The release whose files may be shared, with its index."""

    def __init__(self, release: Path | None, *, may_link: bool, shared: list[str]) -> None:
        self._path = os.fsencode(release) if release is not None else b""
        self._index = IndexReader(place(release)) if release is not None else None
        self._may_link = may_link
        self._may_clone = True
        self.links = False  # hard links were seen to work here, and are what is done
        self._shared = [os.fsencode(path.strip("/")) + b"/" for path in shared]
        self.shared_files = 0
        self.written: list[str] = []  # paths of some files that the app wrote to, and that older releases have too

    @property
    def usable(self) -> bool:
        return self._index is not None and (self._may_link or self._may_clone)

    @property
    def path(self) -> bytes:
        return self._path

    def open(self, directory: bytes) -> PreviousDirectory | None:
        """What it has in this directory ("" is the top); None when that is nothing."""
        if self._index is None or not self.usable:
            return None
        entries = self._index.directory(directory)
        if not entries or any((directory + b"/").startswith(path) for path in self._shared):
            return None
        return PreviousDirectory(self, directory, entries)

    def changed(self, directory: bytes, name: bytes, links: int) -> None:
        """The app of the previous release wrote to this file, which has so many links."""
        if links > 1 and len(self.written) < TOLD:
            self.written.append(os.fsdecode(os.path.join(directory, name)))

    def warnings(self) -> list[str]:
        """What a person should know of it: that a release changed which was not deployed."""
        if not self.written:
            return []
        names = ", ".join(shown(name) for name in self.written)
        return [
            f"the app of {os.fsdecode(os.path.basename(self._path))} wrote into files it shipped, which older releases"
            f" share with it: {names}. List them under [release] shared, or set `link = false` in [source]"
        ]

    def close(self) -> None:
        if self._index is not None:
            self._index.close()


class PreviousDirectory:
    """One directory of the previous release, opened when the first file of it is shared."""

    def __init__(self, previous: Previous, directory: bytes, entries: dict[bytes, Entry]) -> None:
        self._previous = previous
        self._directory = directory
        self._fd = -1
        self.entries = entries

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def share(self, entry: Entry, into_fd: int, name: str, mtime_ns: int) -> tuple[int, bool] | None:
        """Give `name` in the new directory the bytes of `entry`: (inode, linked), or None when it must be copied.
        OWN says that it must be, in later releases too."""
        try:
            if self._fd < 0:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(os.path.join(self._previous.path, self._directory), flags)
            found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return None  # it was removed meanwhile
        previous = self._previous
        if not entry.is_still(found) or not stat.S_ISREG(found.st_mode):
            previous.changed(self._directory, entry.name, found.st_nlink)
            return OWN
        if previous._may_clone and (inode := self._clone(entry, into_fd, name, mtime_ns)):
            previous.shared_files += 1
            return inode, False
        if not previous._may_link or not self.linkable(entry):
            return None
        try:
            os.link(name, name, src_dir_fd=self._fd, dst_dir_fd=into_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in NO_LINK:
                return None
            raise
        previous.links = True
        previous.shared_files += 1
        return found.st_ino, True

    def linkable(self, entry: Entry) -> bool:
        """Whether nobody but a new release is expected to change it; it may have been, all the same."""
        # One that is linked already was asked about before.
        if not entry.linked and (
            entry.mode & 0o022 or not entry.inode or _WRITTEN_BY_PROGRAMS.fullmatch(entry.name) is not None
        ):
            return False
        shared = self._previous._shared
        return not shared or not any((self._path(entry) + b"/").startswith(path) for path in shared)

    def _path(self, entry: Entry) -> bytes:
        return self._directory + b"/" + entry.name if self._directory else entry.name

    def _clone(self, entry: Entry, into_fd: int, name: str, mtime_ns: int) -> int | None:
        """A file of its own on the same blocks; its inode, or None where the file system cannot."""
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=into_fd)
            try:
                fcntl.ioctl(target, FICLONE, source)
                os.fchmod(target, entry.mode)
                os.utime(target, ns=(mtime_ns, mtime_ns))
                return os.fstat(target).st_ino
            except OSError as error:
                os.unlink(name, dir_fd=into_fd)
                if error.errno not in _NO_CLONE:
                    raise
                self._previous._may_clone = False
                return None
            finally:
                os.close(target)
        finally:
            os.close(source)


def newest(releases: Path, current: Path, name: str) -> Path | None:
    """The release to share with, which must have an index: the promoted one, else the newest there is. Of a save the
    save before, promoted or not; a release shares with none of these, which nobody brought to the disk."""
    promoted = current.readlink().name if current.is_symlink() else None
    candidates = [promoted, _newest(releases, name, "v")]
    if is_dev(name):
        candidates.insert(0, _newest(releases, name, "dev-"))
    else:
        candidates = [each for each in candidates if each is not None and not is_dev(each)]
    found = (releases / each for each in candidates if each is not None)
    return next((release for release in found if release.is_dir() and place(release).is_file()), None)


def _newest(releases: Path, name: str, prefix: str) -> str | None:
    numbers = []
    for index in releases.glob(f".{prefix}*.index"):
        number = index.name[1 + len(prefix) : -6]
        if number.isdigit() and f"{prefix}{number}" != name and (releases / f"{prefix}{number}").is_dir():
            numbers.append(int(number))
    return f"{prefix}{max(numbers)}" if numbers else None


def separate(tree: Path, index: Path) -> int:
    """Make each file that is hard-linked to another release a file of its own; how many were. Raises OSError.

    For a tree that something is going to write into, found out only when it was there (its own deployer.toml has
    a build that the host's has not).
    """
    reader = IndexReader(index)
    count = 0
    try:
        for directory, entry in reader.all():
            if not entry.linked:
                continue
            path = os.path.join(os.fsencode(tree), directory, entry.name)
            aside = path + b".deployer-copy"
            shutil.copy2(path, aside, follow_symlinks=False)
            os.replace(aside, path)
            count += 1
    finally:
        reader.close()
    return count
