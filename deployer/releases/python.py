"""The Python environment of a release: named by its lock file and interpreter, built once, shared while both stay."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployer.releases import envs, interpreter, lockfile, tree
from deployer.releases.command import Runner
from deployer.releases.lockfile import PYLOCK, UV_LOCK, Lock
from deployer.units import format_duration

NAME_DIGITS = 20  # of a SHA-256; a shebang line holds the path
LOCK_PAUSE_S = 0.05


@dataclass(frozen=True)
class Environment:
    """What a release needs; `name` is where it is, or will be, in ROOT/envs."""

    tool: str
    lock: Lock
    interpreter: Path
    name: str

    def is_whole(self, where: Path) -> bool:
        """Whether it is there, in ROOT/envs, and need not be built."""
        return envs.is_whole(where, self.name)


def plan(directory: Path, tool: str, where: Path) -> Environment:
    """The environment for the release in `directory`, built or not. Raises BuildError.

    In no more time than it takes to read the lock file: an unchanged one costs nothing else.
    """
    lock = lockfile.find(directory, tool)
    python = interpreter.choose(directory, lock.requires, tool, where)
    key = [tool, lock.digest, interpreter.identity(python), platform.machine()]
    return Environment(tool, lock, python, hashlib.sha256("\0".join(key).encode()).hexdigest()[:NAME_DIGITS])


def make(
    wanted: Environment,
    directory: Path,
    where: Path,
    *,
    runner: Runner,
    env: Mapping[str, str],
    tell: Callable[[str], None],
) -> bool:
    """See that the environment is there; whether it had to be built. Raises BuildError, OSError.

    Built in a directory of its own, under a name that nobody trusts before all is in it; a second build of the same
    waits for the first and then finds it.
    """
    if envs.is_whole(where, wanted.name):
        tell(f"environment {wanted.name} is there: {wanted.lock.name} is unchanged")
        return False
    with envs.locked(where, _waiting(runner, tell)):
        if envs.is_whole(where, wanted.name):
            return False
        began = time.monotonic()
        tell(f"building the Python environment of {wanted.lock.name} with {wanted.tool}")
        home = envs.home(where, wanted.name)
        # Compiled now, once: workers may not be allowed to write there, and would compile at every start.
        env = {"UV_COMPILE_BYTECODE": "1", **env, "UV_PROJECT_ENVIRONMENT": str(home), "PIP_NO_INPUT": "1"}
        try:
            for argv, title in _steps(wanted, home):
                runner.run(argv, cwd=directory, env=env, title=title)
            envs.publish(where, wanted.name, home)
        except BaseException:
            tree.remove(home)
            raise
        tell(f"built environment {wanted.name} in {format_duration(time.monotonic() - began)}")
    return True


def _steps(wanted: Environment, home: Path) -> list[tuple[list[str], str]]:
    """Commands, each with what a person would call it."""
    file, base, python = wanted.lock.name, str(wanted.interpreter), str(home / "bin" / "python")
    if wanted.tool == "pip":
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", "-r", file]
        return [([base, "-m", "venv", str(home)], "python -m venv"), (install, f"pip install -r {file}")]
    uv = [interpreter.uv_binary(), "--no-progress", "--no-python-downloads"]
    if file == UV_LOCK:
        # The project itself is the release: workers start in its directory.
        options = ["--frozen", "--no-dev", "--no-install-project", "--no-editable", "--python", base]
        return [([*uv, "sync", *options], "uv sync --frozen --no-dev --no-install-project")]
    preview = ["--preview-features", "pylock"] if file == PYLOCK else []
    install = [*uv, "pip", "install", "--python", python, *preview, "-r", file]
    venv = [*uv, "venv", "--no-project", "--python", base, str(home)]
    return [(venv, "uv venv"), (install, f"uv pip install -r {file}")]


def _waiting(runner: Runner, tell: Callable[[str], None]) -> Callable[[], None]:
    told: list[str] = []

    def wait() -> None:
        if not told:
            told.append("waiting for another build of an environment")
            tell(told[0])
        runner.check_time(told[0])
        time.sleep(LOCK_PAUSE_S)

    return wait
