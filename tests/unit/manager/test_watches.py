"""From saves to rollouts: which begins when, which gives way, and when a watch is over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployer.config.model import Config, Worker
from deployer.errors import BusyError, DeployerError
from deployer.manager import lookout
from deployer.manager import watches as module
from deployer.manager.occasion import Occasion
from deployer.manager.watches import Watches
from deployer.releases.request import Directory
from deployer.rollout.events import Failure
from deployer.rollout.machine import Kind, Phase, Rollout
from deployer.state.store import Store
from deployer.watch.protocol import Fault, Saved, Settings, Watching
from deployer.wire.schema import DeployRequest, RollbackRequest, WatchRequest

CONFIG = Config(name="shop", worker=Worker(app="app:app"))
WATCHING = Watching(mode="kernel", directories=3)


class Child:
    """What stands for the watching process: the test speaks for it."""

    def __init__(self, settings: Settings, hear: Callable[[Any], None], on_end: Callable[[str], None]) -> None:
        self.settings, self.hear, self.on_end = settings, hear, on_end
        self.closed = False

    def says(self, word: Watching | Saved | Fault) -> None:
        self.hear(word)

    def saved(self, *files: str) -> None:
        self.says(Saved(files=list(files), count=len(files), at=100.0))

    async def close(self) -> None:
        self.closed = True


@dataclass
class Begun:
    request: DeployRequest | RollbackRequest
    occasion: Occasion


@dataclass
class World:
    """The manager around `Watches`; rollouts move when the test says so."""

    store: Store
    directory: Path
    children: list[Child] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    aborted: list[bool] = field(default_factory=list)  # whether it was superseded
    rollout: Rollout | None = None
    is_engaged: bool = False
    refuses: DeployerError | None = None
    save_before: str | None = None
    ended: list[tuple[str, str, str]] = field(default_factory=list)
    own_ends: int = 0

    def __post_init__(self) -> None:
        around: Any = self
        self.watches = Watches(
            store=self.store,
            catalog=SimpleNamespace(save_before=lambda live: self.save_before, end=self._end),  # type: ignore[arg-type]
            driver=around,
            commands=around,
            requests=around,
            saves=SimpleNamespace(begin=int, tidy=lambda rollout: None, end=int),  # type: ignore[arg-type]
            root=str(self.directory / ".deployer"),
            on_own_end=self._on_own_end,
        )

    # What Watches asks of the driver, of Commands and of Requests

    def abort(self, by: str, *, superseded: bool = False) -> None:
        self.aborted.append(superseded)

    def begin_deploy(self, request: DeployRequest, *, occasion: Occasion, **more: Any) -> int:
        if self.refuses is not None:
            raise self.refuses
        return self._begin(Kind.DEPLOY, request, occasion)

    def begin_rollback(self, request: RollbackRequest, *, occasion: Occasion) -> int:
        return self._begin(Kind.ROLLBACK, request, occasion)

    def info(self, number: int) -> int:
        return number

    def reload(self) -> Any:
        return SimpleNamespace(config=CONFIG, directory=self.directory)

    def config(self) -> Config:
        return CONFIG

    def source(self, request: DeployRequest, loaded: Any) -> Directory:
        return Directory(path=request.path or ".")

    def _begin(self, kind: Kind, request: Any, occasion: Occasion) -> int:
        assert self.rollout is None, "one at a time"
        self.begun.append(Begun(request, occasion))
        number = self.store.insert(
            "rollouts", kind=kind, state="{}", request="{}", phase="staging", who="ana", started_at=1.0,
            watch=occasion.watch,
        )  # fmt: skip
        self.rollout = Rollout(id=number, kind=kind, phase=Phase.STAGING, slots={}, target=number, previous=None)
        return number

    def _end(self, name: str, state: str, reason: str) -> None:
        self.ended.append((name, state, reason))

    def _on_own_end(self) -> None:
        self.own_ends += 1

    # What the test does

    def watch(self, **options: Any) -> Child:
        self.watches.start(WatchRequest(who="ana", holder=os.getpid(), **options))
        child = self.child
        child.says(WATCHING)
        return child

    @property
    def child(self) -> Child:
        return self.children[-1]

    def moves(self, phase: Phase) -> None:
        assert self.rollout is not None
        self.rollout = _at(self.rollout, phase)

    def ends(self, phase: Phase = Phase.PROMOTED, *, release: str = "dev-1", failure: str | None = None) -> None:
        """As the driver has it: decided, gone, and then whose turn it is."""
        assert self.rollout is not None
        over = _at(self.rollout, phase, release, None if failure is None else Failure(reason=failure, what="it"))
        self.rollout = over if phase is Phase.HELD else None
        if phase is Phase.PROMOTED:
            self.store.put("release", release)
        self.watches.on_decided(over)
        self.watches.advance()

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event.data for event in self.store.events() if event.event == name]


def _at(rollout: Rollout, phase: Phase, release: str | None = None, failure: Failure | None = None) -> Rollout:
    known = {"id": rollout.id, "kind": rollout.kind, "slots": {}, "target": rollout.target, "previous": None}
    return Rollout(**known, phase=phase, release=release, failure=failure)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[World], Any]], None]]:
    """Runs a story in a loop, and looks that the watch leaves nothing open."""
    store = Store(tmp_path / "state.db")

    def run(story: Callable[[World], Any]) -> None:
        async def play() -> None:
            made = World(store, tmp_path)

            def child(*arguments: Any) -> Child:
                made.children.append(Child(*arguments))
                return made.child

            monkeypatch.setattr(lookout, "WatchChild", child)
            story(made)
            made.watches.stop("the test is over")
            await asyncio.sleep(0)

        asyncio.run(play())

    yield run
    store.close()


def test_it_begins_with_what_is_on_disk(world: Any) -> None:
    def story(w: World) -> None:
        w.watches.start(WatchRequest(who="ana", holder=os.getpid()))
        assert not w.begun, "what is saved before it watches would be missed"
        w.child.says(WATCHING)
        assert [(b.request.path, b.occasion.files, b.occasion.saved_at) for b in w.begun] == [  # type: ignore[union-attr]
            (str(w.directory), [], None)
        ]
        assert w.told("watch.started")[0]["mode"] == "kernel"

    world(story)


@pytest.mark.parametrize("phase", [Phase.STAGING, Phase.PREFLIGHT, Phase.CANARY, Phase.SOAKING])
def test_a_newer_save_supersedes_while_every_slot_has_its_old_worker(world: Any, phase: Phase) -> None:
    def story(w: World) -> None:
        child = w.watch()
        w.moves(phase)
        child.saved("a.py")
        child.saved("b.py")
        assert w.aborted == [True], "told once"
        w.ends(Phase.REVERTED, failure="superseded")
        assert [b.occasion.files for b in w.begun] == [[], ["b.py"]]

    world(story)


@pytest.mark.parametrize("phase", [Phase.ROLLING, Phase.PROMOTING, Phase.FINISHING, Phase.REVERTING])
def test_later_it_is_waited_for(world: Any, phase: Phase) -> None:
    def story(w: World) -> None:
        child = w.watch()
        w.moves(phase)
        child.saved("a.py")
        assert (w.aborted, len(w.begun)) == ([], 1)
        w.ends()
        assert w.begun[1].occasion == Occasion(watch=1, files=["a.py"], saved_at=100.0)

    world(story)


def test_a_rollout_of_somebody_else_is_never_superseded(world: Any) -> None:
    def story(w: World) -> None:
        child = w.watch()
        w.ends()
        number = w.store.insert(
            "rollouts", kind="deploy", state="{}", request="{}", phase="staging", who="bob", started_at=1.0
        )
        w.rollout = Rollout(id=number, kind=Kind.DEPLOY, phase=Phase.STAGING, slots={}, target=1, previous=None)
        child.saved("a.py")
        assert (w.aborted, len(w.begun)) == ([], 1)
        w.is_engaged = True  # others wait, too
        w.ends(release="v9")
        assert len(w.begun) == 1
        w.is_engaged = False
        w.watches.advance()
        assert len(w.begun) == 2

    world(story)


def test_a_configuration_that_is_wrong_is_told_and_the_next_save_tries_again(world: Any) -> None:
    def story(w: World) -> None:
        child = w.watch()
        w.ends()
        w.refuses = DeployerError("deployer.toml: line 3", cause="no such key")
        child.saved("deployer.toml")
        assert [fault["what"] for fault in w.told("watch.fault")] == ["deployer.toml: line 3"]
        w.watches.advance()
        assert len(w.told("watch.fault")) == 1, "told once"
        w.refuses = None
        child.saved("deployer.toml")
        assert len(w.begun) == 2

    world(story)


def test_a_child_that_dies_is_started_anew_and_nothing_is_missed(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "AGAIN_S", 3600)

    def story(w: World) -> None:
        child = w.watch()
        w.ends()
        child.on_end("killed by SIGKILL")
        assert w.told("watch.fault")[0]["cause"] == "killed by SIGKILL"
        assert w.watches._lookout is not None
        w.watches._lookout._start()  # as its timer does
        w.child.says(WATCHING)
        assert len(w.begun) == 2, "what was saved meanwhile nobody has seen"

    world(story)


def test_a_save_that_crashes_once_live_is_taken_back(world: Any) -> None:
    def story(w: World) -> None:
        w.watch()
        w.ends(release="dev-2")
        w.save_before = "dev-1"
        w.watches.on_death(_worker("dev-2", age=0.5))
        assert isinstance(w.begun[-1].request, RollbackRequest)
        assert (w.begun[-1].request.release, w.ended) == ("dev-1", [("dev-2", "bad", "crash")])

    world(story)


@pytest.mark.parametrize(("release", "age"), [("dev-2", 60.0), ("dev-1", 0.5), ("v1", 0.5)])
def test_other_deaths_are_the_supervisors(world: Any, release: str, age: float) -> None:
    """An old one, one of a save that is not live, one of a release."""

    def story(w: World) -> None:
        w.watch()
        w.ends(release="dev-2")
        w.save_before = "dev-1"
        w.watches.on_death(_worker(release, age=age))
        assert len(w.begun) == 1

    world(story)


def test_the_newest_save_comes_before_a_way_back(world: Any) -> None:
    """It may be the fix; if it is not, the way back is still open."""

    def story(w: World) -> None:
        child = w.watch()
        w.ends(release="dev-2")
        w.save_before = "dev-1"
        w.is_engaged = True
        w.watches.on_death(_worker("dev-2", age=0.5))
        child.saved("a.py")
        w.is_engaged = False
        w.watches.advance()
        assert isinstance(w.begun[-1].request, DeployRequest)
        w.ends(Phase.REVERTED, release="dev-3", failure="worker_exit")
        assert isinstance(w.begun[-1].request, RollbackRequest)

    world(story)


def test_there_is_one_watch_and_keys_need_it(world: Any) -> None:
    def story(w: World) -> None:
        with pytest.raises(DeployerError, match="no watch runs"):
            w.watches.back("ana")
        w.watch()
        with pytest.raises(BusyError, match="watched already, by ana"):
            w.watches.start(WatchRequest(who="bob", holder=os.getppid()))
        again = w.watches.start(WatchRequest(who="ana", holder=os.getpid()))
        assert again.id == 1, "a command that asks again has its watch already"
        with pytest.raises(BusyError, match="on its way"):
            w.watches.again("ana")
        w.ends(release="dev-1")
        with pytest.raises(DeployerError, match="no save before"):
            w.watches.back("ana")
        w.watches.again("ana")
        assert w.begun[-1].request.force  # type: ignore[union-attr]

    world(story)


def test_the_end_closes_and_forgets(world: Any) -> None:
    def story(w: World) -> None:
        child = w.watch(own=True)
        w.watches.stop("ana ended it")
        assert (w.aborted, w.own_ends) == ([False], 1), "what was on its way goes back"
        assert (w.watches.info(), w.store.get("watch")) == (None, None)
        assert w.told("watch.ended")[0]["why"] == "ana ended it"
        child.saved("a.py")
        assert len(w.begun) == 1

    world(story)


def test_the_next_manager_goes_on_with_it(world: Any) -> None:
    def story(w: World) -> None:
        w.watch()
        w.ends()
        after = World(w.store, w.directory)
        after.watches.resume()
        w.child.says(WATCHING)  # the child of the second
        assert (len(after.begun), after.watches.is_dev()) == (1, True)
        after.watches.stop("the test is over")

    world(story)


def test_a_command_that_has_ended_has_no_watch(world: Any) -> None:
    def story(w: World) -> None:
        w.watch(own=True)
        kept = w.store.get("watch")
        after = World(w.store, w.directory)
        w.store.put("watch", {**kept, "holder_ticks": 1})
        after.watches.resume()
        assert (after.watches.info(), after.own_ends) == (None, 1)

    world(story)


# A deploy that waits for its fix


def arm(w: World) -> Child:
    number = w._begin(Kind.DEPLOY, DeployRequest(who="ana"), Occasion(watch=0))
    w.watches.arm(number, DeployRequest(who="ana", message="spring sale"), Directory(path="."))
    w.child.says(WATCHING)
    return w.child


def test_a_deploy_that_succeeds_has_nothing_to_heal(world: Any) -> None:
    def story(w: World) -> None:
        arm(w)
        assert w.watches.info() is None, "nobody need know of it"
        w.ends(release="v2")
        assert (w.told("watch.started"), w.told("watch.ended"), w.store.get("watch")) == ([], [], None)

    world(story)


@pytest.mark.parametrize("how", [Phase.HELD, Phase.REVERTED, Phase.FAILED])
def test_a_deploy_that_fails_waits_for_its_fix(world: Any, how: Phase) -> None:
    def story(w: World) -> None:
        child = arm(w)
        failed = w.rollout
        assert failed is not None
        w.ends(how, release="v2", failure="worker_exit")
        info = w.watches.info()
        assert info is not None
        assert (info.kind, info.rollout) == ("heal", failed.id)
        child.saved("fix.py")
        if how is Phase.HELD:
            assert w.aborted == [True], "it gives way"
            w.ends(Phase.REVERTED, release="v2", failure="worker_exit")
        begun = w.begun[-1]
        assert (begun.occasion.fixes, begun.occasion.files) == (failed.id, ["fix.py"])
        assert (begun.request.message, begun.request.watch) == ("spring sale", True)  # type: ignore[union-attr]
        w.ends(release="v3")
        assert w.told("watch.ended")[0]["why"] == "v3 is live"

    world(story)


def test_a_fix_that_was_saved_before_the_failure_counts(world: Any) -> None:
    def story(w: World) -> None:
        child = arm(w)
        w.moves(Phase.SOAKING)
        child.saved("fix.py")
        assert w.aborted == [], "it may be good as it is"
        w.ends(Phase.REVERTED, release="v2", failure="worker_exit")
        assert w.told("watch.saved")[0]["files"] == ["fix.py"]
        assert w.begun[-1].occasion.files == ["fix.py"]

    world(story)


def test_who_decides_by_hand_ends_it(world: Any) -> None:
    def story(w: World) -> None:
        child = arm(w)
        w.ends(Phase.HELD, release="v2", failure="worker_exit")
        w.watches.disarm()
        assert (w.watches.info(), child.closed or w.told("watch.ended")[0]["watch"]) == (None, 1)

    world(story)


def test_a_watch_of_every_save_is_not_disturbed_by_a_deploy(world: Any) -> None:
    def story(w: World) -> None:
        w.watch()
        w.ends()
        w.watches.arm(7, DeployRequest(who="ana"), Directory(path="."))
        w.watches.disarm()
        assert w.watches.is_dev()
        assert len(w.children) == 1

    world(story)


def _worker(release: str, *, age: float) -> Any:
    return SimpleNamespace(release=SimpleNamespace(name=release), ready_at=module.uptime() - age)
