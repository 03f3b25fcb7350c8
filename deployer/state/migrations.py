"""How a state.db of an earlier deployer becomes one of today: a step for each schema version, never changed again."""

from __future__ import annotations

SCHEMA_VERSION = 4
"""PRAGMA user_version of what schema.sql makes."""

STEPS = {
    1: """
        ALTER TABLE releases ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE releases ADD COLUMN environment TEXT;
        ALTER TABLE releases ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE releases ADD COLUMN origin TEXT;
        ALTER TABLE releases ADD COLUMN removed_at REAL;
        CREATE TABLE hooks (
            id          INTEGER PRIMARY KEY AUTOINCREMENT,
            rollout     INTEGER NOT NULL REFERENCES rollouts (id),
            stage       TEXT NOT NULL,
            name        TEXT NOT NULL,
            pid         INTEGER NOT NULL,
            ticks       INTEGER NOT NULL,
            started_at  REAL NOT NULL,
            finished_at REAL,
            failure     TEXT
        ) STRICT;
    """,
    2: """
        ALTER TABLE rollouts ADD COLUMN cut TEXT;
        ALTER TABLE rollouts ADD COLUMN command TEXT;
        ALTER TABLE workers ADD COLUMN retired_by INTEGER;
    """,
    3: """
        ALTER TABLE rollouts ADD COLUMN watch INTEGER;
    """,
}
"""From the version that is the key to the next one."""


def script(version: int, schema: str) -> str:
    """What brings a database of `version` (0: an empty one) to SCHEMA_VERSION, in one transaction."""
    body = schema if version == 0 else "".join(STEPS[number] for number in range(version, SCHEMA_VERSION))
    return f"BEGIN IMMEDIATE; {body} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
