"""One number for what a release's tree holds: equal trees, equal digests, whenever and wherever made.

Counted: relative paths, types, the owner's exec bit, contents, link targets. Not counted: times, owners, the other
mode bits (git keeps none of them, so the same commit must digest alike from git and from a directory).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MANIFEST = ".deployer.json"
"""At the top of a release: written by staging, and not part of what was staged."""
CHUNK = 1 << 20  # bytes read at a time: memory does not grow with the files

_MANIFEST = MANIFEST.encode()


@dataclass(frozen=True)
class Summary:
    """A tree in three values; `files` are regular files and links, `bytes` the regular files' sizes."""

    digest: str
    files: int
    bytes: int


class TreeHash:
    """The same digest from records that were collected while the tree was written, given in the walk's order: names
    in byte order, a directory right before what it holds. Paths are relative to the top."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self._files = 0
        self._bytes = 0
        self._waiting: list[bytes] = []

    def file(self, path: bytes, executable: bool, digest: bytes, size: int) -> None:
        if path == _MANIFEST:
            return
        self._files += 1
        self._bytes += size
        self._add(b"exec" if executable else b"file", path, digest)

    def link(self, path: bytes, target: bytes) -> None:
        self._files += 1
        self._add(b"link", path, target)

    def directory(self, path: bytes) -> None:
        self._add(b"dir", path, b"")

    def summary(self) -> Summary:
        self._total.update(b"".join(self._waiting))
        self._waiting.clear()
        return Summary(self._total.hexdigest(), self._files, self._bytes)

    def _add(self, kind: bytes, path: bytes, value: bytes) -> None:
        self._waiting.append(b"%b\0%b\0%b\0" % (kind, path, value))
        if len(self._waiting) >= 256:
            self._total.update(b"".join(self._waiting))
            self._waiting.clear()


def tree_digest(path: Path) -> str:
    return summarize(path).digest


def summarize(path: Path) -> Summary:
    """Walk `path` once. Raises OSError; a special file (fifo, socket) raises ValueError."""
    total = hashlib.sha256()
    files = size = 0
    for relative, entry in walk(os.fsencode(path)):
        if relative == _MANIFEST:
            continue
        total.update(_record(relative, entry))
        if not entry.is_dir(follow_symlinks=False):
            files += 1
        if entry.is_file(follow_symlinks=False):
            size += entry.stat(follow_symlinks=False).st_size
    return Summary(total.hexdigest(), files, size)


def walk(directory: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Every entry below, a directory before what it holds, names in byte order; its own stack, for deep trees."""
    pending = [_sorted(directory, prefix)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        yield found
        relative, entry = found
        if entry.is_dir(follow_symlinks=False):
            pending.append(_sorted(entry.path, relative + b"/"))


def _sorted(directory: bytes, prefix: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    return ((prefix + entry.name, entry) for entry in ordered)


def _record(relative: bytes, entry: os.DirEntry[bytes]) -> bytes:
    """One entry, unambiguous: no path or target holds NUL, and a content hash has a fixed length."""
    if entry.is_symlink():
        kind, value = b"link", os.readlink(entry.path)
    elif entry.is_dir(follow_symlinks=False):
        kind, value = b"dir", b""
    elif entry.is_file(follow_symlinks=False):
        executable = entry.stat(follow_symlinks=False).st_mode & 0o100
        kind, value = (b"exec" if executable else b"file"), _content(entry.path)
    else:
        raise ValueError(f"{os.fsdecode(entry.path)!r} is a special file")
    return b"\0".join((kind, relative, value, b""))


def _content(path: bytes) -> bytes:
    value = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            value.update(chunk)
    return value.digest()
