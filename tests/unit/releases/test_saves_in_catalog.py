"""Saves beside releases: names of their own, no place among those to go back to, and only the last are remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployer.config.model import Config, Worker
from deployer.manager.saves import KEPT, Saves
from deployer.paths import Layout
from deployer.releases.catalog import Catalog, NoSuchReleaseError
from deployer.releases.request import StageResult
from deployer.rollout.machine import Kind, Phase, Rollout
from deployer.state.store import Store


class World:
    def __init__(self, base: Path) -> None:
        self.layout = Layout(base)
        self.layout.releases.mkdir()
        self.store = Store(self.layout.database)
        self.catalog = Catalog(self.store, self.layout)

    def release(self, *, dev: bool, live: bool = True) -> str:
        """One that is staged, and put live."""
        name = self.catalog.open(source="x", origin="path x", who="ana", message=None, dev=dev)
        self.layout.release(name).mkdir()
        self.catalog.staged(
            StageResult(
                outcome="staged",
                name=name,
                source="path x",
                tree_digest=f"tree of {name}",
                settings_digest="s",
                commit=None,
                subject=None,
                author=None,
                ref=None,
                files=1,
                bytes=10,
                config=Config(name="shop", worker=Worker(app="app:app")),
                env={},
                seconds=0.1,
            )
        )
        if live:
            self.catalog.promoted(name, self.store.get("release"), back=False)
            self.store.put("release", name)
        return name

    def names(self) -> list[str]:
        return sorted(path.name for path in self.layout.releases.iterdir())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_each_kind_has_its_own_numbers(world: World) -> None:
    assert [world.release(dev=dev) for dev in (True, False, True, True, False)] == [
        "dev-1",
        "v1",
        "dev-2",
        "dev-3",
        "v2",
    ]


def test_no_name_is_used_again(world: World) -> None:
    """Neither when its row is gone, nor when state.db was lost and its files are still there."""
    world.catalog.forget(world.release(dev=True, live=False))
    assert world.release(dev=True) == "dev-2"
    world.layout.release("dev-70").mkdir()
    assert world.release(dev=True) == "dev-71"


def test_a_rollback_goes_to_a_release(world: World) -> None:
    for dev in (False, False, True, True):
        world.release(dev=dev)
    assert world.store.get("release") == "dev-2"
    assert world.catalog.last_good("dev-2") == "v2", "what was live before the saves"
    assert [info.name for info in world.catalog.infos()] == ["dev-2", "v2", "v1"], "of saves only what is live"
    assert [kept.name for kept in world.catalog.kept()] == ["v1", "v2"], "retention counts no saves"
    assert world.catalog.target("dev-1") == "dev-1", "by its name it can be had"


def test_the_way_back_from_a_save(world: World) -> None:
    assert world.catalog.save_before(None) is None
    for _ in range(4):
        world.release(dev=True)
    world.release(dev=True, live=False)  # dev-5 never went live
    assert world.catalog.save_before("dev-4") == "dev-3"
    world.catalog.end("dev-3", "bad", "crash")
    assert world.catalog.save_before("dev-4") == "dev-2"
    world.catalog.condemn(["dev-2"])
    assert world.catalog.save_before("dev-4") == "dev-1"
    assert world.catalog.save_before("dev-1") is None
    assert world.catalog.save_before("v1") == "dev-4", "from a release: to the last save"


def test_what_crashed_stays_bad(world: World) -> None:
    """The rollback from it must not make a good one of it."""
    for _ in range(2):
        world.release(dev=True)
    world.catalog.end("dev-2", "bad", "crash")
    world.catalog.promoted("dev-1", "dev-2", back=True)
    world.release(dev=True)
    assert world.catalog.save_before("dev-3") == "dev-1"


def test_only_the_last_rows_stay(world: World) -> None:
    for _ in range(6):
        world.release(dev=True)
    world.catalog.condemn([f"dev-{number}" for number in range(1, 6)])
    world.catalog.forget_saves(2)
    with pytest.raises(NoSuchReleaseError):
        world.catalog.release("dev-4")
    assert world.catalog.release("dev-5").name == "dev-5"


def test_files_of_saves_go_as_one_goes_on(world: World) -> None:
    """Those that serve or are in use stay, whatever their place; at the end nothing else does."""
    used: set[str] = set()
    nothing: Any = SimpleNamespace(want=lambda release: None)
    ended: list[bool] = []
    saves = Saves(
        store=world.store,
        catalog=world.catalog,
        layout=world.layout,
        used=lambda: used,
        warm=nothing,
        on_end=lambda: ended.append(True),
    )

    async def go_on() -> None:
        saves.begin()
        for number in range(1, 12):
            used.clear()
            used.update(("dev-2", world.release(dev=True)))
            saves.tidy(
                Rollout(id=number, kind=Kind.DEPLOY, phase=Phase.PROMOTED, slots={}, target=number, previous=None)
            )
            await _over(saves)
        assert len(world.names()) == KEPT + len(used)
        assert {"dev-2", "dev-11", "dev-10"} <= set(world.names())
        saves.end()
        await _over(saves)

    asyncio.run(go_on())
    assert (world.names(), ended) == (["dev-11", "dev-2"], [True])


async def _over(saves: Saves) -> None:
    while saves._removing:
        await asyncio.sleep(0.01)


def test_of_rollouts_of_saves_only_the_last_stay(world: World) -> None:
    """Those stay, too, that a worker is of; and all that were for releases."""

    def rollout(name: str) -> int:
        request = f'{{"name": "{name}"}}'
        number = world.store.insert(
            "rollouts", kind="deploy", state="{}", request=request, phase="promoted", who="ana", started_at=1.0
        )
        world.store.insert("journal", rollout=number, at=1.0, fact="{}", phase="promoted")
        return number

    numbers = [rollout(name) for name in ("dev-1", "v1", "dev-2", "dev-3", "dev-4", "dev-5")]
    world.store.put("promoted", numbers[2])
    world.store.add_worker(
        slot=1, generation=numbers[0], release="dev-1", pid=7, ticks=7, state="draining", spawned_at=1.0
    )
    world.store.forget_rollouts(2)
    left = {row["id"] for row in world.store.rows("SELECT id FROM rollouts")}
    assert left == set(numbers) - {numbers[3]}
    assert {row["rollout"] for row in world.store.rows("SELECT rollout FROM journal")} == left
