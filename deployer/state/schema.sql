-- state.db: everything that must outlive the manager. PRAGMA user_version is SCHEMA_VERSION of store.py.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL                -- JSON
) STRICT;

CREATE TABLE releases (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,  -- v1, v2, ...; never used again. -1, -2, ...: saves, dev-1, dev-2
    state       TEXT NOT NULL,         -- staging staged live superseded failed reverted bad
    source      TEXT NOT NULL,
    ref         TEXT,
    commit_sha  TEXT,
    subject     TEXT,
    author      TEXT,
    tree_digest TEXT,
    settings_digest TEXT,              -- of what the workers run with
    config      TEXT,                  -- resolved configuration, JSON
    env         TEXT,                  -- frozen environment, JSON
    files       INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL DEFAULT 0,
    who         TEXT NOT NULL,
    message     TEXT,
    reason      TEXT,                  -- why it failed or was reverted
    staged_at   REAL NOT NULL,         -- seconds since the epoch, as all *_at
    promoted_at REAL,
    pinned      INTEGER NOT NULL DEFAULT 0,         -- retention never removes it
    environment TEXT,                  -- its Python environment: a name in ROOT/envs
    warnings    TEXT NOT NULL DEFAULT '[]',         -- what staging found odd, JSON list of text
    origin      TEXT,                  -- the source as it was asked for, JSON: alike for deploys of one source
    removed_at  REAL                   -- retention took its files; the row stays for the history
) STRICT;

CREATE TABLE rollouts (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- also the generation of the workers it starts
    kind        TEXT NOT NULL,
    state       TEXT NOT NULL,         -- rollout.machine.Rollout, JSON
    request     TEXT NOT NULL,         -- what was asked for, JSON
    phase       TEXT NOT NULL,         -- of the machine; or queued: it waits its turn, `request` is the command
    previous    TEXT,
    who         TEXT NOT NULL,
    message     TEXT,
    started_at  REAL NOT NULL,
    finished_at REAL,
    outcome     TEXT,
    exit_code   INTEGER,
    serving     TEXT,
    cut         TEXT,                  -- wire.schema.Cut, JSON: what the ends of the workers it retired cut
    command     TEXT,                  -- key of the command that began it
    watch       INTEGER                -- the watch that began it
) STRICT;

CREATE TABLE journal (                 -- every fact that moved a rollout, in order
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    rollout INTEGER NOT NULL REFERENCES rollouts (id),
    at      REAL NOT NULL,
    fact    TEXT NOT NULL,
    phase   TEXT NOT NULL              -- the phase it led to
) STRICT;

CREATE TABLE hooks (                   -- each hook that was started for a rollout
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    rollout     INTEGER NOT NULL REFERENCES rollouts (id),
    stage       TEXT NOT NULL,         -- before_stage, after_build, ...
    name        TEXT NOT NULL,         -- where it is from, for people
    pid         INTEGER NOT NULL,
    ticks       INTEGER NOT NULL,
    started_at  REAL NOT NULL,
    finished_at REAL,                  -- null: it runs, or its manager died
    failure     TEXT                   -- null: it went well
) STRICT;

CREATE TABLE workers (                 -- processes that run, or whose end has not been seen yet
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    slot       INTEGER NOT NULL,       -- 0 is the preflight worker
    generation INTEGER NOT NULL,
    release    TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    ticks      INTEGER NOT NULL,       -- start time in clock ticks: with the pid, the process for sure
    state      TEXT NOT NULL,
    notified   INTEGER NOT NULL DEFAULT 0,  -- it sent READY=1
    spawned_at REAL NOT NULL,          -- seconds since boot, as all *_at of this table
    ready_at   REAL,
    drain_at   REAL,                   -- when SIGTERM was sent
    retired_by INTEGER                 -- the rollout it went for, where there was one
) STRICT;

CREATE TABLE slots (                   -- what is known of a slot beyond its workers
    slot      INTEGER PRIMARY KEY,
    restarts  INTEGER NOT NULL DEFAULT 0,
    last_exit TEXT                     -- wire.schema.LastExit, JSON
) STRICT;

CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    ts      REAL NOT NULL,
    event   TEXT NOT NULL,
    rollout INTEGER,
    data    TEXT NOT NULL
) STRICT;
CREATE INDEX events_rollout ON events (rollout, seq);
