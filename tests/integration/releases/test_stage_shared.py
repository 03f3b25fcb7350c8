"""[release] shared: links to ROOT/shared, seeded once, never written again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stagekit import CONFIG, Done, Stager

from deployer.config.model import Build, Config, Release
from deployer.releases.request import Directory


class Shop:
    """A source directory, and the ROOT that it is staged into."""

    def __init__(self, stager: Stager) -> None:
        self.stager = stager
        self.source = stager.directory / "shop"
        (self.source / "uploads").mkdir(parents=True)
        (self.source / "uploads" / "first.txt").write_text("seed")
        (self.source / "app.py").write_text("1")

    def stage(self, name: str, shared: list[str], **more: Any) -> Done:
        return self.stager.run(Directory(path="shop"), name, **{"host_config": config(shared), **more})

    @property
    def shared(self) -> Path:
        return self.stager.layout.shared


def config(shared: list[str], *run: str) -> Config:
    return msgspec.structs.replace(CONFIG, release=Release(shared=shared), build=Build(run=list(run)))


def warnings(done: Done) -> list[str]:
    assert done.result is not None, done.told
    found: list[str] = done.result["warnings"]
    return found


@pytest.fixture
def shop(stager: Stager) -> Shop:
    return Shop(stager)


def test_the_first_release_seeds_and_later_ones_only_link(shop: Shop) -> None:
    """Content written through one release is there in the next; what that ships is left out and warned of."""
    assert warnings(shop.stage("v1", ["uploads"])) == []
    link = shop.stager.release("v1") / "uploads"
    assert os.readlink(link) == "../../shared/uploads"
    assert (link / "first.txt").read_text() == "seed"
    (link / "first.txt").write_text("changed by the app")
    (shop.source / "uploads" / "first.txt").write_text("a new seed")
    (warning,) = warnings(shop.stage("v2", ["uploads"]))
    assert "uploads" in warning
    second = shop.stager.release("v2") / "uploads"
    assert (second / "first.txt").read_text() == "changed by the app"
    assert (link / "first.txt").samefile(second / "first.txt")


def test_the_seed_of_a_release_that_never_went_live_is_taken_anew(shop: Shop) -> None:
    """Its corrected successor seeds, in place of what nobody has changed; also where the first shipped nothing yet."""
    (shop.source / "app.sqlite3").write_text("wrong")
    paths = ["uploads", "app.sqlite3", "cache"]
    shop.stage("v1", paths)
    (shop.source / "app.sqlite3").write_text("right")
    (shop.source / "uploads" / "second.txt").write_text("more")
    (shop.source / "cache").mkdir()
    (shop.source / "cache" / "warm").write_text("x")
    assert warnings(shop.stage("v2", paths)) == []
    assert (shop.shared / "app.sqlite3").read_text() == "right"
    assert sorted(os.listdir(shop.shared / "uploads")) == ["first.txt", "second.txt"]
    assert os.listdir(shop.shared / "cache") == ["warm"]
    (shop.source / "app.sqlite3").write_text("third")
    assert len(warnings(shop.stage("v3", paths, live_digest="of v2"))) == 3
    assert (shop.shared / "app.sqlite3").read_text() == "right"


def test_what_was_changed_or_lay_there_before_any_release_is_nobodys_seed(shop: Shop) -> None:
    """The failed release's worker wrote into the one, a person put the other there."""
    (shop.source / "app.sqlite3").write_text("schema")
    shop.shared.mkdir()
    (shop.shared / "uploads").mkdir()
    (shop.shared / "uploads" / "first.txt").write_text("seed")
    shop.stage("v1", ["uploads", "app.sqlite3"])
    (shop.shared / "app.sqlite3").write_text("schema and rows")
    (shop.source / "app.sqlite3").write_text("another schema")
    (shop.source / "uploads" / "first.txt").write_text("another seed")
    assert len(warnings(shop.stage("v2", ["uploads", "app.sqlite3"]))) == 2
    assert (shop.shared / "app.sqlite3").read_text() == "schema and rows"
    assert (shop.shared / "uploads" / "first.txt").read_text() == "seed"


def test_links_lie_deep_in_the_release_and_name_files_too(shop: Shop) -> None:
    """Parents are made; a file that nobody has yet is made by who writes it, a directory is there at once."""
    assert warnings(shop.stage("v1", ["var/data/app.sqlite3", "public/media", "var/spool/"])) == []
    release = shop.stager.release("v1")
    assert (release / "public" / "media").is_dir()
    assert (release / "var" / "spool").is_dir()
    (release / "var" / "data" / "app.sqlite3").write_text("rows")
    assert (shop.shared / "var" / "data" / "app.sqlite3").read_text() == "rows"


def test_the_build_sees_the_links(shop: Shop) -> None:
    """They are made before it, and what it writes through them outlives the release."""
    done = shop.stage("v1", [], host_config=config(["uploads"], "cp uploads/first.txt uploads/second.txt"))
    assert done.exit == 0, done.told
    assert (shop.shared / "uploads" / "second.txt").read_text() == "seed"


def test_the_digest_is_that_of_the_source(shop: Shop) -> None:
    """With links or without, and whatever the app writes into what is shared."""
    one = shop.stage("v1", ["uploads"]).result
    (shop.shared / "uploads" / "more.txt").write_text("x")
    two, three = shop.stage("v2", ["uploads"]).result, shop.stage("v3", []).result
    assert one is not None
    assert two is not None
    assert three is not None
    assert one["tree_digest"] == two["tree_digest"] == three["tree_digest"]
    assert one["settings_digest"] == two["settings_digest"] != three["settings_digest"]


def test_seeding_leaves_the_source_and_earlier_releases_alone(shop: Shop) -> None:
    """A copy: no inode of ROOT/shared is one of a release or of the source."""
    shop.stage("v1", [])
    shop.stage("v2", ["uploads"])
    (shop.shared / "uploads" / "first.txt").write_text("changed")
    assert (shop.source / "uploads" / "first.txt").read_text() == "seed"
    assert (shop.stager.release("v1") / "uploads" / "first.txt").read_text() == "seed"


def test_a_link_on_the_way_cannot_lead_the_replacement_out_of_the_release(shop: Shop, tmp_path: Path) -> None:
    """`public` is a link to a directory elsewhere: refused by name, and nothing there is touched."""
    victim = tmp_path / "victim"
    (victim / "media").mkdir(parents=True)
    (shop.source / "public").symlink_to(victim)
    done = shop.stage("v1", ["public/media"])
    assert done.exit == 6
    assert "public/media" in done.told
    assert (victim / "media").is_dir()
    assert not (victim / "media").is_symlink()


def test_a_shipped_link_is_no_content(shop: Shop, tmp_path: Path) -> None:
    """It is replaced, with a warning, and not copied."""
    (shop.source / "cache").symlink_to(tmp_path)
    (warning,) = warnings(shop.stage("v1", ["cache"]))
    assert "cache" in warning
    assert not (shop.shared / "cache").is_symlink()
    assert (shop.stager.release("v1") / "cache").is_dir()
