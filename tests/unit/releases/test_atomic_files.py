"""Files and links replaced in one step."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from deployer.osutil.files import replace_symlink, write_atomic


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    """A secret must not be readable, a pid file must be."""
    old = os.umask(0o077)
    try:
        write_atomic(tmp_path / "file", b"new", mode)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    """Who has the old file open keeps the old bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / f".file.{os.getpid()}.tmp").write_bytes(b"of a killed process with our id")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A directory is in the place: refused, nothing beside it."""
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_made_and_moved(tmp_path: Path) -> None:
    """Also where there was none, and one that dangles."""
    for target in ("one", "two"):
        replace_symlink(target, tmp_path / "link")
        assert os.readlink(tmp_path / "link") == target
    assert os.listdir(tmp_path) == ["link"]
