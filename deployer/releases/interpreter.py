"""The Python that a release's environment is made with: deployer's own, unless the release asks for another version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from deployer.errors import BuildError
from deployer.osutil.files import write_atomic
from deployer.releases.process import die_with_parent

ASK_TIMEOUT_S = 60.0
MEMORY = ".interpreters.json"
"""In ROOT/envs: what was found for a request. Asking uv takes 150 ms, and the answer must not change by itself."""

_CLAUSE = re.compile(r"(==|!=|>=|<=|~=|>|<)?\s*(\d+(?:\.\d+)*)(?:\.\*)?")


def choose(directory: Path, requires: str | None, tool: str, envs: Path) -> Path:
    """The real path. `.python-version` in the release decides, then the lock file. Raises BuildError."""
    request = _python_version(directory) or requires
    if request is None or satisfies(request, sys.version_info[:3]):
        return Path(sys.executable).resolve()
    found = _remembered(envs).get(f"{tool} {request}")
    if found is None or not os.access(found, os.X_OK):
        found = _find(request, tool)
        envs.mkdir(parents=True, exist_ok=True)
        write_atomic(envs / MEMORY, msgspec.json.encode(_remembered(envs) | {f"{tool} {request}": found}), 0o644)
    return Path(found)


def satisfies(request: str, version: tuple[int, ...]) -> bool:
    """Whether "3.12", "3.12.1" or ">=3.11,<3.13" allows the version; False also for what is not understood here."""
    clauses = [clause.strip() for clause in request.split(",") if clause.strip()]
    return bool(clauses) and all(_allows(clause, version) for clause in clauses)


def identity(interpreter: Path) -> str:
    """Changes when the interpreter is replaced by another, also at the same path."""
    found = interpreter.stat()
    return f"{interpreter} {found.st_size} {found.st_mtime_ns}"


def uv_binary() -> str:
    """The uv of the package from PyPI, else the one on PATH."""
    import uv  # only a build needs it

    try:
        return uv.find_uv_bin()
    except FileNotFoundError:
        found = shutil.which("uv")
    if found is None:
        raise BuildError("uv is not installed beside deployer", hint=f"{sys.executable} -m pip install uv")
    return found


def _allows(clause: str, version: tuple[int, ...]) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        return False
    wanted = tuple(int(part) for part in match[2].split("."))
    head = version[: len(wanted)]
    if match[1] == "~=":
        return version >= wanted and head[:-1] == wanted[:-1]
    return {
        "==": head == wanted,
        "!=": head != wanted,
        ">=": version >= wanted,
        "<=": head <= wanted,
        ">": head > wanted,
        "<": head < wanted,
    }[match[1] or "=="]


def _python_version(directory: Path) -> str | None:
    try:
        text = (directory / ".python-version").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), None)


def _remembered(envs: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((envs / MEMORY).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _find(request: str, tool: str) -> str:
    hint = f"uv python install '{request}'"
    if tool == "uv":
        argv = [uv_binary(), "python", "find", "--no-project", "--system", "--no-python-downloads", "--", request]
    else:
        numbers = re.findall(r"\d+", request)[:2]
        argv = [f"python{'.'.join(numbers)}", "-I", "-c", "import sys; print(sys.executable)"]
        hint = f'install {argv[0]}, or set python = "uv" in [build]'
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=ASK_TIMEOUT_S,
            preexec_fn=die_with_parent,
        )
        found, why = done.stdout.strip(), done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found, why = "", str(error)
    if not found:
        raise BuildError(f"the release asks for Python {request}, which is not on this machine", cause=why, hint=hint)
    return os.path.realpath(found)
