"""One file or link copied whole or not at all: what changes under the copy is not taken."""

from __future__ import annotations

import hashlib
import os
import stat
import time

from deployer.releases.index import Entry

CHUNK = 1 << 20  # bytes read at a time: memory does not grow with the files
SETTLED_NS = 100_000_000  # a file changed so recently may change again within the same tick of the clock
OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # NONBLOCK: a name that became a fifo


class ChangedError(Exception):
    """What is being copied is not what it was a moment ago."""


def copy_whole(source: int, raw: bytes, name: str, into: int) -> Entry | None:
    """Copy an open file; None when it changed on the way (the target is then not to be used)."""
    before = os.fstat(source)
    if not stat.S_ISREG(before.st_mode):
        raise ChangedError
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
    ctime_ns = after.st_ctime_ns if is_settled(after) else 0
    return Entry(raw, copied, before.st_mtime_ns, mode, inode, False, before.st_ino, ctime_ns, digest)


def is_settled(found: os.stat_result) -> bool:
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


def content(fd: int, name: str) -> bytes | None:
    """The digest of a file of the source; None when it cannot be had: copying it tells why."""
    try:
        source = os.open(name, OPEN, dir_fd=fd)
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


def copy_link(fd: int, name: str, new: int) -> bytes:
    found = lstat(fd, name)
    try:
        pointed = os.readlink(name, dir_fd=fd)
    except OSError as error:
        raise ChangedError from error
    os.symlink(pointed, name, dir_fd=new)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=new, follow_symlinks=False)
    return os.fsencode(pointed)


def lstat(fd: int, name: str) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError as error:
        raise ChangedError from error
