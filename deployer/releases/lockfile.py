"""The lock file of a release: which one it is, and one number for all that decides what gets installed from it."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deployer.errors import BuildError
from deployer.releases.digest import tree_digest

UV_LOCK, PYLOCK, REQUIREMENTS = "uv.lock", "pylock.toml", "requirements.txt"
NAMES = {"uv": (UV_LOCK, PYLOCK, REQUIREMENTS), "pip": (REQUIREMENTS,)}
"""What each tool is looked for, the first that is there wins."""

# Patterns as the tools write them, each with a literal at its start: tomllib takes 0.3 s for a lock file of a
# megabyte, which a deploy would pay each time; these take 3 ms.
_REQUIRES = re.compile(rb'(?<=\n)requires-python = "([^"\n]*)"')
_LOCAL = {
    UV_LOCK: re.compile(rb'source = \{ (?:editable|directory|virtual|path) = "([^"\n]+)"'),
    PYLOCK: re.compile(rb'path = "([^"\n]+)"'),
}

_OPTION = re.compile(
    r"(?P<key>-r|-c|-e|-f|--requirement|--constraint|--editable|--find-links)(?:[ =]\s*|(?=[^- ]))(?P<value>\S.*)"
)
_INCLUDES = ("-r", "-c", "--requirement", "--constraint")
_EDITABLE = ("-e", "--editable")
_REFERENCE = re.compile(r"(?:[\w.-]+(?:\[[^\]]*\])?\s*@\s*)?(?P<path>[^\s;\[]+)")
_PATH = re.compile(r"file:.*|\.{1,2}|(?!\w+\+?\w*://).*(/.*|\.whl|\.tar\.gz|\.zip)")


@dataclass(frozen=True)
class Lock:
    name: str
    digest: str  # equal digests: equal environments
    requires: str | None  # what it says of the Python version, ">=3.11"


def find(directory: Path, tool: str) -> Lock:
    """Raises BuildError when the release in `directory` has none, or one that cannot make a shared environment."""
    for name in NAMES[tool]:
        if (directory / name).is_file():
            return _read(directory, name)
    looked = " or ".join([", ".join(NAMES[tool][:-1]), NAMES[tool][-1]]) if len(NAMES[tool]) > 1 else NAMES[tool][0]
    make = "uv lock" if tool == "uv" else f"pip freeze > {REQUIREMENTS}"
    raise BuildError(
        f'[build] python = "{tool}" needs a lock file, and the release has none',
        cause=f"looked for {looked} at the top of the release",
        hint=f'{make}  (and commit it), or set python = "none"',
    )


def _read(directory: Path, name: str) -> Lock:
    total = hashlib.sha256(name.encode() + b"\0")
    if name == REQUIREMENTS:
        for relative, data in _requirements(directory, REQUIREMENTS, set()):
            total.update(_record(relative, data))
        return Lock(name, total.hexdigest(), None)
    data = (directory / name).read_bytes()
    total.update(_record(name, data))
    for relative in sorted({os.fsdecode(path) for path in _LOCAL[name].findall(data)} - {"."}):
        total.update(_record(relative, _local(directory, relative)))
    if name == UV_LOCK:
        total.update(_record("tool.uv", _uv_settings(directory)))
    requires = _REQUIRES.search(data)
    return Lock(name, total.hexdigest(), requires[1].decode("utf-8", "replace") if requires else None)


def _record(name: str, data: bytes) -> bytes:
    return b"\0".join((name.encode("utf-8", "surrogateescape"), hashlib.sha256(data).digest(), b""))


def _requirements(directory: Path, relative: str, seen: set[str]) -> Iterator[tuple[str, bytes]]:
    """The file and every file and directory that it names."""
    if relative in seen:
        return
    seen.add(relative)
    try:
        data = (directory / relative).read_bytes()
    except OSError as error:
        cause = f"{relative}: {error.strerror}"
        raise BuildError(f"{REQUIREMENTS} includes a file that the release does not have", cause=cause) from None
    yield relative, data
    text = re.sub(r"\\\n", " ", data.decode("utf-8", "replace"))
    for line in text.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        option = _OPTION.fullmatch(line)
        if option is None:
            reference = _REFERENCE.match(line)
            if reference is not None and _PATH.fullmatch(reference["path"]):
                path = reference["path"].removeprefix("file://").removeprefix("file:")
                yield path, _local(directory, path)
        elif option["key"] in _EDITABLE:
            raise _editable(line)
        elif "://" not in option["value"]:
            if option["key"] in _INCLUDES:
                inner = os.path.normpath(os.path.join(os.path.dirname(relative), option["value"]))
                yield from _requirements(directory, inner, seen)
            else:
                yield option["value"], _local(directory, option["value"])


def _local(directory: Path, relative: str) -> bytes:
    """What lies at a path that a lock file names; it is installed, so it belongs to the environment's name."""
    path = directory / relative
    try:
        if path.is_dir():
            return tree_digest(path).encode()
        return path.read_bytes()
    except (OSError, ValueError):
        return b"nothing"  # the installer says what it thinks of that


def _uv_settings(directory: Path) -> bytes:
    """[tool.uv] chooses groups and indexes, and is not in uv.lock."""
    try:
        data = tomllib.loads((directory / "pyproject.toml").read_text())
        return msgspec.json.encode(data.get("tool", {}).get("uv"), order="deterministic")
    except (OSError, ValueError, TypeError):
        return b"nothing"


def _editable(line: str) -> BuildError:
    return BuildError(
        f'{REQUIREMENTS}: "{line}" cannot be in an environment that several releases share',
        cause="it would load the code of the release that was built first",
        hint='remove the line: workers start in the release; for a src layout set PYTHONPATH = "src" in [worker] env',
    )
