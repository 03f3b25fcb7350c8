"""Which Python a release gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deployer.errors import BuildError
from deployer.releases import interpreter

OWN = Path(sys.executable).resolve()
VERSION = ".".join(map(str, sys.version_info[:2]))


@pytest.mark.parametrize(
    ("request_", "version", "allowed"),
    [
        ("3.11", (3, 11, 7), True),
        ("3.11.7", (3, 11, 7), True),
        ("3.11.8", (3, 11, 7), False),
        ("3.12", (3, 11, 7), False),
        ("==3.11.*", (3, 11, 7), True),
        (">=3.11", (3, 11, 7), True),
        (">=3.11.7", (3, 11, 7), True),
        (">=3.11.8", (3, 11, 7), False),
        (">=3.10,<3.12", (3, 11, 7), True),
        (">=3.10, <3.11", (3, 11, 7), False),
        ("~=3.10", (3, 11, 7), True),
        ("~=3.10.2", (3, 11, 7), False),
        ("!=3.11.*", (3, 11, 7), False),
        ("<=3.11", (3, 11, 7), True),
        (">3.10", (3, 11, 7), True),
        ("pypy3.10", (3, 11, 7), False),
        ("", (3, 11, 7), False),
    ],
)
def test_requests_are_understood_or_left_to_uv(request_: str, version: tuple[int, ...], allowed: bool) -> None:
    """False is the safe answer: uv is asked then."""
    assert interpreter.satisfies(request_, version) == allowed


def test_deployers_own_python_is_taken_when_it_will_do(tmp_path: Path) -> None:
    """Nothing asked, the lock file's range, a .python-version: no process is started for any of them."""
    assert interpreter.choose(tmp_path, None, "uv", tmp_path) == OWN
    assert interpreter.choose(tmp_path, f">={VERSION}", "uv", tmp_path) == OWN
    (tmp_path / ".python-version").write_text(f"# ours\n{VERSION}\n")
    assert interpreter.choose(tmp_path, ">=9", "uv", tmp_path) == OWN


def test_what_was_found_once_is_remembered_while_it_is_there(tmp_path: Path) -> None:
    """Another version than ours costs a search only once."""
    python = tmp_path / "python9"
    python.touch(mode=0o755)
    (tmp_path / interpreter.MEMORY).write_text(f'{{"uv 9.9": "{python}"}}')
    (tmp_path / ".python-version").write_text("9.9")
    assert interpreter.choose(tmp_path, None, "uv", tmp_path) == python


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_a_python_that_is_not_there_is_an_error_with_a_command(tmp_path: Path, tool: str) -> None:
    """Exit 6, reason build."""
    (tmp_path / ".python-version").write_text("3.99")
    with pytest.raises(BuildError, match=r"Python 3\.99, which is not on this machine") as caught:
        interpreter.choose(tmp_path, None, tool, tmp_path)
    assert caught.value.hint
