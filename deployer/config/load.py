"""deployer.toml: find it, read it, check it; every fault is one ConfigError with a line and what to do."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deployer.config import lines
from deployer.config.explain import explain
from deployer.config.model import HOST_SECTIONS, Config
from deployer.config.problem import Problem, name_key
from deployer.config.rules import host_problems, release_problems
from deployer.errors import ConfigError
from deployer.paths import Layout

FILE_NAME = "deployer.toml"
CONFIG_VARIABLE = "DEPLOYER_CONFIG"

_TOML_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$")
_TOML_HINTS = {
    "Invalid value": 'a text needs quotes: name = "shop"',
    "Cannot overwrite a value": "the key is written twice: remove one",
    "Invalid statement": 'write KEY = VALUE, [table], or start a comment with "#"',
}


@dataclass(frozen=True)
class Loaded:
    """A configuration that passed every check, and the absolute places that it means."""

    config: Config
    path: Path
    root: Path
    directory: Path
    source_dir: Path | None
    """What a release is copied from; None when [source] names something else."""


def find(explicit: Path | None, cwd: Path) -> Path:
    """The deployer.toml to use: `explicit`, else $DEPLOYER_CONFIG, else the nearest in `cwd` or above it."""
    if explicit is not None:
        return _absolute(cwd, explicit)
    if from_environment := os.environ.get(CONFIG_VARIABLE):
        path = _absolute(cwd, Path(from_environment))
        if not os.path.lexists(path):
            cause = f"{CONFIG_VARIABLE} names it"
            raise ConfigError(
                f"cannot read {path}: there is no such file", cause=cause, hint=f"unset {CONFIG_VARIABLE}"
            )
        return path
    cwd = _absolute(cwd, Path())
    for directory in (cwd, *cwd.parents):
        candidate = directory / FILE_NAME
        if os.path.isfile(candidate) and not _is_in_release(directory):
            return candidate
    raise ConfigError(f"no {FILE_NAME} in {cwd} or above it", hint="deployer init")


def load(path: Path) -> Loaded:
    """The checked configuration in `path`; ConfigError for whatever is wrong."""
    path = _absolute(Path.cwd(), path)
    directory = path.parent
    text = _read(path)
    config = _checked(_parse(text, path.name), text, path.name)
    _refuse([*host_problems(config, directory), *release_problems(config)], text, path.name)
    source = config.source
    elsewhere = any(kind is not None for kind in (source.git, source.artifact, source.package))
    source_dir = None if elsewhere else _absolute(directory, Path(source.path or "."))
    return Loaded(config, path, _absolute(directory, Path(config.root)), directory, source_dir)


def overlay(host: Config, release_toml: Path) -> Config:
    """The host's configuration with what the release's own file says of [worker], [health] and [rollout].

    Key by key: what the release does not mention stays the host's (`env` and `rlimits` are replaced whole).
    HOST_SECTIONS in it are ignored, unread. A release without the file runs on the host's configuration.
    """
    if not os.path.lexists(release_toml):
        return host
    cause = f"it is the release's own configuration: {release_toml}"
    name = release_toml.name
    text = _read(release_toml)
    data = _merge(msgspec.to_builtins(host), _parse(text, name, cause))
    config = _checked(data, text, name, cause)
    _refuse(list(release_problems(config)), text, name, cause)
    return config


def _absolute(base: Path, path: Path) -> Path:
    # Not resolved: symbolic links in the way are the operator's own.
    return Path(os.path.normpath(Path(os.path.abspath(base)) / path))


def _is_in_release(directory: Path) -> bool:
    """Whether this is a release below some ROOT: its file is a copy, and no cluster of its own."""
    return directory.parent.name == "releases" and os.path.lexists(Layout(directory.parent.parent).database)


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise ConfigError(f"cannot read {path}: it is a directory", hint=f"name the file: {path / FILE_NAME}") from None
    except FileNotFoundError:
        raise ConfigError(f"cannot read {path}: there is no such file", hint="deployer init") from None
    except PermissionError:
        raise ConfigError(f"cannot read {path}: permission denied", hint=f"ls -l {path}") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot read {path}: {why.lower()}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path.name}:{line}: not UTF-8 text", hint="save the file as UTF-8") from None


def _parse(text: str, name: str, cause: str | None = None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        line = int(place["line"]) if place and place["line"] else text.rstrip().count("\n") + 1
        why = message[: place.start()] if place else message
        raise ConfigError(
            f"{name}:{line}: not valid TOML: {why[:1].lower()}{why[1:]}", cause=cause, hint=_toml_hint(why)
        ) from None
    except RecursionError:
        raise ConfigError(f"{name}: not usable: values are nested too deep", cause=cause) from None
    except ValueError as error:  # a number with more digits than Python converts
        raise ConfigError(f"{name}: not usable: {error}", cause=cause) from None


def _toml_hint(why: str) -> str | None:
    if match := re.fullmatch(r"Cannot declare \((.*?),?\) twice", why):
        table = match[1].replace("'", "").replace(", ", ".")
        return f"write [{table}] once, with all its keys below it"
    return _TOML_HINTS.get(why)


def _merge(host: dict[str, Any], release: dict[str, Any]) -> dict[str, Any]:
    merged = dict(host)
    for key, value in release.items():
        if key in HOST_SECTIONS:
            continue
        if isinstance(value, dict) and isinstance(host.get(key), dict):
            merged[key] = {**host[key], **value}
            if key == "worker" and ("app" in value) != ("command" in value):
                merged[key]["command" if "app" in value else "app"] = None  # one takes the place of the other
        else:
            merged[key] = value
    return merged


def _checked(data: dict[str, Any], text: str, name: str, cause: str | None = None) -> Config:
    """`data` as a Config whose types are right."""
    _refuse(_unprintable(data, ()), text, name, cause)
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        _refuse(explain(data), text, name, cause)
        # Not reached while `explain` knows every type of the model.
        raise ConfigError(f"{name}: {error}", cause=cause) from None


def _unprintable(value: object, path: lines.Path) -> list[Problem]:
    """Texts with a NUL: no path, argument or environment variable may hold one."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _unprintable(item, (*path, key))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _unprintable(item, (*path, index))]
    if isinstance(value, str) and "\0" in value:
        return [Problem(path, f"{name_key(path)} has a NUL character in it", "remove \\u0000")]
    return []


def _refuse(problems: Iterable[Problem], text: str, name: str, cause: str | None = None) -> None:
    """Raises the first problem, if there is one."""
    for problem in problems:
        raise problem.error(name, lines.find_lines(text), cause)
