"""A shop with a deployer.toml, and a scripted manager that serves it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "client"))

from cli_shop import TOML, Shop
from scripted_manager import ScriptedManager

from deployer.paths import Layout


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    (tmp_path / "deployer.toml").write_text(TOML)
    return Shop(tmp_path, Layout(tmp_path / ".deployer"))


@pytest.fixture
def manager(shop: Shop) -> Iterator[ScriptedManager]:
    server = ScriptedManager(shop.layout.control_socket)
    yield server
    server.close()
