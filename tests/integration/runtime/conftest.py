"""Workers of the runtime on both engines, and a client of bare sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deployer.releases.served import lent
from tests.apps import HERE
from tests.runtimekit import Workers

SERVED = HERE / "served"


@pytest.fixture(scope="session")
def empty_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment in which nothing is installed."""
    place = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    return str(place / "bin" / "python")


@pytest.fixture
def serve() -> Iterator[Callable[..., Workers]]:
    """Workers of tests/apps/served, ended with the test."""
    with ExitStack() as stack:

        def run(app: str, count: int = 1, *, directory: Path = SERVED, **options: Any) -> Workers:
            env = {"PYTHONDONTWRITEBYTECODE": "1"} | options.pop("env", {})
            return stack.enter_context(Workers(directory, app, count, env=env, **options))

        yield run


@pytest.fixture(params=["uvloop+httptools", "asyncio+h11"])
def engine(request: pytest.FixtureRequest, empty_python: str) -> dict[str, Any]:
    """What to give `serve` for each: the second is an empty environment that borrows the least of deployer's.

    With RUNTIME_PYTHON the uvicorn of that environment serves, for trying other versions by hand.
    """
    if python := os.environ.get("RUNTIME_PYTHON"):
        return {"python": python}
    if request.param == "uvloop+httptools":
        return {}
    least = [word for word in lent() if word.partition(":")[2].partition("=")[0] not in ("uvloop", "httptools")]
    return {"python": empty_python, "options": least}
