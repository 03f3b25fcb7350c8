"""What deployer wrote into a release, file by file: `releases/.vN.index`, beside the tree, where no app sees it.

It answers two questions without reading a file: what does this tree hold (the digest), and is that file of the
previous release still as it was staged, so that the next one may share it? A SQLite file: looked up by directory,
in any order, in memory that does not grow with the tree. A row holds many files of a directory (a row each takes
three times as long), and what is put later counts. It is a help, never needed: one that is missing or damaged means
that files are copied.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import msgspec

_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE files (directory BLOB, turn INT, entries BLOB, PRIMARY KEY (directory, turn)) WITHOUT ROWID;
BEGIN;
"""
_GONE = -1  # a size: this name was dropped


class Entry(NamedTuple):
    """One regular file. `mtime_ns`, `mode` and `inode` are those of the release's copy when it was made."""

    name: bytes
    size: int
    mtime_ns: int
    mode: int  # permission bits
    inode: int
    linked: bool  # the inode is another release's too
    source_inode: int  # with the ctime: of the file it was copied from; 0 where there was none, or it was too fresh
    source_ctime_ns: int
    digest: bytes

    def is_still(self, found: os.stat_result) -> bool:
        """Whether the release's copy is what was staged: nobody wrote into it. Its ctime cannot tell: each release
        that links it, and each that is removed, moves that."""
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode & 0o7777) == (
            self.inode,
            self.size,
            self.mtime_ns,
            self.mode,
        )


def place(release: Path) -> Path:
    """Of the release `releases/vN`, whether that is there yet or not."""
    return release.with_name(f".{release.name}.index")


class IndexWriter:
    """The index of a release that is being made. Raises sqlite3.OperationalError for a full disk."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._turn = 0
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)

    def put(self, directory: bytes, entries: list[Entry]) -> None:
        """Add them, or replace those of the same names."""
        self.put_encoded(directory, encode(entries))

    def put_encoded(self, directory: bytes, entries: bytes) -> None:
        self._turn += 1
        self._db.execute("INSERT INTO files VALUES (?, ?, ?)", (directory, self._turn, entries))

    def drop(self, directory: bytes, name: bytes) -> None:
        self.put(directory, [Entry(name, _GONE, 0, 0, 0, False, 0, 0, b"")])

    def directory(self, directory: bytes) -> dict[bytes, Entry]:
        return _directory(self._db, directory)

    def close(self, *, durable: bool = True) -> None:
        """All of it on the disk, where it is to be durable."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()
        if not durable:
            return
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def discard(self) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)


class DamagedError(Exception):
    """There is no index, or none that can be read."""


class IndexReader:
    """The index of a release that is there; nothing where it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self._db: sqlite3.Connection | None = None
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        except sqlite3.Error:
            pass  # answered as empty

    def directory(self, directory: bytes) -> dict[bytes, Entry]:
        """The files of one directory ("" is the top) by name."""
        if self._db is None:
            return {}
        try:
            return _directory(self._db, directory)
        except (sqlite3.Error, msgspec.MsgspecError):
            self.close()
            return {}

    def all(self) -> Iterator[tuple[bytes, Entry]]:
        """Every file, with its directory. Raises DamagedError where the index is missing or damaged."""
        for directory, rows in self.rows():
            yield from ((directory, entry) for entry in files(rows).values())

    def rows(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """Each directory that has files, with what `files` makes them of: equal rows are equal files. Raises
        DamagedError."""
        if self._db is None:
            raise DamagedError
        try:
            found = self._db.execute("SELECT directory, entries FROM files ORDER BY directory, turn")
            for directory, group in groupby(found, key=itemgetter(0)):
                yield directory, [entries for _, entries in group]
        except sqlite3.Error as error:
            raise DamagedError from error

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


encode = msgspec.msgpack.Encoder().encode
"""Of a list of entries."""
decode = msgspec.msgpack.Decoder(list[Entry]).decode
"""The list again. Raises msgspec.MsgspecError."""


def _directory(db: sqlite3.Connection, directory: bytes) -> dict[bytes, Entry]:
    rows = db.execute("SELECT entries FROM files WHERE directory = ? ORDER BY turn", (directory,))
    return _merged(entries for (entries,) in rows)


def files(rows: list[bytes]) -> dict[bytes, Entry]:
    """The files of one directory by name. Raises DamagedError."""
    try:
        return _merged(rows)
    except msgspec.MsgspecError as error:
        raise DamagedError from error


def _merged(rows: Iterable[bytes]) -> dict[bytes, Entry]:
    """What is put later counts."""
    found = {entry.name: entry for entries in rows for entry in decode(entries)}
    return {name: entry for name, entry in found.items() if entry.size != _GONE}
