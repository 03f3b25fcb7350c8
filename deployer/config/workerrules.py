"""The rules of `config.rules` for [worker]: what runs, as whom, and when it is replaced."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Iterator

from deployer.config.command import placeholders, split
from deployer.config.explain import did_you_mean
from deployer.config.model import Config, Ready
from deployer.config.problem import Problem
from deployer.units import parse_duration

FILL_IN_COMMAND = (
    'write what starts your app, e.g. app = "module:object" for a WSGI or ASGI application, '
    'or command = "node server.js"'
)

WATCHDOG_MIN_S = 2.0
"""A worker says five times a second that it lives, and the manager looks once a second."""

PLACEHOLDERS = "known: {fd}, {fd:NAME}, {worker}, {release}; write {{ and }} for the program's own braces"

_UMASK = re.compile(r"(0o)?[0-7]{1,4}")
_APP = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*(\(\))?")
_HOOK = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_RLIMIT_MAX = 2**63 - 1
_UNCATCHABLE = ("SIGKILL", "SIGSTOP")
_HEARD = ("SIGTERM", "SIGINT", "SIGQUIT")
"""What deployer's own runtime takes as the word to drain; another signal would end it at once."""


def rlimit(name: str) -> int | None:
    """The number of a limit called "nofile", "NOFILE" or "RLIMIT_NOFILE"; None when there is none such."""
    return _rlimits().get(name.removeprefix("RLIMIT_").lower() if name.isupper() else name.lower())


def worker_problems(config: Config) -> Iterator[Problem]:
    """What is wrong in [worker], against [[listen]] and [health]."""
    yield from _program(config)
    yield from _process(config)
    yield from _env(config)
    yield from _readiness(config)
    yield from _watchdog(config)
    yield from _preload(config)


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
    elif worker.app is not None and worker.stop_signal not in _HEARD:
        heard, other = ", ".join(_HEARD), worker.stop_signal
        text = f"`stop_signal` in [worker]: an `app` drains on {heard}; {other} would cut it off"
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
    if text is None or _seconds(text) == 0:
        return
    if config.worker.app is None:
        what = "`watchdog` in [worker] watches an `app`; of a `command` nobody can tell from outside that it is stuck"
        yield Problem(path, what, 'remove it; [health] http = "/healthz" asks a server that is not ours')
    elif parse_duration(text) < WATCHDOG_MIN_S:
        what = f'`watchdog` in [worker]: "{text}" is less than {WATCHDOG_MIN_S:g}s'
        yield Problem(path, what, 'for example watchdog = "60s"; "0s" is off')


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


def _rlimits() -> dict[str, int]:
    prefix = "RLIMIT_"
    return {key.removeprefix(prefix).lower(): getattr(resource, key) for key in dir(resource) if key.startswith(prefix)}


def _seconds(text: str) -> float:
    """0 also for what is no duration, which another rule tells."""
    try:
        return parse_duration(text)
    except ValueError:
        return 0.0
