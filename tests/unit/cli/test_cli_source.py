"""What a person means by `deployer deploy SOURCE`."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.cli.source import Source, classify
from deployer.errors import UsageError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "named.git").mkdir()
    for name in ("bare/objects", "bare/refs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bare" / "HEAD").write_text("ref: refs/heads/main\n")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "url",
    ["https://host/shop.git", "ssh://git@host/shop", "git@host:shop.git", "file:///srv/shop.git", "git://host/shop"],
)
def test_a_url_is_a_repository(url: str) -> None:
    assert classify(url, None, None, "main") == Source(git=url, ref="main")
    assert classify(None, None, url, None) == Source(git=url)


def test_directories_become_absolute(tmp_path: Path) -> None:
    assert classify("app", None, None, None) == Source(path=str(tmp_path / "app"))
    assert classify(None, Path("app"), None, None) == Source(path=str(tmp_path / "app"))
    assert classify(".", None, None, None) == Source(path=str(tmp_path))


@pytest.mark.parametrize("name", ["named.git", "bare"])
def test_a_bare_repository_is_one(tmp_path: Path, name: str) -> None:
    assert classify(name, None, None, None) == Source(git=str(tmp_path / name))
    assert classify(None, None, name, "v1") == Source(git=str(tmp_path / name), ref="v1")


def test_a_work_tree_is_a_directory_unless_a_ref_is_asked_for(tmp_path: Path) -> None:
    assert classify("repo", None, None, None) == Source(path=str(tmp_path / "repo"))
    assert classify("repo", None, None, "main") == Source(git=str(tmp_path / "repo"), ref="main")


def test_nothing_or_a_ref_alone_leaves_the_configured_source() -> None:
    assert classify(None, None, None, None) == Source()
    assert classify(None, None, None, "main") == Source(ref="main")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("app", Path("app"), None, None), "SOURCE and --path both name a source"),
        ((None, Path("app"), "u", None), "--path and --git both name a source"),
        ((None, Path("app"), None, "main"), "--ref goes with a git repository"),
        (("app", None, None, "main"), "app is no git repository"),
        (("nowhere", None, None, None), "no such directory"),
        (("file", None, None, None), "not a directory"),
        ((None, None, "nowhere", None), "no such directory"),
    ],
)
def test_what_makes_no_sense_is_refused(given: tuple[str, Path, str, str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        classify(*given)
