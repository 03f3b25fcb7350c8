"""Hooks: what an application has to say and do at the stages of a rollout.

A stage's hooks are, in this order: the host's executable ROOT/hooks/STAGE, the command in `[hooks]`, the release's
executable hooks/STAGE. The host goes first: what guards a machine is heard before what comes with the code. Up to the
canary the first hook that fails ends the rollout; after that every hook runs, and a failure is a warning.

Each start and end is in state.db. A manager that takes over kills a hook that still runs; a hook that was to decide
something is then run again, one that comes after the decision is not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import structlog

from deployer.config.model import Config
from deployer.manager.hookoutput import HookOutput
from deployer.manager.hookprocess import SHELL, End, HookProcess, end_inherited
from deployer.osutil.process import describe_exit
from deployer.paths import Layout
from deployer.releases.process import KEPT_PREFIXES
from deployer.releases.release import Release, is_dev
from deployer.releases.request import StageRequest
from deployer.rollout.events import Failure
from deployer.rollout.machine import Policy, Rollout, outcome
from deployer.state.store import Store
from deployer.units import format_duration, parse_duration
from deployer.workers import order

TEXT_MAX = 4096  # characters of a message or cause that a hook is told: its stdin must fit into a pipe

log = structlog.get_logger()


class Stage(StrEnum):
    BEFORE_STAGE = "before_stage"
    AFTER_BUILD = "after_build"
    BEFORE_ROLLOUT = "before_rollout"
    AFTER_CANARY = "after_canary"
    AFTER_ROLLOUT = "after_rollout"
    AFTER_ROLLBACK = "after_rollback"
    ON_FAILURE = "on_failure"


DECIDING = frozenset({Stage.BEFORE_STAGE, Stage.AFTER_BUILD, Stage.BEFORE_ROLLOUT, Stage.AFTER_CANARY})
"""Stages whose failure ends the rollout."""


@dataclass(frozen=True)
class Hook:
    stage: Stage
    name: str  # where it is from, for people
    argv: tuple[str, ...]
    fault: str | None = None  # why it cannot be run


@dataclass(frozen=True)
class Place:
    """What hooks of a stage are taken from, and run in: a release, or the directory of deployer.toml before it is."""

    config: Config
    directory: Path
    release: Release | None = None
    silent: bool = False  # a save: hooks are for releases

    @classmethod
    def of(cls, release: Release) -> Place:
        return cls(release.config, release.directory, release, is_dev(release.name))

    @classmethod
    def before(cls, request: StageRequest) -> Place:
        """Of a release that is still to be made."""
        return cls(request.host_config, Path(request.directory), silent=request.development is not None)


class Hooks:
    """Finds and runs the hooks of a rollout's stages."""

    def __init__(self, *, store: Store, layout: Layout, base_env: Mapping[str, str], config_file: Path) -> None:
        self._store, self._layout = store, layout
        self._base_env, self._config_file = base_env, config_file

    def find(self, stage: Stage, place: Place) -> list[Hook]:
        """Those there are, in the order in which they run."""
        if place.silent:
            return []
        own = self._layout.hooks / stage
        found = [_executable(stage, own, self._shown(own))]
        command: str | None = getattr(place.config.hooks, stage)
        if command is not None:
            found.append(Hook(stage, f"[hooks] {stage}", (SHELL, "-c", command)))
        if place.release is not None:
            path = place.directory / "hooks" / stage
            found.append(_executable(stage, path, f"hooks/{stage} of {place.release.name}"))
        return [hook for hook in found if hook is not None]

    def shape(self, policy: Policy, release: Release) -> Policy:
        """The knobs of a rollout of a release that is there: its hooks have their places in it."""
        place = Place.of(release)
        return msgspec.structs.replace(
            policy,
            prepare=bool(self.find(Stage.BEFORE_ROLLOUT, place)),
            soak=policy.soak or bool(self.find(Stage.AFTER_CANARY, place)),
        )

    def due(self, stage: Stage, rollout: Rollout, place: Place) -> bool:
        """Whether the stage has hooks of which none was started for the rollout."""
        return bool(self.find(stage, place)) and not self._rows(rollout, stage)

    async def run(self, stage: Stage, rollout: Rollout, place: Place, *, name: str | None = None) -> list[Failure]:
        """Failures of the stage's hooks; at most one of a stage that decides. `name`: of a release not yet staged."""
        failures = []
        for hook in self.find(stage, place):
            failure = self._known(hook, rollout)
            if isinstance(failure, str):
                failure = await self._run(hook, rollout, place, name)
            if failure is not None:
                failures.append(failure)
                if stage in DECIDING:
                    break
        return failures

    def end_inherited(self) -> None:
        """Kill what a dead manager left running: nobody waits for it any more."""
        for row in self._store.rows("SELECT * FROM hooks WHERE finished_at IS NULL"):
            log.warning("hook.inherited", rollout=row["rollout"], stage=row["stage"], pid=row["pid"])
            mark = {"DEPLOYER_STAGE": row["stage"], "DEPLOYER_ROLLOUT": str(row["rollout"])}
            end_inherited(row["pid"], row["ticks"], mark | {"DEPLOYER_ROOT": str(self._layout.root)})
            cut = f"the {row['stage']} hook ({row['name']}) was cut short: the manager died while it ran"
            self._close(row["id"], cut)

    def forget(self, rollout: Rollout, stage: Stage) -> None:
        """What it worked on is made anew: it has to run again."""
        with self._store.transaction():
            for row in self._rows(rollout, stage):
                self._store.delete("hooks", "id", row["id"])

    # Private

    def _shown(self, path: Path) -> str:
        """As short as somebody who knows the directory of deployer.toml needs it."""
        here = self._config_file.parent
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    def _known(self, hook: Hook, rollout: Rollout) -> Failure | str | None:
        """What came of the hook when an earlier manager ran it; "run" when it has to run."""
        rows = [row for row in self._rows(rollout, hook.stage) if row["name"] == hook.name]
        if any(row["finished_at"] is not None and row["failure"] is None for row in rows):
            return None
        if not rows or hook.stage in DECIDING:
            return "run"
        return Failure(reason="hook", what=rows[-1]["failure"], hint=self._hint(rollout))

    async def _run(self, hook: Hook, rollout: Rollout, place: Place, name: str | None) -> Failure | None:
        if hook.fault is not None:
            what = f"the {hook.stage} hook ({hook.name}) cannot be run: {hook.fault}"
            verb = "chmod +x" if os.path.exists(hook.argv[0]) else "ls -l"
            return Failure(reason="hook", what=what, hint=f"{verb} {hook.argv[0]}")
        output = HookOutput(self._store, rollout.id, hook.stage, hook.name, self._layout.rollout_log(rollout.id))
        context = self._context(hook.stage, rollout, name or rollout.release)
        try:
            process = HookProcess(hook.argv, place.directory, self._environment(place, context), output.line)
        except OSError as error:
            output.close()
            what = f"the {hook.stage} hook ({hook.name}) cannot be started"
            return Failure(reason="hook", what=what, cause=error.strerror)
        timeout, began = place.config.hooks.timeout, time.monotonic()
        with self._store.transaction():
            row = self._open(hook, rollout, process)
            self._store.emit("hook.started", rollout=rollout.id, stage=hook.stage, hook=hook.name, pid=process.pid)
        process.go(_json(context))
        failure: Failure | None = self._failure(hook, rollout, "it was stopped", output)
        end = None
        try:
            end = await process.wait(parse_duration(timeout))
            failure = self._judge(hook, rollout, end, timeout, output)
        finally:
            output.close()
            with self._store.transaction():
                self._close(row, None if failure is None else failure.what)
                self._store.emit(
                    "hook.finished",
                    rollout=rollout.id,
                    stage=hook.stage,
                    hook=hook.name,
                    seconds=round(time.monotonic() - began, 3),
                    exit=None if end is None else end.code,
                    failure=None if failure is None else failure.what,
                )
        return failure

    def _judge(self, hook: Hook, rollout: Rollout, end: End, timeout: str, output: HookOutput) -> Failure | None:
        if end.timed_out:
            limit = format_duration(parse_duration(timeout))
            return self._failure(hook, rollout, f"not done within [hooks] timeout = {limit}", output)
        if end.code == 0:
            return None
        return self._failure(hook, rollout, describe_exit(end.code)[2], output)

    def _failure(self, hook: Hook, rollout: Rollout, why: str, output: HookOutput) -> Failure:
        what = f"the {hook.stage} hook ({hook.name}) failed: {why}"
        return Failure(reason="hook", what=what, hint=self._hint(rollout), tail=tuple(output.tail))

    def _hint(self, rollout: Rollout) -> str:
        return f"cat {self._layout.rollout_log(rollout.id)}"

    # What a hook is told

    def _context(self, stage: Stage, rollout: Rollout, name: str | None) -> dict[str, Any]:
        row = self._store.row("SELECT previous, who, message FROM rollouts WHERE id = ?", rollout.id)
        assert row is not None
        number = None if name is None else int(name.removeprefix("v"))
        release = self._store.row("SELECT source, commit_sha FROM releases WHERE number = ?", number)
        failure = rollout.failure
        after = stage in (Stage.AFTER_ROLLOUT, Stage.AFTER_ROLLBACK)
        return {
            "stage": stage,
            "app": self._store.get("app"),
            "kind": rollout.kind,
            "root": str(self._layout.root),
            "config": str(self._config_file),
            "rollout": rollout.id,
            "release": name,
            "previous": row["previous"],
            "serving": self._store.get("release"),
            "commit": release["commit_sha"] if release else None,
            "source": _short(release["source"]) if release else None,
            "who": _short(row["who"]),
            "message": _short(row["message"]),
            "outcome": "promoted" if after else outcome(rollout),
            "reason": failure.reason if failure else None,
            "problem": _short(failure.what) if failure else None,
            "slots": sorted(rollout.slots),
        }

    def _environment(self, place: Place, context: Mapping[str, Any]) -> dict[str, str]:
        """As a worker of the release has it, and the context. A git hook that brought the supervisor up must not
        have its GIT_DIR here; `deployer` is found even where it is not on the PATH."""
        base = {
            key: value
            for key, value in self._base_env.items()
            if not key.startswith("GIT_") or key.startswith(KEPT_PREFIXES)
        }
        own = {
            f"DEPLOYER_{key.upper()}": str(value or "").replace("\0", "")
            for key, value in context.items()
            if key != "slots"
        }
        env = order.environment(base, place.release, own, ())
        env["PATH"] = f"{env.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
        return env

    # The rows

    def _rows(self, rollout: Rollout, stage: Stage) -> list[Any]:
        return self._store.rows("SELECT * FROM hooks WHERE rollout = ? AND stage = ? ORDER BY id", rollout.id, stage)

    def _open(self, hook: Hook, rollout: Rollout, process: HookProcess) -> int:
        return self._store.insert(
            "hooks",
            rollout=rollout.id,
            stage=hook.stage,
            name=hook.name,
            pid=process.pid,
            ticks=process.ticks,
            started_at=time.time(),
        )

    def _close(self, row: int, failure: str | None) -> None:
        self._store.update("hooks", "id", row, finished_at=time.time(), failure=failure)


def _executable(stage: Stage, path: Path, name: str) -> Hook | None:
    if path.is_dir() or not os.path.lexists(path):
        return None
    fault = None
    if not path.exists():
        fault = "the link leads nowhere"
    elif not os.access(path, os.X_OK):
        fault = "it is not executable"
    return Hook(stage, name, (str(path),), fault)


def _short(text: str | None) -> str | None:
    return text if text is None else text[:TEXT_MAX]


def _json(context: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(context) + b"\n"
