from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from scripted_manager import ScriptedManager

from deployer.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / ".deployer")


@pytest.fixture
def manager(layout: Layout) -> Iterator[ScriptedManager]:
    server = ScriptedManager(layout.control_socket)
    yield server
    server.close()
