"""state.db: what must outlive the manager, in SQLite (WAL, synchronous=FULL: a commit survives kill -9 and power loss).

One connection, used only from the manager's loop; a commit takes well under a millisecond on a local disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from deployer.errors import DeployerError, Exit
from deployer.state import migrations
from deployer.state.migrations import SCHEMA_VERSION
from deployer.wire.schema import Event, LastExit

EVENTS_KEPT = 20_000
NO_ROLLOUT = 0
OF_SAVE = "coalesce(json_extract(request, '$.name'), json_extract(request, '$.release')) LIKE 'dev-%'"
"""Of a row of `rollouts`: a watch began it for a save, or went back to one."""
RESERVE = 1024 * 1024  # bytes


class StateError(DeployerError):
    """state.db cannot be used. Workers that run are left alone."""

    exit_code = Exit.CONFIG
    reason = "state"


class WorkerRow(msgspec.Struct, frozen=True):
    id: int
    slot: int
    generation: int
    release: str
    pid: int
    ticks: int
    state: str
    notified: int
    spawned_at: float
    ready_at: float | None
    drain_at: float | None
    retired_by: int | None


class SlotRow(msgspec.Struct, frozen=True):
    restarts: int = 0
    last_exit: LastExit | None = None


class Store:
    """All reads and writes of state.db. `on_event` hears every event after its commit."""

    def __init__(self, path: Path, *, on_event: Callable[[Event], None] | None = None) -> None:
        self.path = path
        self.backup_path = path.with_name(path.name + ".bak")
        self.on_event = on_event
        self.rollout: int | None = None
        """The rollout that runs: events that name none belong to it."""
        self._pending: list[Event] = []
        self._depth = 0
        self._db = self._open()

    # Opening

    def _open(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, isolation_level=None)
            db.row_factory = sqlite3.Row
            self.path.chmod(0o600)
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
                db.execute(f"PRAGMA {pragma}")
            self._check(db)
            self._reserve(db)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error
        return db

    def _check(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StateError(
                f"{self.path} was written by a newer deployer (schema {version}, this one knows {SCHEMA_VERSION})",
                cause="an older deployer must not change what it does not understand; workers that run keep serving",
                hint="install the newer deployer again, then: deployer up",
            )
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check found damage")
        if version < SCHEMA_VERSION:
            schema = Path(__file__).with_name("schema.sql").read_text()
            try:
                db.executescript(migrations.script(version, schema))
            except sqlite3.Error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _reserve(self, db: sqlite3.Connection) -> None:
        """Grow the journal and the file beforehand, so that a rollout which meets a full disk can still be turned
        back and recorded: neither shrinks while the database is open, and freed pages are used again."""
        db.execute("BEGIN IMMEDIATE")
        db.execute("DROP TABLE IF EXISTS reserve")  # of a manager that was killed right here
        db.execute("CREATE TABLE reserve (data BLOB)")
        db.execute("INSERT INTO reserve VALUES (randomblob(?))", (RESERVE,))
        db.execute("COMMIT")
        db.execute("DROP TABLE reserve")
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _unusable(self, error: Exception) -> StateError:
        """A full disk and a damaged file are told apart; the copy is named where there is one."""
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            full = "full" in str(error)
            hint = f"df -h {self.path.parent}; then: deployer up" if full else f"ls -l {self.path.parent}"
            code = Exit.NOT_STARTED if full else Exit.DENIED
            reason = "disk" if full else "state"
            return StateError(f"cannot use {self.path}", cause=str(error), hint=hint, exit_code=code, reason=reason)
        if self.backup_path.exists():
            age = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.backup_path.stat().st_mtime))
            copy = f"the last good copy is {self.backup_path}, made {age}"
            hint = f"mv {self.path} {self.path}.damaged && cp {self.backup_path} {self.path} && deployer up"
        else:
            copy, hint = "there is no copy of it yet", f"mv {self.path} {self.path}.damaged && deployer up"
        return StateError(f"{self.path} is damaged", cause=f"{error}; workers that run keep serving; {copy}", hint=hint)

    def close(self) -> None:
        self._db.close()

    def back_up(self) -> None:
        """A whole copy beside state.db, replaced in one step. Has a connection of its own: any thread may call it."""
        aside = self.backup_path.with_suffix(".new")
        aside.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.execute("VACUUM INTO ?", (str(aside),))
        aside.chmod(0o600)
        aside.replace(self.backup_path)

    def hurry(self, *, on: bool) -> None:
        """While a developer waits for each save: commits outlive kill -9 of the manager still, but the last ones not a
        power cut (sqlite.org/pragma.html, synchronous=NORMAL in WAL mode)."""
        self._db.execute(f"PRAGMA synchronous={'NORMAL' if on else 'FULL'}")

    # Transactions and events

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed at once; listeners hear its events after that. May be nested."""
        if self._depth:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            self._pending.clear()
            raise
        else:
            self._db.execute("COMMIT")
        finally:
            self._depth = 0
        heard, self._pending = self._pending, []
        if self.on_event is not None:
            for event in heard:
                self.on_event(event)

    def emit(self, event: str, *, rollout: int | None = None, **data: Any) -> None:
        """`rollout`: the one that runs where nothing is said; NO_ROLLOUT where it is nobody's."""
        rollout = self.rollout if rollout is None else rollout or None
        with self.transaction():
            now = time.time()
            row = self._db.execute(
                "INSERT INTO events (ts, event, rollout, data) VALUES (?, ?, ?, ?)", (now, event, rollout, _json(data))
            )
            self._pending.append(Event(seq=row.lastrowid or 0, ts=now, event=event, rollout=rollout, data=data))

    def events(self, *, after: int = 0, rollout: int | None = None, limit: int = 1000) -> list[Event]:
        rows = self._db.execute(
            "SELECT * FROM events WHERE seq > ? AND (? IS NULL OR rollout = ?) ORDER BY seq LIMIT ?",
            (after, rollout, rollout, limit),
        )
        return [
            Event(seq=r["seq"], ts=r["ts"], event=r["event"], rollout=r["rollout"], data=msgspec.json.decode(r["data"]))
            for r in rows
        ]

    def trim_events(self) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", (EVENTS_KEPT,))

    # Meta

    def get(self, key: str, default: Any = None) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else msgspec.json.decode(row["value"])

    def put(self, key: str, value: Any) -> None:
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, _json(value)))

    # Rows of any table, by name: the callers know their columns

    def insert(self, table: str, **values: Any) -> int:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        with self.transaction():
            cursor = self._db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608
            return cursor.lastrowid or 0

    def update(self, table: str, key: str, value: Any, **values: Any) -> None:
        sets = ", ".join(f"{name} = ?" for name in values)
        with self.transaction():
            self._db.execute(f"UPDATE {table} SET {sets} WHERE {key} = ?", (*values.values(), value))  # noqa: S608

    def delete(self, table: str, key: str, value: Any) -> None:
        with self.transaction():
            self._db.execute(f"DELETE FROM {table} WHERE {key} = ?", (value,))  # noqa: S608

    def execute(self, statement: str, *parameters: Any) -> None:
        with self.transaction():
            self._db.execute(statement, parameters)

    def rows(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        return self._db.execute(query, parameters).fetchall()

    def row(self, query: str, *parameters: Any) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._db.execute(query, parameters).fetchone()
        return found

    def last_scale(self) -> int | None:
        """The rollout that last changed the number of slots by itself."""
        row = self.row("SELECT max(id) AS id FROM rollouts WHERE kind = 'scale'")
        return None if row is None else row["id"]

    def forget_rollouts(self, kept: int) -> None:
        """Of rollouts of saves only the last stay, and those that a worker is of."""
        spent = (
            f"SELECT id FROM rollouts WHERE {OF_SAVE} AND id <= (SELECT max(id) FROM rollouts) - ? "  # noqa: S608
            "AND id NOT IN (SELECT generation FROM workers) "
            "AND id IS NOT (SELECT value FROM meta WHERE key = 'promoted')"
        )
        with self.transaction():
            for table, key in (("journal", "rollout"), ("hooks", "rollout"), ("rollouts", "id")):
                self._db.execute(f"DELETE FROM {table} WHERE {key} IN ({spent})", (kept,))  # noqa: S608

    # Workers and slots

    def add_worker(self, **values: Any) -> WorkerRow:
        number = self.insert("workers", **values)
        return next(row for row in self.workers() if row.id == number)

    def workers(self) -> list[WorkerRow]:
        return [WorkerRow(**dict(row)) for row in self.rows("SELECT * FROM workers ORDER BY id")]

    def slot(self, slot: int) -> SlotRow:
        row = self.row("SELECT restarts, last_exit FROM slots WHERE slot = ?", slot)
        if row is None:
            return SlotRow()
        last = None if row["last_exit"] is None else msgspec.json.decode(row["last_exit"], type=LastExit)
        return SlotRow(restarts=row["restarts"], last_exit=last)

    def count_exit(self, slot: int, last: LastExit) -> None:
        """A worker of the slot died by itself."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO slots (slot, restarts, last_exit) VALUES (?, 1, ?) "
                "ON CONFLICT (slot) DO UPDATE SET restarts = restarts + 1, last_exit = excluded.last_exit",
                (slot, _json(last)),
            )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
