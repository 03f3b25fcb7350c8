"""Which hooks a stage has, in which order, what they are told, and what is remembered of them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from deployer.config.model import Config
from deployer.config.model import Hooks as HooksConfig
from deployer.config.model import Worker as WorkerConfig
from deployer.manager.hooks import DECIDING, Hooks, Place, Stage
from deployer.paths import Layout
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.rollout.machine import Kind, Phase, Policy, Rollout
from deployer.state.store import Store


class World:
    """A state.db, a release v2, and hooks."""

    def __init__(self, base: Path) -> None:
        self.layout = Layout(base / ".deployer")
        for path in (self.layout.logs, self.layout.hooks, self.layout.release("v2") / "hooks"):
            path.mkdir(parents=True)
        self.store = Store(self.layout.database)
        self.store.put("app", "shop")
        self.store.put("release", "v1")
        self.store.insert(
            "releases", number=2, state="staged", source="git /x", commit_sha="c0ffee", who="ann", staged_at=1.0
        )
        row = self.store.insert(
            "rollouts",
            kind="deploy",
            state="{}",
            request="{}",
            phase="staging",
            previous="v1",
            who="ann",
            message="why not",
            started_at=1.0,
        )
        self.rollout = Rollout(
            id=row, kind=Kind.DEPLOY, phase=Phase.STAGING, slots={}, target=1, previous=None, release="v2"
        )
        self.base_env = {"PATH": os.environ["PATH"], "GIT_DIR": "/elsewhere", "DEPLOYER_STAGE": "of another"}
        self.hooks = self.new()
        self.place = self.of()

    def new(self) -> Hooks:
        """As the next manager has it."""
        toml = self.layout.root.parent / "deployer.toml"
        return Hooks(store=self.store, layout=self.layout, base_env=self.base_env, config_file=toml)

    def of(self, **hooks: Any) -> Place:
        config = Config(name="shop", worker=WorkerConfig(command="x"), hooks=HooksConfig(**hooks))
        return Place.of(Release("v2", self.layout.release("v2"), config, {"COLOUR": "red"}))

    def write(self, path: Path, script: str, mode: int = 0o755) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)

    def host(self, stage: Stage, script: str, mode: int = 0o755) -> None:
        self.write(self.layout.hooks / stage, script, mode)

    def own(self, stage: Stage, script: str) -> None:
        self.write(self.layout.release("v2") / "hooks" / stage, script)

    def run(self, stage: Stage, place: Place | None = None) -> list[Failure]:
        return asyncio.run(self.hooks.run(stage, self.rollout, place or self.place))

    def printed(self) -> list[str]:
        events = self.store.events(limit=1000)
        return [line for event in events if event.event == "hook.output" for line in event.data["lines"]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_all_there_are_run_the_host_first_and_the_release_last(world: World) -> None:
    world.host(Stage.AFTER_BUILD, "echo host")
    world.own(Stage.AFTER_BUILD, "echo release")
    place = world.of(after_build="echo command")
    assert world.run(Stage.AFTER_BUILD, place) == []
    assert world.printed() == ["host", "command", "release"]
    names = [hook.name for hook in world.hooks.find(Stage.AFTER_BUILD, place)]
    assert names == [".deployer/hooks/after_build", "[hooks] after_build", "hooks/after_build of v2"]


def test_before_there_is_a_release_its_hooks_are_not_looked_for(world: World) -> None:
    world.own(Stage.BEFORE_STAGE, "echo release")
    place = Place(world.place.config, world.layout.root.parent)
    assert world.hooks.find(Stage.BEFORE_STAGE, place) == []


def test_directories_are_no_hooks_and_other_names_are_none(world: World) -> None:
    (world.layout.hooks / Stage.AFTER_BUILD).mkdir()
    world.write(world.layout.hooks / "post-receive", "exit 1")
    assert world.run(Stage.AFTER_BUILD) == []
    assert world.store.events() == []


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_that_decides_ends_with_the_first_failure_and_others_go_on(world: World, stage: Stage) -> None:
    world.host(stage, "echo one; exit 3")
    world.own(stage, "echo two; exit 4")
    failures = world.run(stage)
    assert [failure.reason for failure in failures] == ["hook"] * (1 if stage in DECIDING else 2)
    assert failures[0].what == f"the {stage} hook (.deployer/hooks/{stage}) failed: exit code 3"
    assert failures[0].tail == ("one",)
    assert failures[0].hint == f"cat {world.layout.rollout_log(1)}"


@pytest.mark.parametrize(("mode", "fault"), [(0o644, "it is not executable"), (None, "the link leads nowhere")])
def test_one_that_cannot_be_run_is_a_failure_that_says_so(world: World, mode: int | None, fault: str) -> None:
    if mode is None:
        (world.layout.hooks / Stage.BEFORE_ROLLOUT).symlink_to("nowhere")
    else:
        world.host(Stage.BEFORE_ROLLOUT, "exit 0", mode)
    (failure,) = world.run(Stage.BEFORE_ROLLOUT)
    assert failure.what == f"the before_rollout hook (.deployer/hooks/before_rollout) cannot be run: {fault}"
    assert failure.hint is not None


def test_a_hook_is_told_the_same_on_stdin_and_in_its_environment(world: World) -> None:
    world.host(Stage.AFTER_BUILD, "env | grep -E '^(DEPLOYER_|GIT_|COLOUR)'; echo ---; cat")
    assert world.run(Stage.AFTER_BUILD) == []
    lines = world.printed()
    at = lines.index("---")
    env = dict(line.split("=", 1) for line in lines[:at])
    told = json.loads(lines[at + 1])
    assert told == {
        "stage": "after_build",
        "app": "shop",
        "kind": "deploy",
        "root": str(world.layout.root),
        "config": str(world.layout.root.parent / "deployer.toml"),
        "rollout": 1,
        "release": "v2",
        "previous": "v1",
        "serving": "v1",
        "commit": "c0ffee",
        "source": "git /x",
        "who": "ann",
        "message": "why not",
        "outcome": None,
        "reason": None,
        "problem": None,
        "slots": [],
    }
    assert env.pop("COLOUR") == "red"
    assert env == {f"DEPLOYER_{key.upper()}": str(value or "") for key, value in told.items() if key != "slots"}


def test_texts_of_any_length_fit(world: World) -> None:
    world.store.update("rollouts", "id", 1, message="ü" * 500_000, who="\0x")
    world.host(Stage.AFTER_BUILD, "wc -c")
    assert world.run(Stage.AFTER_BUILD) == []
    assert 4096 < int(world.printed()[0]) < 20_000


def test_output_is_told_in_batches_and_kept_in_the_log_of_the_rollout(world: World) -> None:
    world.host(Stage.AFTER_BUILD, "seq 1 20000; echo end >&2")
    assert world.run(Stage.AFTER_BUILD) == []
    events = [event for event in world.store.events(limit=1000) if event.event == "hook.output"]
    assert len(events) < 60
    assert len(world.printed()) == 5001
    assert "log" in world.printed()[-1]
    log = world.layout.rollout_log(1)
    assert log.read_text().splitlines() == [
        "--- after_build: .deployer/hooks/after_build",
        *map(str, range(1, 20001)),
        "end",
    ]
    assert log.stat().st_mode & 0o777 == 0o600


def test_its_events_say_when_it_began_and_how_it_ended(world: World) -> None:
    world.host(Stage.AFTER_BUILD, "kill -KILL $$")
    world.run(Stage.AFTER_BUILD)
    started, finished = world.store.events()
    assert (started.event, started.data["stage"]) == ("hook.started", "after_build")
    assert finished.event == "hook.finished"
    assert finished.data["exit"] == -9
    assert finished.data["failure"].endswith("failed: killed by SIGKILL")


def test_too_slow_is_a_failure_that_names_the_limit(world: World) -> None:
    world.host(Stage.AFTER_BUILD, "sleep 60")
    (failure,) = world.run(Stage.AFTER_BUILD, world.of(timeout="200ms"))
    assert failure.what.endswith("failed: not done within [hooks] timeout = 0.2s")


# A manager that takes over


def interrupt(world: World, stage: Stage) -> None:
    """The hook was started, and its manager died."""
    world.store.insert(
        "hooks", rollout=1, stage=stage, name=f".deployer/hooks/{stage}", pid=2**22, ticks=1, started_at=1.0
    )
    world.hooks = world.new()
    world.hooks.end_inherited()


def test_what_went_well_is_not_run_again(world: World) -> None:
    for stage in (Stage.BEFORE_ROLLOUT, Stage.AFTER_ROLLOUT):
        world.host(stage, f"echo {stage}")
        for _ in range(2):
            assert world.run(stage) == []
            world.hooks = world.new()
        assert world.printed().count(stage) == 1


@pytest.mark.parametrize("stage", Stage)
def test_one_that_was_cut_short_runs_again_only_where_it_decides(world: World, stage: Stage) -> None:
    world.host(stage, "echo ran")
    interrupt(world, stage)
    failures = world.run(stage)
    assert world.printed() == (["ran"] if stage in DECIDING else [])
    assert [failure.what for failure in failures] == (
        []
        if stage in DECIDING
        else [f"the {stage} hook (.deployer/hooks/{stage}) was cut short: the manager died while it ran"]
    )


def test_what_worked_on_a_tree_that_is_made_anew_is_forgotten(world: World) -> None:
    world.host(Stage.AFTER_BUILD, "echo ran")
    world.run(Stage.AFTER_BUILD)
    world.hooks.forget(world.rollout, Stage.AFTER_BUILD)
    world.run(Stage.AFTER_BUILD)
    assert world.printed() == ["ran", "ran"]


def test_last_words_are_due_once(world: World) -> None:
    assert not world.hooks.due(Stage.ON_FAILURE, world.rollout, world.place)
    world.host(Stage.ON_FAILURE, "exit 1")
    assert world.hooks.due(Stage.ON_FAILURE, world.rollout, world.place)
    world.run(Stage.ON_FAILURE)
    assert not world.hooks.due(Stage.ON_FAILURE, world.rollout, world.place)


def test_hooks_of_a_release_that_is_there_shape_its_rollout(world: World) -> None:
    release = world.place.release
    assert release is not None
    assert world.hooks.shape(Policy(soak=False), release) == Policy(soak=False)
    world.own(Stage.BEFORE_ROLLOUT, "exit 0")
    world.own(Stage.AFTER_CANARY, "exit 0")
    assert world.hooks.shape(Policy(soak=False), release) == Policy(soak=True, prepare=True)
