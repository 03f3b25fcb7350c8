"""The live release once more, with its environment read anew (`deployer deploy --env-only`): nothing is fetched.

Taken is what its source gave, by the release's index: what a build made there may hold the old release's path, and is
made anew. Each file is copied: what a worker of one release writes into its directory must not show in the other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import lru_cache
from pathlib import Path

import msgspec

from deployer.config import load
from deployer.config.model import Config
from deployer.errors import SourceError
from deployer.paths import Layout
from deployer.releases import digest, manifest
from deployer.releases.digest import Summary, TreeHash
from deployer.releases.index import Entry, IndexReader, IndexWriter, place
from deployer.releases.links import OWN
from deployer.releases.request import Again
from deployer.releases.sources.base import shown

OPEN_DIRECTORIES = 256  # of which the index is remembered: more than a tree is deep
TOLD = 3  # names in a warning
WAITING = 256  # entries of a directory, put into the index at once


def config(source: Again, host: Config, directory: Path, tree: Path) -> Config:
    """That of the release, but [worker] env and env_file as they are now. Raises ConfigError."""
    # Where the source holds the host's own deployer.toml, the release's copy of it is the older of the two.
    own = source.source == f"path {directory}"
    fresh = (host if own else load.overlay(host, tree / "deployer.toml")).worker
    worker = msgspec.structs.replace(source.config.worker, env=fresh.env, env_file=fresh.env_file)
    return msgspec.structs.replace(source.config, worker=worker)


def unindexed(tree: Path) -> list[str]:
    """What no index tells of a tree: its links, and the directories that hold no file."""
    found, hold = [], set()
    for path, entry in digest.walk(os.fsencode(tree)):
        if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
            found.append(path)
            continue
        above = os.path.dirname(path)
        while above and above not in hold:
            hold.add(above)
            above = os.path.dirname(above)
    return [_shown(path) for path in found if path not in hold]


def copy(source: Again, layout: Layout, into: Path, index: IndexWriter) -> tuple[Summary, list[str]]:
    """Fill the empty directory `into`; warnings. Raises SourceError, OSError."""
    original = layout.release(source.release)
    if not original.is_dir():
        raise SourceError(f"the files of {source.release} are gone", hint="deployer deploy")
    reader = IndexReader(place(original))
    try:
        copier = _Copier(source, original, into, reader, index)
        summary = copier.run()
    finally:
        reader.close()
    if not copier.differences:
        return Summary(source.tree_digest, source.files, source.bytes), []
    first = ", ".join(copier.differences[:TOLD]) + (", ..." if len(copier.differences) > TOLD else "")
    return summary, [f"{source.release} is not what was staged any more, and was taken as it is: {first}"]


class _Copier:
    """One copy, in the order of the digest."""

    def __init__(self, source: Again, original: Path, into: Path, reader: IndexReader, index: IndexWriter) -> None:
        self._original, self._into = os.fsencode(original), os.fsencode(into)
        self._known = lru_cache(OPEN_DIRECTORIES)(reader.directory)
        self._index, self._total = index, TreeHash()
        told = manifest.read(original)
        self._unindexed = None if told is None or told.unindexed is None else set(told.unindexed)
        self._not_its_own = {os.fsencode(os.path.normpath(path)) for path in source.config.release.shared}
        self._not_its_own.add(os.fsencode(manifest.NAME))
        self._made: dict[bytes, os.stat_result] = {}
        self._waiting: list[tuple[bytes, Entry]] = []
        self.differences: list[str] = []

    def run(self) -> Summary:
        self._made[b""] = os.stat(self._original)
        indexed = any(self._known(os.path.dirname(path)) for path, _ in digest.walk(self._original))
        self._look_for_missing(b"")
        for path, entry in digest.walk(self._original):
            if path in self._not_its_own:
                continue
            if entry.is_symlink():
                if self._is_the_sources(path):
                    self._copy_link(path, entry)
            elif entry.is_dir(follow_symlinks=False):
                self._look_for_missing(path)
                if self._is_the_sources(path):
                    self._make(path)
            elif entry.is_file(follow_symlinks=False):
                old = self._known(os.path.dirname(path)).get(os.path.basename(path))
                if old is not None or not indexed:
                    self._copy_file(path, entry, old)
        self._flush()
        for path, found in reversed(self._made.items()):  # their modes may forbid writing, each entry moved their time
            made = os.path.join(self._into, path)
            os.chmod(made, found.st_mode & 0o777)
            os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))
        return self._total.summary()

    def _is_the_sources(self, path: bytes) -> bool:
        """Of links and directories: without a build there are no others."""
        return self._unindexed is None or _shown(path) in self._unindexed

    def _look_for_missing(self, directory: bytes) -> None:
        for name in self._known(directory):
            path = os.path.join(directory, name)
            there = os.path.join(self._original, path)
            if path not in self._not_its_own and (os.path.islink(there) or not os.path.isfile(there)):
                self.differences.append(f"{_shown(path)} is gone")

    def _make(self, path: bytes) -> None:
        """The directory and those above it."""
        if path not in self._made:
            self._make(os.path.dirname(path))
            self._made[path] = os.stat(os.path.join(self._original, path), follow_symlinks=False)
            os.mkdir(os.path.join(self._into, path), 0o700)
            self._total.directory(path)

    def _copy_link(self, path: bytes, entry: os.DirEntry[bytes]) -> None:
        self._make(os.path.dirname(path))
        shutil.copy2(entry.path, os.path.join(self._into, path), follow_symlinks=False)
        self._total.link(path, os.readlink(entry.path))

    def _copy_file(self, path: bytes, entry: os.DirEntry[bytes], old: Entry | None) -> None:
        parent, name = os.path.split(path)
        self._make(parent)
        target = os.path.join(self._into, path)
        shutil.copy2(entry.path, target, follow_symlinks=False)
        found, value = os.stat(target, follow_symlinks=False), _content(target)
        mode, inode = found.st_mode & 0o7777, found.st_ino
        if old is not None and (old.digest, old.mode & 0o100) != (value, mode & 0o100):
            self.differences.append(f"{_shown(path)} was changed")
            inode = OWN[0]
        self._note(parent, Entry(name, found.st_size, found.st_mtime_ns, mode, inode, False, 0, 0, value))
        self._total.file(path, bool(mode & 0o100), value, found.st_size)

    def _note(self, parent: bytes, entry: Entry) -> None:
        if self._waiting and (self._waiting[0][0] != parent or len(self._waiting) == WAITING):
            self._flush()
        self._waiting.append((parent, entry))

    def _flush(self) -> None:
        if self._waiting:
            self._index.put(self._waiting[0][0], [entry for _, entry in self._waiting])
            self._waiting.clear()


def _content(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _shown(path: bytes) -> str:
    return shown(os.fsdecode(path))
