"""The manager's end of the watching child: each staging has its own answer, whatever is cancelled or killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from deployer.config.model import Config, Worker
from deployer.manager.lookout import Lookout
from deployer.manager.occasion import Watch, WatchKind
from deployer.manager.watchchild import ChildGoneError, WatchChild
from deployer.osutil.process import descendants
from deployer.releases.request import Development, Directory, StageRequest, StageResult
from deployer.state.store import Store
from deployer.watch.protocol import Saved, Settings, Watching
from deployer.wire.schema import Problem
from tests.cluster import wait_until
from tests.e2e.shop import alive

LIMIT_S = 60.0
SLOW = "sleep 30"


class World:
    """A source, a ROOT, and a child of this process that watches."""

    def __init__(self, base: Path) -> None:
        self.source, self.root = base / "app", base / "app" / ".deployer"
        (self.root / "releases").mkdir(parents=True)
        (self.root / "logs").mkdir()
        (self.source / "app.py").write_text("A = 1\n")
        self.heard: list[Any] = []
        self.ended: list[str] = []
        self.child = WatchChild(
            Settings(path=str(self.source), root=str(self.root)), self.heard.append, self.ended.append
        )

    def request(self, number: int, *build: str) -> StageRequest:
        config = Config(name="shop", worker=Worker(app="app:app"))
        return StageRequest(
            root=str(self.root),
            name=f"dev-{number}",
            source=Directory(path="."),
            directory=str(self.source),
            host_config=_with_build(config, build),
            development=Development(),
        )

    async def stage(self, number: int, *build: str) -> StageResult | Problem:
        return await self.child.stage(self.request(number, *build), lambda text: None)

    def releases(self) -> set[str]:
        return {path.name for path in (self.root / "releases").iterdir() if path.is_dir()}

    def pids(self) -> list[int]:
        assert self.child._process is not None
        return descendants(self.child._process.pid)


def _with_build(config: Config, build: tuple[str, ...]) -> Config:
    import msgspec

    return msgspec.structs.replace(config, build=msgspec.structs.replace(config.build, run=list(build)))


Story = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        async def whole() -> None:
            world = World(tmp_path)
            pids: list[int] = []
            try:
                await _soon(lambda: any(isinstance(word, Watching) for word in world.heard))
                pids = world.pids()
                await story(world)
                pids += world.pids()
            finally:
                await world.child.close()
            wait_until(lambda: not any(map(alive, pids)), "child and stagings gone")

        asyncio.run(asyncio.wait_for(whole(), LIMIT_S))

    return run


async def _soon(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def _cancelled(task: Awaitable[Any]) -> None:
    with pytest.raises(asyncio.CancelledError):
        await task


def test_saves_and_stagings(play: Callable[[Story], None]) -> None:
    async def story(w: World) -> None:
        first = await w.stage(1)
        assert isinstance(first, StageResult), first
        (w.source / "app.py").write_text("A = 2\n")
        await _soon(lambda: any(isinstance(word, Saved) for word in w.heard))
        second = await w.stage(2)
        assert isinstance(second, StageResult), second
        assert (w.root / "releases" / "dev-2" / "app.py").read_text() == "A = 2\n"

    play(story)


def test_one_that_is_cancelled_again_and_again_keeps_its_answer_for_itself(play: Callable[[Story], None]) -> None:
    """Or each later staging would get the answer of the one before it."""

    async def story(w: World) -> None:
        task = asyncio.create_task(w.stage(1, SLOW))
        await _soon(lambda: "dev-1" in w.releases())  # its build runs in the tree itself
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        after = asyncio.create_task(w.stage(2))
        await _cancelled(task)
        found = await after
        assert isinstance(found, StageResult), found
        assert (found.name, w.releases()) == ("dev-2", {"dev-2"})

    play(story)


def test_a_child_that_is_killed_amid_a_staging(play: Callable[[Story], None]) -> None:
    async def story(w: World) -> None:
        task = asyncio.create_task(w.stage(1, SLOW))
        await _soon(lambda: "dev-1" in w.releases())
        for pid in w.pids():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ChildGoneError):
            await task
        await _soon(lambda: bool(w.ended))

    play(story)


def test_a_staging_outlives_its_child(play: Callable[[Story], None], tmp_path: Path) -> None:
    """Another child takes it up, which waits for who is still writing."""

    async def story(w: World) -> None:
        store = Store(tmp_path / "state.db")
        watch = Watch(id=1, kind=WatchKind.DEV, path=str(w.source), who="ana", since=0.0)
        lookout = Lookout(store, watch, lambda: w.child.settings, lambda: None, unseen=False)
        task = asyncio.create_task(lookout.stage(w.request(1, "test -e ../../../go || sleep 30"), lambda text: None))
        await _soon(lambda: "dev-1" in w.releases())
        (w.source / "go").touch()
        assert lookout._child is not None
        assert lookout._child._process is not None
        os.kill(lookout._child._process.pid, signal.SIGKILL)
        found = await task
        assert isinstance(found, StageResult), found
        assert [event.event for event in store.events()] == ["watch.started", "watch.fault", "watch.started"]
        last = lookout._child._task
        lookout.close()
        await asyncio.wait([last])
        store.close()

    play(story)


def test_closing_ends_a_staging(play: Callable[[Story], None]) -> None:
    async def story(w: World) -> None:
        task = asyncio.create_task(w.stage(1, SLOW))
        await _soon(lambda: "dev-1" in w.releases())
        await w.child.close()
        with pytest.raises(ChildGoneError):
            await task
        assert w.ended == []

    play(story)
