"""What `deployer deploy SOURCE` takes a word for."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.cli.source import Source, classify
from deployer.errors import UsageError

DIGEST = "0" * 64


def test_each_kind_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory, archives by path and by URL, repositories, a version of a package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.tar.gz").mkdir()
    for name in ("shop.tar.gz", "shop.tgz", "shop.zip", "shop.tar"):
        (tmp_path / name).write_text("")
        assert classify(name, None, None, None) == Source(artifact=str(tmp_path / name))
    url = "https://ci.example.org/builds/7/shop.tar.gz?job=build"
    assert classify(url, None, None, None, DIGEST) == Source(artifact=url, sha256=DIGEST)
    assert classify("odd.tar.gz", None, None, None) == Source(path=str(tmp_path / "odd.tar.gz"))
    assert classify("https://host/shop.git", None, None, "main") == Source(git="https://host/shop.git", ref="main")
    assert classify("git@host:shop.tar.gz", None, None, None) == Source(git="git@host:shop.tar.gz")
    for text in ("shop==1.2", "shop[web]==1.2.post1+cpu"):
        assert classify(text, None, None, None) == Source(package=text)


@pytest.mark.parametrize(
    ("source", "ref", "sha256", "text"),
    [
        ("https://host/shop.zip", None, None, "needs --sha256"),
        ("https://host/shop.zip", None, "abc", "not 64 hexadecimal digits"),
        ("nowhere.zip", None, None, "no such file"),
        ("shop==1.2", "main", None, "--ref goes with a git repository"),
        ("shop.zip", "main", None, "--ref goes with a git repository"),
        (".", None, DIGEST, "--sha256 goes with an archive"),
        (None, None, DIGEST, "--sha256 goes with an archive"),
    ],
)
def test_what_does_not_go_together(source: str | None, ref: str | None, sha256: str | None, text: str) -> None:
    """Each refusal says which word is wrong."""
    with pytest.raises(UsageError, match=text):
        classify(source, None, None, ref, sha256)
