"""The systems we are measured beside, installed by name into a cache directory outside the tree.

python -m tests.bench.peers   installs them and says which version of each is there. None is a dependency of
deployer: what cannot be installed is a SKIPPED row. gunicorn and uvicorn are in .venv already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

INSTALL_LIMIT_S = 300
LIBRARIES = ("numpy", "pandas", "aiohttp")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "deployer-bench"
BIN = Path(sys.executable).parent
PIP_INSTALL = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


class SkippedError(Exception):
    """A peer that is not here and cannot be had, and why."""


@dataclass(frozen=True)
class Peer:
    name: str
    program: Path
    version: str


def gunicorn() -> Peer:
    return _from_venv("gunicorn")


def uvicorn() -> Peer:
    return _from_venv("uvicorn")


def node() -> Peer:
    found = shutil.which("node")
    if found is None:
        raise SkippedError("node is not installed")
    return Peer("node", Path(found), _output([found, "--version"]).lstrip("v"))


@cache
def pm2() -> Peer:
    return _from_npm("pm2")


@cache
def nodemon() -> Peer:
    return _from_npm("nodemon")


@cache
def uwsgi() -> Peer:
    """uWSGI from pip: the ready-made pyuwsgi, or uwsgi, which needs a compiler."""
    home = CACHE / "uwsgi"
    program = home / "bin" / "uwsgi"
    if not program.exists():
        pip = _environment(home)
        try:
            _install([*pip, "pyuwsgi"], home)
        except SkippedError:
            _install([*pip, "uwsgi"], home)
    if not program.exists():
        program = home / "bin" / "pyuwsgi"
    return Peer("uwsgi", program, _output([str(program), "--version"]))


@cache
def granian() -> Peer:
    """granian from pip, with the loop that uvicorn takes too, and with what --reload needs."""
    home = CACHE / "granian"
    program = home / "bin" / "granian"
    if not (home / "bin" / "watchfiles").exists():
        _install([*_environment(home), "granian[uvloop,reload]"], home)
    return Peer("granian", program, _output([str(program), "--version"]).split()[-1])


@cache
def libraries() -> Path:
    """A directory for PYTHONPATH with numpy, pandas and aiohttp, for the Python that runs this: what an app may
    import."""
    return _for_pythonpath("libraries", *LIBRARIES)


@cache
def watchers() -> Path:
    """... with what uvicorn and gunicorn need to be told of changes by the kernel."""
    return _for_pythonpath("watchers", "watchfiles", "inotify")


def _for_pythonpath(name: str, *packages: str) -> Path:
    home = CACHE / f"{name}-{sys.implementation.cache_tag}"
    if not all((home / package).exists() for package in packages):
        partial = home.with_suffix(".partial")
        for old in (partial, home):
            shutil.rmtree(old, ignore_errors=True)
        _install([sys.executable, *PIP_INSTALL, "--target", str(partial), *packages], CACHE)
        partial.rename(home)
    return home


def _from_npm(name: str) -> Peer:
    node()
    home = CACHE / "npm"
    program = home / "node_modules" / ".bin" / name
    if not program.exists():
        if shutil.which("npm") is None:
            raise SkippedError("npm is not installed")
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "package.json").exists():
            (home / "package.json").write_text('{"private": true}\n')
        _install(["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", name], home)
    package = json.loads((home / "node_modules" / name / "package.json").read_text())
    return Peer(name, program, package["version"])


def _environment(home: Path) -> list[str]:
    """A new virtual environment, and the command that installs into it."""
    _install([sys.executable, "-m", "venv", str(home)], CACHE.parent)
    return [str(home / "bin" / "python"), *PIP_INSTALL]


def _from_venv(name: str) -> Peer:
    return Peer(name, BIN / name, version(name))


def _install(command: list[str], directory: Path) -> None:
    """Run an installer; what it said last is why the peer is skipped."""
    directory.mkdir(parents=True, exist_ok=True)
    print(f"... {' '.join(command[-2:])} into {directory}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SkippedError(f"cannot install {command[-1]}: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise SkippedError(f"cannot install {command[-1]}: {last[0][:120]}")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


PEERS: dict[str, Callable[[], Peer]] = {
    "gunicorn": gunicorn,
    "uvicorn": uvicorn,
    "node": node,
    "pm2": pm2,
    "nodemon": nodemon,
    "uwsgi": uwsgi,
    "granian": granian,
}


def main() -> int:
    for name, find in PEERS.items():
        try:
            peer = find()
            print(f"{name} {peer.version}  {peer.program}")
        except SkippedError as why:
            print(f"{name} SKIPPED: {why}")
    for find in (libraries, watchers):
        try:
            print(f"{find.__name__}  {find()}")
        except SkippedError as why:
            print(f"{find.__name__} SKIPPED: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
