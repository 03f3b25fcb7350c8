"""How a `[worker] app` is started: deployer's runtime on the application's interpreter, and what that may borrow."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

from deployer.config.model import Worker
from deployer.runtime import parts
from deployer.units import parse_duration

RUNTIME = str(Path(parts.__file__).with_name("__main__.py"))


def program(worker: Worker, environment: Path | None, *, template: bool = False) -> list[str]:
    """The argument list of a worker, or of the template that workers are forked from. Without an environment its
    interpreter is ours, and what the runtime needs is there."""
    assert worker.app is not None
    options = [f"--drain-timeout={parse_duration(worker.drain_timeout):g}", f"--threads={worker.threads}"]
    options += ["--template"] if template else []
    return [*_runtime(environment), *options, *_post_fork(worker), *_borrowed(environment), worker.app]


def warm(environment: Path | None) -> list[str]:
    """The argument list of the warm template, which knows of no application."""
    return [*_runtime(environment), "--warm", *_borrowed(environment)]


def check(worker: Worker, environment: Path | None) -> list[str]:
    """The argument list of what only imports the application, and says what it is and if it can be preloaded."""
    assert worker.app is not None
    options = ["--check", *(["--template"] if worker.preload else []), *_post_fork(worker)]
    return [*_runtime(environment), *options, *_borrowed(environment), worker.app]


def interpreter(environment: Path | None) -> str:
    return sys.executable if environment is None else str(environment / "bin" / "python")


@functools.cache
def lent() -> list[str]:
    """deployer's own packages, should the application's environment have no server; found without importing them."""
    found = []
    for name in (*parts.SERVER, "a2wsgi"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            file = Path(spec.origin)
            place = file.parent.parent if file.name == "__init__.py" else file.parent
            found.append(f"--lend={sys.implementation.cache_tag}:{name}={place}")
    return found


def _post_fork(worker: Worker) -> list[str]:
    return [f"--post-fork={worker.post_fork}"] if worker.post_fork is not None else []


def _runtime(environment: Path | None) -> list[str]:
    return [interpreter(environment), RUNTIME]


def _borrowed(environment: Path | None) -> list[str]:
    return lent() if environment else []
