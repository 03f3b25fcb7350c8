"""A state.db of an earlier deployer is brought up to date, whole or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from deployer.paths import Layout
from deployer.releases.catalog import Catalog
from deployer.state import migrations
from deployer.state.migrations import SCHEMA_VERSION
from deployer.state.store import StateError, Store

VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE releases (
    number INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, source TEXT NOT NULL, ref TEXT, commit_sha TEXT,
    subject TEXT, author TEXT, tree_digest TEXT, settings_digest TEXT, config TEXT, env TEXT,
    files INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, who TEXT NOT NULL, message TEXT, reason TEXT,
    staged_at REAL NOT NULL, promoted_at REAL
) STRICT;
CREATE TABLE rollouts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
    phase TEXT NOT NULL, previous TEXT, who TEXT NOT NULL, message TEXT, started_at REAL NOT NULL, finished_at REAL,
    outcome TEXT, exit_code INTEGER, serving TEXT
) STRICT;
CREATE TABLE journal (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rollout INTEGER NOT NULL REFERENCES rollouts (id), at REAL NOT NULL,
    fact TEXT NOT NULL, phase TEXT NOT NULL
) STRICT;
CREATE TABLE workers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL, generation INTEGER NOT NULL, release TEXT NOT NULL,
    pid INTEGER NOT NULL, ticks INTEGER NOT NULL, state TEXT NOT NULL, notified INTEGER NOT NULL DEFAULT 0,
    spawned_at REAL NOT NULL, ready_at REAL, drain_at REAL
) STRICT;
CREATE TABLE slots (slot INTEGER PRIMARY KEY, restarts INTEGER NOT NULL DEFAULT 0, last_exit TEXT) STRICT;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, ts REAL NOT NULL, event TEXT NOT NULL, rollout INTEGER, data TEXT NOT NULL
) STRICT;
CREATE INDEX events_rollout ON events (rollout, seq);
INSERT INTO releases (state, source, who, staged_at, promoted_at) VALUES ('live', 'path /srv/shop', 'ana', 1.0, 2.0);
INSERT INTO releases (state, source, who, staged_at) VALUES ('bad', 'path /srv/shop', 'ana', 3.0);
INSERT INTO rollouts (kind, state, request, phase, who, started_at) VALUES ('deploy', '{}', '{}', 'held', 'ana', 1.0);
INSERT INTO workers (slot, generation, release, pid, ticks, state, spawned_at) VALUES (1, 1, 'v1', 7, 70, 'ready', 1.0);
PRAGMA user_version = 1;
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.executescript(VERSION_1)
    (tmp_path / "releases").mkdir()
    return Layout(tmp_path)


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {name: [row[1:] for row in db.execute(f"PRAGMA table_info({name})")] for name in tables}


def test_version_1_becomes_what_a_new_database_is(layout: Layout, tmp_path: Path) -> None:
    Store(layout.database).close()
    Store(tmp_path / "new.db").close()
    assert columns(layout.database) == columns(tmp_path / "new.db")


def test_nothing_that_was_known_is_lost(layout: Layout) -> None:
    store = Store(layout.database)
    infos = Catalog(store, layout).infos()
    assert [(info.name, info.state, info.pinned, info.removed_at) for info in infos] == [
        ("v2", "bad", False, None),
        ("v1", "live", False, None),
    ]
    assert store.row("SELECT who, cut FROM rollouts")["cut"] is None  # type: ignore[index]
    assert [(worker.pid, worker.retired_by) for worker in store.workers()] == [(7, None)]
    assert store.row("PRAGMA user_version")[0] == SCHEMA_VERSION  # type: ignore[index]
    store.close()
    Store(layout.database).close()  # a second time there is nothing to do


def test_a_step_that_fails_leaves_the_old_database_whole(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a step is one transaction: the older deployer could still use what it left."""
    before = columns(layout.database)
    monkeypatch.setitem(migrations.STEPS, 1, migrations.STEPS[1] + "ALTER TABLE nowhere ADD COLUMN x;")
    with pytest.raises(StateError):
        Store(layout.database)
    assert columns(layout.database) == before
    with closing(sqlite3.connect(layout.database)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1


def test_version_2_keeps_what_runs(tmp_path: Path) -> None:
    """Only what came later is added: workers that run, and the hooks' journal, stay."""
    path = tmp_path / "two.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1 + migrations.STEPS[1] + "PRAGMA user_version = 2;")
        before = columns(path)
    store = Store(path)
    assert [worker.pid for worker in store.workers()] == [7]
    store.close()
    added = {name: [row[0] for row in rows if row not in before[name]] for name, rows in columns(path).items()}
    assert {name: names for name, names in added.items() if names} == {
        "rollouts": ["cut", "command", "watch"],
        "workers": ["retired_by"],
    }
