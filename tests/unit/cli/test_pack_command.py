"""`deployer pack`, run as a command."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from deployer.cli.app import main


def test_packs_the_directory_of_deployer_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digest on stdout and beside the file; `exclude` holds; an artifact made before is not packed again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deployer.toml").write_text(
        'name = "shop"\n[worker]\ncommand = "serve"\nready = "delay"\n[source]\nexclude = ["notes"]\n'
    )
    (tmp_path / "app.py").write_text("1")
    (tmp_path / "notes").write_text("x")
    assert main(["pack", "-o", "shop.tar.gz"]) == 0
    digest = hashlib.sha256((tmp_path / "shop.tar.gz").read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"{digest}  shop.tar.gz\n"
    with tarfile.open("shop.tar.gz") as archive:
        assert archive.getnames() == [".deployer-artifact.json", "app.py", "deployer.toml"]
        assert {(found.uid, found.gid, found.mtime) for found in archive} == {(0, 0, 0)}
    assert main(["pack", "--json", "-o", "shop.tar.gz"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == digest
    assert main(["pack", "--quiet"]) == 0
    assert len(capsys.readouterr().out.strip()) == 64


def test_an_env_file_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is a shared path: an artifact travels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deployer.toml").write_text(
        'name = "shop"\n[worker]\ncommand = "serve"\nready = "delay"\nenv_file = ["conf/[1].env", ".env"]\n'
        '[release]\nshared = [".env"]\n'
    )
    (tmp_path / "conf").mkdir()
    for name in ("conf/[1].env", "conf/1.env", ".env"):
        (tmp_path / name).write_text("A=1\n")
    assert main(["pack", "-o", "shop.tar.gz"]) == 0
    with tarfile.open("shop.tar.gz") as archive:
        assert archive.getnames() == [".deployer-artifact.json", "conf", "conf/1.env", "deployer.toml"]
    told = capsys.readouterr().err
    assert "left out conf/[1].env: it is an env_file" in told
    assert "left out .env: it is an env_file" in told


def test_a_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage error."""
    assert main(["pack", str(tmp_path / "nowhere")]) == 2
    assert "no such directory" in capsys.readouterr().err
