from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.watch.watchkit import Child

LONG_AGO = 1_000_000_000  # when nobody was in the middle of writing it


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "shop"
    (top / "views").mkdir(parents=True)
    (top / "app.py").write_text("app = 1\n")
    (top / "views/start.py").write_text("def start():\n    return 1\n")
    (top / "data.json").write_text("{}\n")
    for path in top.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return top


@pytest.fixture
def watch(source: Path) -> Iterator[Callable[..., Child]]:
    """Starts a child that watches the source, with ROOT in it."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Child:
            return stack.enter_context(Child(source, source / ".deployer", **settings))

        yield start
