"""What the types of deployer.toml cannot say: forms of texts, ranges, and keys that must agree.

Each rule yields Problems that name the key; `config.load` makes them into errors with a line. Nothing here
touches the disk.
"""

from __future__ import annotations

import math
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deployer.config.command import is_listen_name, placeholders, split
from deployer.config.explain import did_you_mean
from deployer.config.model import Config, Duration, Inconclusive, Listen, Ready, Section, Size
from deployer.config.problem import Problem
from deployer.config.source import source_problems
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

FILL_IN_COMMAND = (
    'write what starts your app, e.g. app = "module:object" for a WSGI or ASGI application, '
    'or command = "node server.js"'
)

WATCHDOG_MIN_S = 2.0
"""A worker says five times a second that it lives, and the manager looks once a second."""

PLACEHOLDERS = "known: {fd}, {fd:NAME}, {worker}, {release}; write {{ and }} for the program's own braces"

NOT_SHARED = ("deployer.toml", ".deployer.json")

_NAME = re.compile(r"[a-z0-9_-]+")
_UMASK = re.compile(r"(0o)?[0-7]{1,4}")
_HTTP_PATH = re.compile(r"/[!-~]*")
_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*(\(\))?")
_HOOK = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_RLIMIT_MAX = 2**63 - 1
_UNCATCHABLE = ("SIGKILL", "SIGSTOP")
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


def rlimit(name: str) -> int | None:
    """The number of a limit called "nofile", "NOFILE" or "RLIMIT_NOFILE"; None when there is none such."""
    return _rlimits().get(name.removeprefix("RLIMIT_").lower() if name.isupper() else name.lower())


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
    yield from _program(config)
    yield from _process(config)
    yield from _env(config)
    yield from _readiness(config)
    yield from _watchdog(config)
    yield from _health_path(config)
    yield from _warmup(config)
    yield from _preload(config)
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


def _seconds(text: str) -> float:
    """0 also for what is no duration, which another rule tells."""
    try:
        return parse_duration(text)
    except ValueError:
        return 0.0


def _size(text: str) -> str | None:
    try:
        size = parse_size(text)
    except (ValueError, OverflowError) as error:
        return str(error)
    return None if size > 0 else f'"{text}" must be more than 0'


def _program(config: Config) -> Iterator[Problem]:
    """Exactly one of `command` and `app`."""
    command, app = config.worker.command, config.worker.app
    if command is not None and app is not None:
        hint = "keep `app` for deployer's own runtime, or `command` for a server of yours"
        yield Problem(("worker", "app"), "`command` and `app` in [worker]: only one of the two can be", hint)
    elif app is not None:
        yield from _app(app, config)
    elif command is not None:
        yield from _command(command, config)
    else:
        yield Problem(("worker",), "neither `command` nor `app` is in [worker]", FILL_IN_COMMAND)


def _app(app: str, config: Config) -> Iterator[Problem]:
    if _APP.fullmatch(app) is None:
        text = f'`app` in [worker]: "{app}" does not name an application'
        yield Problem(("worker", "app"), text, 'write app = "module:object", or app = "module:factory()"')
    if not config.listen:
        text = "`app` in [worker] needs a [[listen]], and there is none"
        yield Problem(("worker", "app"), text, 'add [[listen]] with address = "tcp://127.0.0.1:8000"')


def _command(command: str, config: Config) -> Iterator[Problem]:
    path = ("worker", "command")
    try:
        words = split(command)
    except ValueError as error:
        why = "a quote is not closed" if "quotation" in str(error) else "it ends with a backslash"
        text = f"`command` in [worker] cannot be split into words: {why}"
        yield Problem(path, text, "close it, or write it in other quotes")
        return
    if not words or not words[0]:
        yield Problem(path, "`command` in [worker] is empty", FILL_IN_COMMAND)
    named = [listen.name for listen in config.listen if listen.name is not None]
    for word in words:
        try:
            found = placeholders(word)
        except ValueError as error:
            text = f"`command` in [worker]: {error}"
            yield Problem(path, text, PLACEHOLDERS)
            continue
        for name in found:
            yield from _socket_placeholder(name, named, has_listen=bool(config.listen))


def _socket_placeholder(name: str, named: list[str], *, has_listen: bool) -> Iterator[Problem]:
    path = ("worker", "command")
    if name.startswith("fd") and not has_listen:
        text = f"`command` in [worker]: {{{name}}} needs a [[listen]], and there is none"
        yield Problem(path, text, 'add [[listen]] with address = "tcp://127.0.0.1:8000"')
    elif name.startswith("fd:") and name[3:] not in named:
        text = f'`command` in [worker]: {{{name}}} names no [[listen]]: none has name = "{name[3:]}"'
        hint = did_you_mean(name[3:], named) if named else f'add name = "{name[3:]}" to a [[listen]]'
        yield Problem(path, text, hint)


def _process(config: Config) -> Iterator[Problem]:
    worker = config.worker
    signals = [member.name for member in signal.Signals]
    if worker.stop_signal not in signals:
        text = f'`stop_signal` in [worker]: "{worker.stop_signal}" is not a signal'
        prefixed = "SIG" + worker.stop_signal.upper().removeprefix("SIG")
        hint = f"did you mean `{prefixed}`?" if prefixed in signals else 'for example stop_signal = "SIGTERM"'
        yield Problem(("worker", "stop_signal"), text, hint)
    elif worker.stop_signal in _UNCATCHABLE:
        text = f"`stop_signal` in [worker]: {worker.stop_signal} cannot be caught, so no request would be finished"
        yield Problem(("worker", "stop_signal"), text, 'for example stop_signal = "SIGTERM"')
    if worker.umask is not None and (_UMASK.fullmatch(worker.umask) is None or int(worker.umask, 8) > 0o777):
        text = f'`umask` in [worker]: "{worker.umask}" is not an octal number up to 777'
        yield Problem(("worker", "umask"), text, 'for example umask = "022"')
    for name, value in worker.rlimits.items():
        yield from _rlimit(name, value)


def _rlimit(name: str, value: int) -> Iterator[Problem]:
    path = ("worker", "rlimits", name)
    if rlimit(name) is None:
        hint = did_you_mean(name.removeprefix("RLIMIT_"), _rlimits())
        yield Problem(path, f"`rlimits` in [worker]: `{name}` is not a limit", hint)
    elif not -1 <= value <= _RLIMIT_MAX:
        text = f"`rlimits` in [worker]: `{name}` must be from 0 to {_RLIMIT_MAX}, or -1 for no limit"
        yield Problem(path, text)


def _env(config: Config) -> Iterator[Problem]:
    for key in config.worker.env:
        if not key or "=" in key:
            yield Problem(("worker", "env", key), f'`env` in [worker]: "{key}" cannot be the name of a variable')
    for index, file in enumerate(config.worker.env_file):
        if not file.strip():
            yield Problem(("worker", "env_file", index), f"item {index + 1} of `env_file` in [worker] is empty")


def _readiness(config: Config) -> Iterator[Problem]:
    ready, path = config.worker.readiness, ("worker", "ready")
    if not config.listen and ready in (Ready.LISTEN, Ready.HTTP):
        default = " (the default)" if ready == Ready.LISTEN else ""
        text = f'`ready` in [worker]: "{ready}"{default} needs a [[listen]], and there is none'
        yield Problem(path, text, 'add [[listen]], or write ready = "notify" or ready = "delay"')
    elif ready == Ready.HTTP and config.health.http is None:
        text = '`ready` in [worker]: "http" needs the path to ask for'
        yield Problem(path, text, 'add [health] with http = "/healthz"')


def _watchdog(config: Config) -> Iterator[Problem]:
    text, path = config.worker.watchdog, ("worker", "watchdog")
    if text is None or _duration(text, True) is not None or parse_duration(text) == 0:
        return
    if config.worker.app is None:
        what = "`watchdog` in [worker] watches an `app`; of a `command` nobody can tell from outside that it is stuck"
        yield Problem(path, what, 'remove it; [health] http = "/healthz" asks a server that is not ours')
    elif parse_duration(text) < WATCHDOG_MIN_S:
        what = f'`watchdog` in [worker]: "{text}" is less than {WATCHDOG_MIN_S:g}s'
        yield Problem(path, what, 'for example watchdog = "60s"; "0s" is off')


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


def _preload(config: Config) -> Iterator[Problem]:
    worker, hint = config.worker, "write `app` instead of `command`, or remove the key"
    if worker.preload and worker.app is None:
        yield Problem(("worker", "preload"), "`preload` in [worker] is for an `app`, not for a `command`", hint)
    if worker.post_fork is not None:
        path = ("worker", "post_fork")
        if worker.app is None:
            yield Problem(path, "`post_fork` in [worker] is for an `app`, not for a `command`", hint)
        if _HOOK.fullmatch(worker.post_fork) is None:
            text = f'`post_fork` in [worker]: "{worker.post_fork}" does not name a function'
            yield Problem(path, text, 'write post_fork = "module:function"')
    if _seconds(config.rollout.standby) and not worker.preload:
        text = "`standby` in [rollout] keeps a template, and there is none without `preload` in [worker]"
        yield Problem(("rollout", "standby"), text, "add preload = true to [worker], or remove `standby`")


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


def _rlimits() -> dict[str, int]:
    prefix = "RLIMIT_"
    return {key.removeprefix(prefix).lower(): getattr(resource, key) for key in dir(resource) if key.startswith(prefix)}


def _build(config: Config) -> Iterator[Problem]:
    for index, command in enumerate(config.build.run):
        if not command.strip():
            yield Problem(("build", "run", index), f"item {index + 1} of `run` in [build] is empty", "remove it")


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
