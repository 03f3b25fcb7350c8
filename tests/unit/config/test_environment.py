"""Files of variables, and what wins over what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployer.config.environment import freeze, read_env_file, readable_by_others
from deployer.config.model import Config, Worker
from deployer.errors import ConfigError

TEXT = """\
# a comment

A=1
export B = two words  # and why
C='single # $X \\n'
D="tab\\tquote\\" dollar\\$ back\\\\n kept\\x"
E="first
second"   # after
F=
G=a#b
H=#nothing
I.j-k=x=y
A=last
"""


def write(directory: Path, text: str, name: str = ".env") -> Path:
    path = directory / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_usual_forms_are_read(tmp_path: Path, end: str) -> None:
    assert read_env_file(write(tmp_path, TEXT.replace("\n", end))) == {
        "A": "last",
        "B": "two words",
        "C": "single # $X \\n",
        "D": 'tab\tquote" dollar$ back\\n kept\\x',
        "E": "first\nsecond",
        "F": "",
        "G": "a#b",
        "H": "",
        "I.j-k": "x=y",
    }


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    assert read_env_file(write(tmp_path, "\ufeffA=1\nB='2'")) == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A=1\nsecret\n", "2: expected KEY=VALUE"),
        ("A=1\n\nB='secret\nC=1\n", "3: a quote is not closed"),
        ('B= "secret\nC=1\n', "1: a quote is not closed"),
        ("B='x' secret\n", "1: more text after the closing quote"),
        ("2B=secret\n", "1: the name of a variable has letters, digits and _ only"),
        ("=secret\n", "1: the name of a variable has letters, digits and _ only"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_env_file(path)
    assert caught.value.what == f"{path}:{fault}"
    assert caught.value.hint == 'write KEY=value or KEY="value with spaces"'


def test_a_nul_and_bytes_that_are_not_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, "A=1\nB=\0\n")
    with pytest.raises(ConfigError, match=r":2: a NUL character, which no variable may hold$"):
        read_env_file(path)
    path.write_bytes(b"A=1\n\nB=\xff")
    with pytest.raises(ConfigError, match=r":3: not UTF-8 text$"):
        read_env_file(path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_env_file(tmp_path / "gone.env")
    assert caught.value.what == f"cannot read env_file {tmp_path}/gone.env: there is no such file"
    assert caught.value.hint == "create it, or take it out of `env_file` in [worker]"
    with pytest.raises(ConfigError) as caught:
        read_env_file(tmp_path)
    assert caught.value.what == f"cannot read env_file {tmp_path}: it is a directory"


def test_later_files_win_over_earlier_ones_and_env_over_all(tmp_path: Path) -> None:
    write(tmp_path, "A=1\nB=1\nC=1\n", "one.env")
    write(tmp_path, "B=2\nC=2\n", "two.env")
    worker = Worker(command="x", env_file=["one.env", str(tmp_path / "two.env")], env={"C": "3"})
    assert freeze(Config(name="a", worker=worker), tmp_path) == {"A": "1", "B": "2", "C": "3"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.text("A=\n'\" #\\x") | st.text())
def test_any_file_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.env"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read_env_file(path)
    except ConfigError:
        return
    assert "" not in found


def test_a_file_that_everyone_may_read_is_a_warning(tmp_path: Path) -> None:
    """Its group may: a deploy user and an operator share one."""
    config = Config(name="shop", worker=Worker(command="true", env_file=["open", "closed"]))
    write(tmp_path, TEXT, "open").chmod(0o644)
    write(tmp_path, TEXT, "closed").chmod(0o640)
    [warning] = readable_by_others(config, tmp_path)
    assert warning == f"env_file {tmp_path}/open is readable by others: chmod o-r {tmp_path}/open"
