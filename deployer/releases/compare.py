"""Two release directories side by side: which files came, went or are others. Reads, never writes.

Sizes tell first, contents only where they are equal; files that are one (hard links) are not read at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
OURS = b".deployer.json"
"""Written by us into each release, different in each."""
CACHE = b"__pycache__"
"""Written by Python when it runs; says nothing of the release."""


@dataclass(frozen=True)
class Difference:
    """One path; a size is None where there is no such file."""

    path: str
    old: int | None
    new: int | None


def differences(old: Path | None, new: Path) -> Iterator[Difference]:
    """In the order of their paths. With `old` None everything is new. Raises OSError."""
    before = {} if old is None else dict(_entries(os.fsencode(old)))
    after = dict(_entries(os.fsencode(new)))
    for path in sorted(before.keys() | after.keys()):
        one, other = before.get(path), after.get(path)
        if one is None or other is None or not _same(one, other):
            name = os.fsdecode(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield Difference(name, _size(one), _size(other))


def _entries(directory: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Files and links below, by relative path. A link is not followed: what it points at is not the release's."""
    pending = [(directory, b"")]
    while pending:
        place, prefix = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False) and entry.name != CACHE:
                    pending.append((os.fsencode(entry.path), path + b"/"))
                elif path != OURS and entry.name != CACHE:
                    yield path, entry


def _same(one: os.DirEntry[bytes], other: os.DirEntry[bytes]) -> bool:
    a, b = one.stat(follow_symlinks=False), other.stat(follow_symlinks=False)
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino):
        return True
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one.path) == os.readlink(other.path)
    if a.st_size != b.st_size or (a.st_mode ^ b.st_mode) & 0o100:
        return False
    if not (one.is_file() and other.is_file()):
        return one.is_file() == other.is_file()  # a fifo or socket that a worker made: nothing to read
    return _contents_equal(one.path, other.path)


def _contents_equal(one: bytes, other: bytes) -> bool:
    with open(one, "rb", buffering=0) as a, open(other, "rb", buffering=0) as b:
        while chunk := a.read(CHUNK):
            if chunk != b.read(len(chunk)):
                return False
    return True


def _size(entry: os.DirEntry[bytes] | None) -> int | None:
    return None if entry is None else entry.stat(follow_symlinks=False).st_size
