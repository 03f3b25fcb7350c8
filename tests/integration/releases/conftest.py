"""Fixtures of the staging tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from stagekit import Repository, Stager


@pytest.fixture
def stager(tmp_path: Path) -> Stager:
    directory = tmp_path / "host"
    directory.mkdir()
    return Stager(directory, tmp_path / "root")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """One commit on main: app.py says 1."""
    made = Repository(tmp_path / "repository")
    made.commit("First", app__py="1")
    return made
