"""The live release once more with a new environment (--env-only): its source's tree, built anew where it will lie."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stagekit
from stagekit import CONFIG, Done, Repository, Stager

from deployer.config.model import Build, Config, Release
from deployer.releases import envs
from deployer.releases.digest import tree_digest
from deployer.releases.index import place
from deployer.releases.request import Again, Directory, Git, Source

BUILD = [
    "pwd > built",  # into the release's own directory, ...
    "mkdir -p out/deep && pwd > out/deep/file && ln -s $PWD/app.py out/link && ln -s $PWD/app.py absolute",
]


class Shop:
    """A source directory, and the ROOT that it is staged into."""

    def __init__(self, stager: Stager) -> None:
        self.stager = stager
        self.source = stager.directory / "shop"
        (self.source / "lib" / "empty").mkdir(parents=True)
        (self.source / "app.py").write_text("1")
        (self.source / "lib" / "run").write_text("#!/bin/sh\n")
        (self.source / "lib" / "run").chmod(0o755)
        (self.source / "lib" / "private").write_text("x")
        (self.source / "lib" / "private").chmod(0o600)
        (self.source / "lib" / "latest").symlink_to("run")
        (self.source / "lib").chmod(0o750)

    def first(self, config: Config, source: Source | None = None) -> dict[str, Any]:
        return result(self.stager.run(source or Directory(path="shop"), "v1", host_config=config))

    def again(self, live: dict[str, Any], config: Config, env: dict[str, str], name: str = "v2") -> Done:
        """As the manager asks for it: what is known of the live release, and deployer.toml as it is now."""
        known = {key: live[key] for key in ("source", "tree_digest", "commit", "subject", "author", "ref")}
        counted = {key: live[key] for key in ("files", "bytes")}
        now = msgspec.structs.replace(config, worker=msgspec.structs.replace(config.worker, env=env))
        return self.stager.run(
            Again(release=live["name"], config=config, **known, **counted),
            name,
            host_config=now,
            live_digest=live["tree_digest"],
            live_settings=live["settings_digest"],
        )

    def release(self, name: str = "v2") -> Path:
        return self.stager.release(name)


@pytest.fixture
def shop(stager: Stager) -> Shop:
    return Shop(stager)


def config(*run: str, python: str = "none", shared: list[str] | None = None) -> Config:
    build = msgspec.convert({"run": list(run), "python": python}, Build)
    return msgspec.structs.replace(CONFIG, build=build, release=Release(shared=shared or []))


def result(done: Done) -> dict[str, Any]:
    assert done.result is not None, done.told
    return done.result


def names(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*")} - {".deployer.json"}


def test_the_sources_tree_is_taken_and_the_build_runs_again_in_its_new_place(shop: Shop) -> None:
    """Nothing that the old build made is there: it would name the old release, and be in the way of the new build."""
    live = shop.first(config(*BUILD))
    done = result(shop.again(live, config(*BUILD), {"NEW": "1"}))
    assert (done["outcome"], done["env"], done["warnings"]) == ("staged", {"NEW": "1"}, [])
    assert done["tree_digest"] == live["tree_digest"]
    assert names(shop.release()) == names(shop.release("v1"))
    for name in ("built", "out/deep/file"):
        assert (shop.release() / name).read_text() == f"{shop.release()}\n"
    assert os.readlink(shop.release() / "absolute") == f"{shop.release()}/app.py"
    third = result(shop.again({**done, "name": "v2"}, config(*BUILD), {"NEW": "2"}, "v3"))
    assert third["tree_digest"] == live["tree_digest"]
    assert (shop.release("v3") / "built").read_text() == f"{shop.release('v3')}\n"


def test_the_copy_is_what_the_source_was_in_files_of_its_own(shop: Shop) -> None:
    """Modes, links and empty directories; a write into one release does not show in the other."""
    live = shop.first(config())
    (shop.release("v1") / "cache").write_text("written by the app")
    done = result(shop.again(live, config(), {"NEW": "1"}))
    assert done["tree_digest"] == live["tree_digest"] == tree_digest(shop.release())
    assert (done["files"], done["bytes"]) == (live["files"], live["bytes"])
    for path in (shop.source, *shop.source.rglob("*")):
        copy = (shop.release() / path.relative_to(shop.source)).lstat()
        original = (shop.release("v1") / path.relative_to(shop.source)).lstat()
        assert copy.st_mode == original.st_mode
        assert copy.st_ino != original.st_ino
        if path != shop.source:  # the manifest was written into it since
            assert copy.st_mtime_ns == original.st_mtime_ns


def test_its_index_lets_the_next_release_share_with_it(shop: Shop) -> None:
    """As any other release's."""
    live = shop.first(config())
    shop.again(live, config(), {"NEW": "1"})
    shutil.rmtree(shop.release("v1"))
    done = result(shop.stager.run(Directory(path="shop"), "v3", host_config=config()))
    assert done["tree_digest"] == live["tree_digest"]
    assert (shop.release("v3") / "lib" / "private").samefile(shop.release("v2") / "lib" / "private")


def test_a_git_release_keeps_its_commit(shop: Shop, repository: Repository) -> None:
    """Taken from the release and not from the repository, which has moved on."""
    live = shop.first(config(*BUILD), Git(url=str(repository.path)))
    repository.commit("Second", app__py="2")
    done = result(shop.again(live, config(*BUILD), {"NEW": "1"}))
    assert (shop.release() / "app.py").read_text() == "1"
    same = ("commit", "subject", "author", "ref", "source", "tree_digest")
    assert [done[key] for key in same] == [live[key] for key in same]


def test_the_same_environment_is_no_new_release(shop: Shop) -> None:
    """Whatever the app wrote into its directory meanwhile."""
    live = shop.first(config(*BUILD))
    (shop.release("v1") / "app.py").write_text("the app changes itself")
    assert result(shop.again(live, config(*BUILD), {}))["outcome"] == "same"
    assert not shop.release().exists()


def test_what_is_not_as_it_was_staged_is_taken_as_it_is_and_told(shop: Shop) -> None:
    """There is nothing else to take; the digest is that of what is there, so that the next deploy puts it right."""
    live = shop.first(config())
    (shop.release("v1") / "app.py").write_text("the app changes itself")
    (shop.release("v1") / "lib" / "run").unlink()
    done = result(shop.again(live, config(), {"NEW": "1"}))
    (warning,) = done["warnings"]
    assert "v1 is not what was staged any more" in warning
    assert "app.py was changed" in warning
    assert "lib/run is gone" in warning
    assert (shop.release() / "app.py").read_text() == "the app changes itself"
    assert done["tree_digest"] == tree_digest(shop.release()) != live["tree_digest"]


def test_a_file_that_the_app_writes_into_is_shared_with_no_later_release(shop: Shop) -> None:
    """Not even when the source comes to hold the same: the app would write through it into the other release."""
    live = shop.first(config())
    written = shop.release("v1") / "app.py"
    written.write_text("the app changes itself")
    shop.again(live, config(), {"NEW": "1"})
    shutil.copy2(written, shop.source)
    assert shop.stager.run(Directory(path="shop"), "v3", host_config=config()).exit == 0
    assert (shop.release("v3") / "lib" / "private").samefile(shop.release("v2") / "lib" / "private")
    assert not (shop.release("v3") / "app.py").samefile(shop.release("v2") / "app.py")


def test_shared_paths_are_linked_anew_and_not_taken_for_the_sources(shop: Shop) -> None:
    """The tree is the same although what it shipped below them lies in ROOT/shared now."""
    (shop.source / "uploads").mkdir()
    (shop.source / "uploads" / "seed").write_text("seed")
    live = shop.first(config(shared=["uploads", "data.db"]))
    done = result(shop.again(live, config(shared=["uploads", "data.db"]), {"NEW": "1"}))
    assert (done["warnings"], done["tree_digest"]) == ([], live["tree_digest"])
    assert (shop.release() / "uploads" / "seed").samefile(shop.release("v1") / "uploads" / "seed")
    assert os.readlink(shop.release() / "data.db") == "../../shared/data.db"


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_without_an_index_the_whole_tree_is_taken(shop: Shop, damage: str) -> None:
    """A help, never needed: what was built is then taken along, and built again over it."""
    run = "pwd > built"
    live = shop.first(config(run))
    index = place(shop.release("v1"))
    if damage == "missing":
        index.unlink()
    else:
        with closing(sqlite3.connect(index)) as db:
            db.execute("DELETE FROM files")
            db.commit()
    done = result(shop.again(live, config(run), {"NEW": "1"}))
    assert names(shop.release()) == names(shop.release("v1"))
    assert (shop.release() / "built").read_text() == f"{shop.release()}\n"
    assert done["tree_digest"] == live["tree_digest"]


def test_an_environment_that_was_removed_is_built_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the lock file in the tree, as by any staging; and one that is there is not touched."""
    monkeypatch.setattr(stagekit, "BOUND_S", 120.0)
    (shop.source / "requirements.txt").write_text("six==1.16.0\n")
    live = shop.first(config(python="uv"))
    where = shop.stager.layout.envs
    done = shop.again(live, config(python="uv"), {"NEW": "1"})
    assert result(done)["environment"] == live["environment"]
    assert any("is there" in line for line in done.progress)
    envs.remove(where / live["environment"])
    gone = result(shop.again(live, config(python="uv"), {}, "v3"))
    assert (gone["outcome"], gone["environment"]) == ("staged", live["environment"])
    assert envs.is_whole(where, live["environment"])


def test_a_release_whose_files_are_gone_is_refused(shop: Shop) -> None:
    """With what to do, and nothing left."""
    live = shop.first(config())
    shutil.rmtree(shop.release("v1"))
    done = shop.again(live, config(), {"NEW": "1"})
    assert done.exit == 6
    assert "the files of v1 are gone" in done.told.splitlines()
    assert not shop.release().exists()
