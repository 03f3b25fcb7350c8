"""Two trees and two settings side by side."""

from __future__ import annotations

import os
from pathlib import Path

from deployer.config.model import Config, Source, Worker
from deployer.releases import settings
from deployer.releases.compare import Difference, differences
from deployer.wire.schema import Changes


def tree(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_files_that_came_went_or_are_others(tmp_path: Path) -> None:
    old = tree(tmp_path / "old", same="1", gone="12", changed="ab", mode="x", longer="1")
    new = tree(tmp_path / "new", same="1", came="123", changed="cd", mode="x", longer="12")
    (new / "mode").chmod(0o755)
    assert list(differences(old, new)) == [
        Difference("came", None, 3),
        Difference("changed", 2, 2),
        Difference("gone", 2, None),
        Difference("longer", 1, 2),
        Difference("mode", 1, 1),
    ]
    assert [each.path for each in differences(None, new)] == ["came", "changed", "longer", "mode", "same"]


def test_links_are_compared_as_links_and_hard_links_are_one(tmp_path: Path) -> None:
    """Nothing outside the trees is followed; a cache and our own manifest say nothing."""
    old, new = tree(tmp_path / "old", one="1"), tree(tmp_path / "new")
    os.link(old / "one", new / "one")
    (old / "link").symlink_to("/etc")
    (new / "link").symlink_to("/usr")
    for place in (old, new):
        (place / ".deployer.json").write_text(str(place))
        (place / "__pycache__").mkdir()
        (place / "__pycache__" / "a.pyc").write_text(str(place))
        os.mkfifo(place / "fifo")
    assert [each.path for each in differences(old, new)] == ["link"]


def test_names_that_are_no_utf8_can_be_told(tmp_path: Path) -> None:
    old, new = tree(tmp_path / "old"), tree(tmp_path / "new")
    with open(os.fsencode(new) + b"/\xff", "wb"):
        pass
    assert [each.path for each in differences(old, new)] == ["\\xff"]


def config(**worker: object) -> Config:
    return Config(name="shop", worker=Worker(command="true", **worker))  # type: ignore[arg-type]


def test_settings_are_told_of_by_name() -> None:
    old, new = config(env={"A": "1"}, nice=3), config(env={"A": "2"}, count=2, rlimits={"NOFILE": 3})
    assert settings.compare_env({"A": "1", "B": "1"}, {"A": "2", "C": "1"}) == Changes(
        added=["C"], removed=["B"], changed=["A"]
    )
    assert settings.compare_config(old, new) == Changes(
        added=["worker.rlimits.NOFILE"], changed=["worker.count", "worker.nice"]
    )


def test_what_is_shown_of_a_configuration_has_no_secret_in_it() -> None:
    shop = config(env={"TOKEN": "hunter2"})
    url = "https://bob:hunter2@host/x.git"
    text = str(settings.shown(Config(name="shop", worker=shop.worker, source=Source(git=url))))
    assert "hunter2" not in text
    assert "https://***@host/x.git" in text
    assert "TOKEN" in text
