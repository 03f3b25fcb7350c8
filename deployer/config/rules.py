"""What the types of deployer.toml cannot say: forms of texts, ranges, and keys that must agree.

Each rule yields Problems that name the key; `config.load` makes them into errors with a line. Nothing here
touches the disk.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deployer.config.command import is_listen_name
from deployer.config.model import Config, Duration, Inconclusive, Listen, Section, Size
from deployer.config.problem import Problem
from deployer.config.source import source_problems
from deployer.config.workerrules import worker_problems
from deployer.paths import Layout
from deployer.sockets.address import UNIX_PATH_MAX, Address, parse
from deployer.units import parse_duration, parse_size

DURATION_MAX_S = 366 * 86400
"""Longer is a slip, and far longer overflows the clocks that wait for it."""

MAY_BE_ZERO = {
    ("rollout", "soak"),
    ("rollout", "standby"),
    ("worker", "ready_delay"),
    ("worker", "drain_timeout"),
    ("worker", "watchdog"),
}
"""Durations that make sense as "0s"; a check every 0 s or a limit of 0 s does not."""


NOT_SHARED = ("deployer.toml", ".deployer.json")

_NAME = re.compile(r"[a-z0-9_-]+")
_HTTP_PATH = re.compile(r"/[!-~]*")
_REQUIRED_TEXTS = (
    "root",
    "source.path",
    "source.git",
    "source.ref",
    "source.artifact",
    "source.package",
    "source.index_url",
    "worker.user",
    "worker.group",
    "worker.stop_signal",
)


def slug(text: str) -> str:
    """The nearest allowed `name`; "app" when nothing of `text` is left."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-") or "app"


def host_problems(config: Config, directory: Path) -> Iterator[Problem]:
    """What is wrong in the sections that belong to the host; relative paths start at `directory`."""
    yield from _name(config)
    yield from _texts(config)
    yield from source_problems(config.source)
    yield from _root(config, directory)
    yield from _listen(config, directory)


def release_problems(config: Config) -> Iterator[Problem]:
    """What is wrong in the sections that a release may override, against the host's [[listen]]."""
    yield from _durations_and_sizes(config)
    yield from worker_problems(config)
    yield from _health_path(config)
    yield from _warmup(config)
    yield from _numbers(config)
    yield from _hooks(config)
    yield from _build(config)
    yield from _shared(config)


def _name(config: Config) -> Iterator[Problem]:
    if _NAME.fullmatch(config.name) is None:
        text = f'`name`: "{config.name}" is not a name: use a-z, 0-9, - and _'
        yield Problem(("name",), text, f'for example name = "{slug(config.name)}"')


def _texts(config: Config) -> Iterator[Problem]:
    for dotted in _REQUIRED_TEXTS:
        path = tuple(dotted.split("."))
        value: object = config
        for part in path:
            value = getattr(value, part)
        if isinstance(value, str) and not value.strip():
            table = f" in [{path[0]}]" if len(path) > 1 else ""
            yield Problem(path, f"`{path[-1]}`{table} is empty", "write a value, or remove the key")


def _root(config: Config, directory: Path) -> Iterator[Problem]:
    root = Path(os.path.normpath(directory / config.root))
    source = config.source
    is_directory = source.git is None and source.artifact is None and source.package is None
    if is_directory and root == Path(os.path.normpath(directory / (config.source.path or "."))):
        yield Problem(("root",), "`root` is the source directory itself", 'write root = ".deployer"')
    layout = Layout(root)
    longest = max(layout.control_socket, layout.notify / "99999999", key=lambda path: len(os.fsencode(path)))
    length = len(os.fsencode(longest))
    if length > UNIX_PATH_MAX:
        text = f"`root`: a socket below it needs a path of {length} bytes, {UNIX_PATH_MAX} are allowed: {longest}"
        hint = f'set `root` to a shorter path, for example root = "/var/lib/{slug(config.name)}"'
        yield Problem(("root",), text, hint)


def _listen(config: Config, directory: Path) -> Iterator[Problem]:
    names: set[str] = set()
    addresses: set[Address] = set()
    for index, listen in enumerate(config.listen):
        yield from _listen_name(listen, index, names)
        path = ("listen", index, "address")
        try:
            address = parse(listen.address, directory)
        except ValueError as error:
            yield Problem(path, f'`address` in [[listen]]: "{listen.address}": {error}')
            continue
        if address in addresses:
            yield Problem(path, f"`address` in [[listen]]: {address} is there twice", "remove one of the two")
        addresses.add(address)


def _listen_name(listen: Listen, index: int, seen: set[str]) -> Iterator[Problem]:
    if listen.name is None:
        return
    path = ("listen", index, "name")
    if not is_listen_name(listen.name):
        yield Problem(path, f'`name` in [[listen]]: "{listen.name}" is not a name: use letters, digits, . - and _')
    elif listen.name in seen:
        yield Problem(
            path, f'`name` in [[listen]]: "{listen.name}" is there twice', "give each [[listen]] its own name"
        )
    seen.add(listen.name)


def _durations_and_sizes(config: Config) -> Iterator[Problem]:
    for table in config.__struct_fields__:
        section = getattr(config, table)
        if not isinstance(section, Section):
            continue
        for field in msgspec.structs.fields(section):
            text = getattr(section, field.name)
            problem = None
            if text is None:
                continue
            if field.type in (Duration, Duration | None):
                problem = _duration(text, (table, field.name) in MAY_BE_ZERO)
            elif field.type in (Size, Size | None):
                problem = _size(text)
            if problem:
                yield Problem((table, field.name), f"`{field.name}` in [{table}]: {problem}")


def _duration(text: str, may_be_zero: bool) -> str | None:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        return str(error)
    if seconds > DURATION_MAX_S:
        return f'"{text[:40]}" is longer than a year'
    if seconds == 0 and not may_be_zero:
        return f'"{text}" must be more than 0'
    return None


def _size(text: str) -> str | None:
    try:
        size = parse_size(text)
    except (ValueError, OverflowError) as error:
        return str(error)
    return None if size > 0 else f'"{text}" must be more than 0'


def _hooks(config: Config) -> Iterator[Problem]:
    for field in msgspec.structs.fields(config.hooks):
        if field.name != "timeout" and getattr(config.hooks, field.name, None) == "":
            text = f"`{field.name}` in [hooks] is empty"
            yield Problem(("hooks", field.name), text, "write a command, or remove the key")


def _health_path(config: Config) -> Iterator[Problem]:
    http, path = config.health.http, ("health", "http")
    if http is None:
        return
    if _HTTP_PATH.fullmatch(http) is None:
        text = f'`http` in [health]: "{http}" is not a path: it starts with / and has no spaces'
        yield Problem(path, text, 'for example http = "/healthz"')
    elif not config.listen:
        text = "`http` in [health] needs a [[listen]], and there is none"
        yield Problem(path, text, "add [[listen]], or remove `http`")


def _warmup(config: Config) -> Iterator[Problem]:
    for index, text in enumerate(config.rollout.warmup):
        path = ("rollout", "warmup", index)
        if _HTTP_PATH.fullmatch(text) is None:
            what = f'`warmup` in [rollout]: "{text}" is not a path: it starts with / and has no spaces'
            yield Problem(path, what, 'for example warmup = ["/", "/api/items"]')
    if config.rollout.warmup and not config.rollout.preflight:
        text = "`warmup` in [rollout] is done by the preflight, which is off"
        yield Problem(("rollout", "warmup"), text, "remove one of the two")


def _numbers(config: Config) -> Iterator[Problem]:
    """Of the canary, by what it answers to visitors."""
    rollout, ratio = config.rollout, config.rollout.max_latency_ratio
    if math.isinf(ratio):
        text = "`max_latency_ratio` in [rollout]: inf is not a number to compare with"
        yield Problem(("rollout", "max_latency_ratio"), text, "write 0 to switch it off")
    if 0 < ratio < 1:
        text = f"`max_latency_ratio` in [rollout]: {ratio:g} would halt a release that is as quick as the one before"
        yield Problem(("rollout", "max_latency_ratio"), text, "write 1 or more; 0 switches it off")
    if config.worker.command is not None and rollout.inconclusive is not Inconclusive.PROMOTE:
        text = f'`inconclusive` in [rollout]: "{rollout.inconclusive}" needs `app` in [worker]'
        hint = "nobody counts the answers of a `command`: write a smoke test as hooks/after_canary instead"
        yield Problem(("rollout", "inconclusive"), text, hint)


def _build(config: Config) -> Iterator[Problem]:
    lists = {("build", "run"): config.build.run, ("watch", "build"): config.watch.build}
    for (table, key), commands in lists.items():
        for index, command in enumerate(commands):
            if not command.strip():
                yield Problem((table, key, index), f"item {index + 1} of `{key}` in [{table}] is empty", "remove it")


def _shared(config: Config) -> Iterator[Problem]:
    """Paths in a release and in ROOT/shared alike: none may lead out of these, or into another."""
    seen: dict[str, str] = {}
    for index, text in enumerate(config.release.shared):
        path, what = ("release", "shared", index), f'`shared` in [release]: "{text}"'
        normal = os.path.normpath(text)
        if not text.strip() or normal == ".":
            yield Problem(path, f"{what} names the whole release", "name files and directories in it")
        elif text.startswith(("/", "~")) or ".." in text.split("/"):
            text = f"{what} must be a path inside the release, without .."
            yield Problem(path, text, 'for example shared = ["uploads", "data.sqlite3"]')
        elif normal in NOT_SHARED:
            yield Problem(path, f"{what} belongs to each release", "remove it")
        for other, written in seen.items():
            if f"{normal}/".startswith(f"{other}/") or f"{other}/".startswith(f"{normal}/"):
                yield Problem(path, f'{what} and "{written}" overlap', "keep the one that holds the other")
                break
        seen[normal] = text
