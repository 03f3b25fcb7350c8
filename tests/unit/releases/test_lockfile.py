"""Which lock file counts, and what makes two environments different."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.errors import BuildError
from deployer.releases import lockfile

UV_LOCK = """version = 1
requires-python = ">=3.11, <3.14"
[[package]]
name = "shop"
version = "1"
source = { virtual = "." }
dependencies = [{ name = "local" }]
[[package]]
name = "local"
source = { editable = "libs/local" }
"""


def digest(directory: Path, tool: str = "uv") -> str:
    return lockfile.find(directory, tool).digest


def put(directory: Path, **files: str) -> None:
    """`base__txt` is base.txt, `libs___a__py` is libs/a.py."""
    for name, text in files.items():
        path = directory / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("tool", "names", "wins"),
    [
        ("uv", ["uv.lock", "pylock.toml", "requirements.txt"], "uv.lock"),
        ("uv", ["pylock.toml", "requirements.txt"], "pylock.toml"),
        ("uv", ["requirements.txt"], "requirements.txt"),
        ("pip", ["uv.lock", "requirements.txt"], "requirements.txt"),
    ],
)
def test_the_most_exact_lock_file_wins(tmp_path: Path, tool: str, names: list[str], wins: str) -> None:
    """uv.lock before pylock.toml before requirements.txt; pip knows only the last."""
    for name in names:
        (tmp_path / name).write_text("")
    assert lockfile.find(tmp_path, tool).name == wins


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_none_is_an_error_that_names_what_was_looked_for(tmp_path: Path, tool: str) -> None:
    """Every name of the tool's, and no other."""
    with pytest.raises(BuildError) as caught:
        lockfile.find(tmp_path, tool)
    for name in ("uv.lock", "pylock.toml", "requirements.txt"):
        assert (name in (caught.value.cause or "")) == (name in lockfile.NAMES[tool])


@pytest.mark.parametrize(
    "line", ["-r base.txt", "-rbase.txt", "--requirement=base.txt", "-c base.txt", "--constraint base.txt"]
)
def test_what_requirements_include_counts(tmp_path: Path, line: str) -> None:
    """Also a circle of includes ends."""
    put(tmp_path, requirements__txt=f"{line}  # comment\n", base__txt="six==1\n-r requirements.txt\n")
    before = digest(tmp_path)
    put(tmp_path, base__txt="six==2\n-r requirements.txt\n")
    assert digest(tmp_path) != before


@pytest.mark.parametrize(
    "line",
    ["./libs", "libs @ file:libs", "./libs ; python_version > '3'", "-f libs", "./libs[extra]", "libs/", "file:libs"],
)
def test_what_is_installed_from_the_release_itself_counts(tmp_path: Path, line: str) -> None:
    """A path is no version: its content is part of the environment."""
    put(tmp_path, requirements__txt=f"six==1\n{line}\n", libs___a__py="1")
    before = digest(tmp_path)
    put(tmp_path, libs___a__py="2")
    assert digest(tmp_path) != before


def test_other_files_do_not_count(tmp_path: Path) -> None:
    """A change of the app keeps the environment."""
    put(
        tmp_path,
        requirements__txt="six==1 \\\n  --hash=sha256:00\nhttps://example.org/a.whl\nb @ git+https://x/y.zip\n",
        app__py="1",
    )
    before = digest(tmp_path)
    put(tmp_path, app__py="2")
    assert digest(tmp_path) == before


@pytest.mark.parametrize("line", ["-e .", "--editable ./libs", "-e git+https://x/y"])
def test_an_editable_requirement_is_refused(tmp_path: Path, line: str) -> None:
    """It would bind an environment of many releases to one."""
    put(tmp_path, requirements__txt=f"{line}\n")
    with pytest.raises(BuildError, match=r"cannot be in an environment that several releases share"):
        digest(tmp_path)


def test_a_missing_include_is_named(tmp_path: Path) -> None:
    """Not a traceback, and not an environment without it."""
    put(tmp_path, requirements__txt="-r gone.txt\n")
    with pytest.raises(BuildError) as caught:
        digest(tmp_path)
    assert "gone.txt" in (caught.value.cause or "")


def test_uv_lock_tells_the_python_and_its_local_packages_count(tmp_path: Path) -> None:
    """The project itself is not installed: its files do not count, those of a path dependency and [tool.uv] do."""
    put(tmp_path, uv__lock=UV_LOCK, pyproject__toml="[project]\nname = 'shop'\n", libs___local___a__py="1")
    found = lockfile.find(tmp_path, "uv")
    assert found.requires == ">=3.11, <3.14"
    put(tmp_path, pyproject__toml="[project]\nname = 'shop'\ndescription = 'x'\n", app__py="1")
    assert digest(tmp_path) == found.digest
    put(tmp_path, libs___local___a__py="2")
    changed = digest(tmp_path)
    assert changed != found.digest
    put(tmp_path, pyproject__toml="[tool.uv]\ndefault-groups = ['web']\n")
    assert digest(tmp_path) != changed
