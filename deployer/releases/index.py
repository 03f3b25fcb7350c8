"""What deployer wrote into a release, file by file: `releases/.vN.index`, beside the tree, where no app sees it.

It answers two questions without reading a file: what does this tree hold (the digest), and is that file of the
previous release still as it was staged, so that the next one may share it? A SQLite file: looked up by directory,
in any order, in memory that does not grow with the tree. It is a help, never needed: one that is missing or damaged
means that files are copied.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
CREATE TABLE file (
  directory BLOB, name BLOB, size INT, mtime_ns INT, mode INT, inode INT, linked INT,
  source_inode INT, source_ctime_ns INT, digest BLOB, PRIMARY KEY (directory, name)) WITHOUT ROWID;
BEGIN;
"""
_COLUMNS = "name, size, mtime_ns, mode, inode, linked, source_inode, source_ctime_ns, digest"


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
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(_SCHEMA)

    def put(self, directory: bytes, entries: Iterable[Entry]) -> None:
        """Add them, or replace those of the same names."""
        rows = [(directory, *entry) for entry in entries]
        self._db.executemany("INSERT OR REPLACE INTO file VALUES (?,?,?,?,?,?,?,?,?,?)", rows)

    def drop(self, directory: bytes, name: bytes) -> None:
        self._db.execute("DELETE FROM file WHERE directory = ? AND name = ?", (directory, name))

    def directory(self, directory: bytes) -> dict[bytes, Entry]:
        return _directory(self._db, directory)

    def close(self) -> None:
        """All of it on the disk."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def discard(self) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)


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
        except sqlite3.Error:
            self.close()
            return {}

    def linked(self) -> Iterable[tuple[bytes, bytes]]:
        """(directory, name) of each file whose inode another release had first."""
        if self._db is None:
            return ()
        return self._db.execute("SELECT directory, name FROM file WHERE linked ORDER BY directory, name")

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _directory(db: sqlite3.Connection, directory: bytes) -> dict[bytes, Entry]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM file WHERE directory = ?", (directory,))  # noqa: S608  # constants
    return {row[0]: Entry._make(row) for row in rows}
