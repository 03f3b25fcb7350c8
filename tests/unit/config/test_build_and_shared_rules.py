"""Rules of [build] and [release] shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.config.load import load
from deployer.errors import ConfigError

BASE = 'name = "a"\n[worker]\ncommand = "x"\nready = "delay"\n'


def refusal(directory: Path, text: str) -> str:
    path = directory / "deployer.toml"
    path.write_text(BASE + text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.what


@pytest.mark.parametrize(
    ("paths", "what"),
    [
        ('["/etc"]', "must be a path inside the release"),
        ('["~/x"]', "must be a path inside the release"),
        ('["a/../../b"]', "must be a path inside the release"),
        ('[".."]', "must be a path inside the release"),
        ('["."]', "names the whole release"),
        ('[""]', "names the whole release"),
        ('["./"]', "names the whole release"),
        ('["deployer.toml"]', "belongs to each release"),
        ('[".deployer.json"]', "belongs to each release"),
        ('["a", "a/b"]', '"a" overlap'),
        ('["a/b", "a/"]', '"a/b" overlap'),
        ('["a", "./a"]', '"a" overlap'),
    ],
)
def test_shared_paths_stay_in_the_release_and_out_of_each_other(tmp_path: Path, paths: str, what: str) -> None:
    """The error has the line, the key and the text."""
    found = refusal(tmp_path, f"[release]\nshared = {paths}\n")
    assert found.startswith("deployer.toml:6: `shared` in [release]")
    assert what in found


def test_ordinary_shared_paths_are_accepted(tmp_path: Path) -> None:
    """Names that only begin alike do not overlap."""
    path = tmp_path / "deployer.toml"
    path.write_text(f'{BASE}[release]\nshared = ["uploads", "uploads2/", "var/data.sqlite3", "..odd"]\n')
    assert load(path).config.release.shared[0] == "uploads"


def test_an_empty_command_is_refused(tmp_path: Path) -> None:
    """It would do nothing, which nobody means."""
    assert "item 2 of `run` in [build] is empty" in refusal(tmp_path, '[build]\nrun = ["make", " "]\n')


def test_an_unknown_tool_and_a_wrong_timeout_are_refused(tmp_path: Path) -> None:
    """As all other keys are."""
    assert "python" in refusal(tmp_path, '[build]\npython = "poetry"\n')
    assert "timeout" in refusal(tmp_path, '[build]\ntimeout = "soon"\n')
