"""The releases there are: their states in state.db, their directories on disk."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from deployer.config.model import Config
from deployer.errors import DeployerError, Exit
from deployer.paths import Layout
from deployer.releases import envs, settings, tree
from deployer.releases.release import DEV, Release, is_dev, named
from deployer.releases.request import Again, StageResult
from deployer.releases.retention import Kept
from deployer.state.store import Store
from deployer.wire.schema import Changes, ReleaseDetail, ReleaseInfo, RolloutInfo

SHORTEST_COMMIT = 4
_NAME = re.compile(rf"(v|{DEV})([0-9]+)", re.ASCII)
_GONE = "(state = 'failed' AND config IS NULL) OR removed_at IS NOT NULL"
_PROMOTED = (
    "SELECT * FROM releases WHERE number > 0 AND promoted_at IS NOT NULL AND removed_at IS NULL "
    "ORDER BY promoted_at DESC"
)


class NoSuchReleaseError(DeployerError):
    exit_code = Exit.USAGE
    reason = "release"


class Catalog:
    """Reads and writes releases. Directories are made by the staging child and removed here."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._loaded: dict[str, Release] = {}

    # A release's life

    def open(self, *, source: str, origin: str, who: str, message: str | None, dev: bool = False) -> str:
        """A new name, v1, v2, ..., or of a save (`dev`) dev-1, dev-2, ...; in the database before anything is on disk.
        `origin`: what was asked for."""
        values: dict[str, Any] = {"state": "staging", "source": source, "origin": origin, "who": who}
        values |= {"message": message, "staged_at": time.time()}
        if dev:
            return named(self._store.insert("releases", number=self._next_save(), **values))
        newest = max(self._on_disk(), default=0)
        row = self._store.row("SELECT coalesce(max(seq), 0) AS seq FROM sqlite_sequence WHERE name = 'releases'")
        if row is not None and newest > row["seq"]:  # state.db was lost or put back: what is on disk keeps its name
            values["number"] = newest + 1
        return named(self._store.insert("releases", **values))

    def _next_save(self) -> int:
        """Rows of saves do not stay, and no name is used again: the last number is kept by itself."""
        number = min([self._store.get("last_save", 0), *self._on_disk()], default=0) - 1
        self._store.put("last_save", number)
        return number

    def staged(self, result: StageResult) -> None:
        self._update(
            result.name,
            state="staged",
            source=result.source,
            ref=result.ref,
            commit_sha=result.commit,
            subject=result.subject,
            author=result.author,
            tree_digest=result.tree_digest,
            settings_digest=result.settings_digest,
            config=msgspec.json.encode(result.config).decode(),
            env=msgspec.json.encode(result.env).decode(),
            files=result.files,
            bytes=result.bytes,
            environment=result.environment,
            warnings=msgspec.json.encode(result.warnings).decode(),
        )

    def forget(self, name: str) -> None:
        """It turned out to be what is live already: as if it had never been asked for."""
        self._store.delete("releases", "number", _number(name))

    def end(self, name: str, state: str, reason: str | None) -> None:
        """failed, bad or reverted: never a rollback target by default."""
        self._update(name, state=state, reason=reason)

    def promoted(self, name: str, previous: str | None, *, back: bool) -> None:
        """`back`: a rollback. The release that it left for an older one is not one to go back to by default; who goes
        forward again left nothing bad behind."""
        if previous is not None and previous != name:
            back = back and _number(previous) > _number(name)
            self._store.execute(
                "UPDATE releases SET state = ? WHERE number = ? AND state != 'bad'",  # a save that crashed once live
                "reverted" if back else "superseded",
                _number(previous),
            )
        self._update(name, state="live", promoted_at=time.time(), reason=None)

    def sweep(self) -> list[OSError]:
        """Remove what killed stagings and removals left on disk; what could not be removed is in nobody's way. A
        directory that no row knows of is left alone: after state.db was put back from its copy, it may be what
        visitors see."""
        faults = []
        for row in self._store.rows(f"SELECT number FROM releases WHERE {_GONE}"):  # noqa: S608
            try:
                tree.remove(self._layout.release(named(row["number"])))
            except OSError as error:
                faults.append(error)
        return faults

    def pin(self, name: str, *, pinned: bool) -> None:
        """Retention leaves it alone, or no longer does."""
        if pinned and (cause := self._without_files(self._row(name))):
            raise NoSuchReleaseError(f"{name} cannot be pinned", cause=cause, hint="deployer releases")
        self._update(name, pinned=int(pinned))

    def condemn(self, names: Sequence[str]) -> None:
        """Journal that these go: from now on nobody runs them again, whenever their files go."""
        with self._store.transaction():
            for name in names:
                self._update(name, removed_at=time.time())
                self._loaded.pop(name, None)

    def condemned(self) -> list[str]:
        """Releases that retention took and whose files are there all the same: nobody could remove them yet."""
        rows = self._store.rows("SELECT number FROM releases WHERE removed_at IS NOT NULL ORDER BY number")
        names = [named(row["number"]) for row in rows]
        return [name for name in names if any(map(os.path.lexists, tree.places(self._layout.release(name))))]

    def kept(self) -> list[Kept]:
        """Every release whose files are there, for retention to judge; saves are none."""
        rows = self._store.rows("SELECT * FROM releases WHERE removed_at IS NULL AND number > 0 ORDER BY number")
        return [
            Kept(name, row["number"], row["state"], row["promoted_at"], bool(row["pinned"]))
            for row in rows
            if self._layout.release(name := named(row["number"])).is_dir()
        ]

    def saves(self) -> list[str]:
        """Those whose files are, or may be, there; newest first."""
        rows = self._store.rows("SELECT number FROM releases WHERE removed_at IS NULL AND number < 0 ORDER BY number")
        return [named(row["number"]) for row in rows]

    def save_before(self, live: str | None) -> str | None:
        """The newest save before the one that is live that was live itself, and can be run again. Where a release is
        live: the newest of all."""
        number = _number(live) if live is not None and is_dev(live) else -(2**62)
        rows = self._store.rows(
            "SELECT * FROM releases WHERE number < 0 AND number > ? AND promoted_at IS NOT NULL AND state != 'bad' "
            "AND removed_at IS NULL ORDER BY number",
            number,
        )
        return next((named(row["number"]) for row in rows if self._fault(row) is None), None)

    def forget_saves(self, kept: int) -> None:
        """Of saves whose files are gone only the last rows stay."""
        with self._store.transaction():
            self._store.execute(
                "DELETE FROM releases WHERE number < 0 AND removed_at IS NOT NULL AND number >= ?",
                self._store.get("last_save", 0) + kept,
            )

    def spent_logs(self, keep_failed: int) -> list[Path]:
        """Logs of builds whose release is gone. One that failed to be built has nothing but its log for inspection:
        the last `keep_failed` of these stay."""
        rows = self._store.rows(f"SELECT number, removed_at FROM releases WHERE {_GONE} ORDER BY number DESC")  # noqa: S608
        there = set(self._layout.logs.glob("build-*.log"))
        found = [
            (log, row["removed_at"]) for row in rows if (log := self._layout.build_log(named(row["number"]))) in there
        ]
        failed = [log for log, removed_at in found if removed_at is None]
        return [*(log for log, removed_at in found if removed_at is not None), *failed[keep_failed:]]

    def environments(self) -> set[str]:
        """Names in ROOT/envs that a release with files refers to."""
        rows = self._store.rows("SELECT environment FROM releases WHERE environment IS NOT NULL AND removed_at IS NULL")
        return {row["environment"] for row in rows}

    def _on_disk(self) -> list[int]:
        """Numbers of what lies there under a release's name."""
        return [number for path in self._layout.releases.iterdir() if (number := _parsed(path.name)) is not None]

    # Questions

    def release(self, name: str) -> Release:
        """What its workers are started from. NoSuchReleaseError when it cannot be run."""
        if name not in self._loaded:
            row = self._row(name)
            if row["config"] is None:
                raise NoSuchReleaseError(f"{name} was never staged", hint="deployer releases")
            self._loaded[name] = Release(
                name=name,
                directory=self._layout.release(name).resolve(),
                config=msgspec.json.decode(row["config"], type=Config),
                env=msgspec.json.decode(row["env"], type=dict[str, str]),
                environment=None if row["environment"] is None else self._layout.envs / row["environment"],
            )
        return self._loaded[name]

    def digests(self, name: str | None) -> tuple[str | None, str | None]:
        """(tree, settings) of a release; two None for none."""
        if name is None:
            return None, None
        row = self._row(name)
        return row["tree_digest"], row["settings_digest"]

    def last_good(self, live: str | None) -> str:
        """The newest promoted release that is not live, not known as bad, not the same as live, and still on disk."""
        same = self.digests(live)
        alike, faults = [], []
        for row in self._store.rows(_PROMOTED):
            name = named(row["number"])
            if name == live or row["state"] != "superseded":
                continue
            if fault := self._fault(row):
                faults.append(f"{name}: {fault}")
                continue
            if (row["tree_digest"], row["settings_digest"]) != same:
                return name
            alike.append(name)
        cause = "no other release was ever promoted" if live else "no release was ever promoted"
        if alike or faults:
            cause = "; ".join(
                [*([f"{', '.join(alike)}: the same files and settings as {live}"] if alike else []), *faults]
            )
        raise NoSuchReleaseError("there is no release to roll back to", cause=cause, hint="deployer releases")

    def of_commit(self, prefix: str) -> str:
        """The newest good release of a commit, which may be given by its first digits."""
        if len(prefix) < SHORTEST_COMMIT or set(prefix.lower()) - set("0123456789abcdef"):
            cause = f"at least {SHORTEST_COMMIT} of the hexadecimal digits that `deployer releases` shows"
            raise NoSuchReleaseError(f"{prefix!r} is not a commit", cause=cause, hint="deployer releases")
        rows = [row for row in self._store.rows(_PROMOTED) if row["state"] in ("live", "superseded", "reverted")]
        made = [row for row in rows if (row["commit_sha"] or "").startswith(prefix.lower())]
        found = [row for row in made if self._fault(row) is None]
        if not found:
            faults = [f"{named(row['number'])}: {self._fault(row)}" for row in made]
            cause = "; ".join(faults) or "none that is good and still on disk was made from it"
            raise NoSuchReleaseError(f"there is no release of commit {prefix}", cause=cause, hint="deployer releases")
        if len({row["commit_sha"] for row in found}) > 1:
            cause = ", ".join(f"{named(row['number'])} {row['commit_sha'][:12]}" for row in found)
            raise NoSuchReleaseError(f"{prefix} is the start of several commits", cause=cause, hint="deployer releases")
        return named(found[0]["number"])

    def target(self, name: str) -> str:
        """A release somebody named, when it can be run again."""
        row = self._row(name)
        if cause := self._fault(row):
            # The environment is found by what is in it: any release with the same lock file brings it back.
            again = (
                f"deployer deploy --ref {row['commit_sha']}" if row["source"].startswith("git ") else "deployer deploy"
            )
            hint = "deployer releases" if self._without_files(row) else f"{again}  # builds the environment anew"
            raise NoSuchReleaseError(f"{name} cannot be rolled back to", cause=cause, hint=hint)
        return name

    def infos(self) -> list[ReleaseInfo]:
        """Saves are none, but for the one that is live."""
        query = "SELECT * FROM releases WHERE number > 0 OR state = 'live' ORDER BY number < 0 DESC, number DESC"
        return [_info(row) for row in self._store.rows(query)]

    def expected_bytes(self, origin: str) -> int | None:
        """How large the last release of the same source was."""
        row = self._store.row(
            "SELECT bytes FROM releases WHERE origin = ? AND config IS NOT NULL ORDER BY number DESC LIMIT 1", origin
        )
        return None if row is None else int(row["bytes"])

    def detail(self, name: str, rollouts: list[RolloutInfo]) -> ReleaseDetail:
        row = self._row(name)
        env = {} if row["env"] is None else msgspec.json.decode(row["env"], type=dict[str, str])
        config = None if row["config"] is None else msgspec.json.decode(row["config"], type=Config)
        return ReleaseDetail(
            info=_info(row),
            directory=str(self._layout.release(name)),
            ref=row["ref"],
            files=row["files"],
            environment=row["environment"],
            settings_digest=row["settings_digest"],
            env_keys=sorted(env),
            config={} if config is None else settings.shown(config),
            warnings=msgspec.json.decode(row["warnings"], type=list[str]),
            rollouts=rollouts,
        )

    def settings_changes(self, old: str | None, new: str) -> tuple[Changes, Changes]:
        """(environment, configuration): what differs, by name. With `old` None everything is new."""
        after = self.release(new)
        before = None if old is None else self.release(old)
        env = settings.compare_env({} if before is None else before.env, after.env)
        return env, settings.compare_config(None if before is None else before.config, after.config)

    def warnings(self, name: str) -> list[str]:
        """What staging found odd about it."""
        return msgspec.json.decode(self._row(name)["warnings"], type=list[str])

    def again(self, name: str) -> Again:
        """What it takes to have the release a second time."""
        row = self._row(name)
        same = {key: row[key] for key in ("source", "subject", "author", "ref", "files", "bytes")}
        config, digest = self.release(name).config, row["tree_digest"]
        return Again(release=name, config=config, tree_digest=digest, commit=row["commit_sha"], **same)

    def _fault(self, row: sqlite3.Row) -> str | None:
        """Why it cannot be run."""
        if fault := self._without_files(row):
            return fault
        environment = row["environment"]
        if environment is not None and not envs.is_whole(self._layout.envs, environment):
            return f"its Python environment is gone ({self._layout.envs / environment})"
        return None

    def _without_files(self, row: sqlite3.Row) -> str | None:
        if row["removed_at"] is not None:
            return "retention removed its files"
        if row["config"] is None or not self._layout.release(named(row["number"])).is_dir():
            return f"it is {row['state']}: its files are gone"
        return None

    def _row(self, name: str) -> sqlite3.Row:
        row = self._store.row("SELECT * FROM releases WHERE number = ?", _number(name))
        if row is None:
            raise NoSuchReleaseError(f"there is no release {name}", hint="deployer releases")
        return row

    def _update(self, name: str, **values: Any) -> None:
        self._store.update("releases", "number", _number(name), **values)


def _number(name: str) -> int:
    number = _parsed(name)
    if number is None:
        cause = "releases are named v1, v2, ..."
        raise NoSuchReleaseError(f"{name!r} is not a release", cause=cause, hint="deployer releases")
    return number


def _parsed(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return int(match[2]) if match[1] == "v" else -int(match[2])


def _info(row: sqlite3.Row) -> ReleaseInfo:
    return ReleaseInfo(
        name=named(row["number"]),
        state=row["state"],
        source=row["source"],
        commit=row["commit_sha"],
        subject=row["subject"],
        author=row["author"],
        staged_at=row["staged_at"],
        promoted_at=row["promoted_at"],
        size_bytes=row["bytes"],
        who=row["who"],
        message=row["message"],
        reason=row["reason"],
        tree_digest=row["tree_digest"],
        pinned=bool(row["pinned"]),
        removed_at=row["removed_at"],
    )
