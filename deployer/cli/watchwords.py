"""What the options of `deployer watch` mean. Pure; UsageError for what means nothing."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

import msgspec

from deployer.config.model import Config
from deployer.config.rules import release_problems
from deployer.errors import UsageError
from deployer.units import parse_duration

HELP = "deployer watch --help"

_SECONDS = re.compile(r"\d+(\.\d+)?")
_STOP_SIGNAL = ("worker", "stop_signal")


def globs(given: Sequence[str] | None, option: str) -> list[str]:
    patterns = list(given or [])
    if not all(pattern.strip() for pattern in patterns):
        raise UsageError(f"{option}: an empty pattern matches nothing", hint=HELP)
    return patterns


def extensions(text: str | None) -> list[str]:
    """ "py,html" or ".py .html"."""
    words = [word.removeprefix("*").removeprefix(".") for word in re.split(r"[,\s]+", text or "") if word]
    if text is not None and not all(words or [""]):
        raise UsageError(f"--ext: {text!r} names no extension", hint="deployer watch --ext py,html")
    return words


def duration(text: str | None, option: str) -> str | None:
    """As written; a plain number is seconds, as nodemon has it."""
    if text is None:
        return None
    text = f"{text.strip()}s" if _SECONDS.fullmatch(text.strip()) else text.strip()
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}", hint=f"deployer watch {option} 1s") from error
    if option == "--poll-interval" and seconds == 0:
        raise UsageError(f"{option}: looking without a pause leaves no time for anything else", hint=HELP)
    return text


def stop_signal(text: str | None, config: Config) -> str | None:
    """Its name: of USR2, sigusr2 and 12 SIGUSR2. Refused where a worker of `config` would not drain on it."""
    if text is None:
        return None
    name = _signal_name(text.strip())
    worker = msgspec.structs.replace(config.worker, stop_signal=name)
    for problem in release_problems(msgspec.structs.replace(config, worker=worker)):
        if problem.path == _STOP_SIGNAL:
            _, _, why = problem.text.partition(": ")
            raise UsageError(f"--signal: {why}", hint="deployer watch --signal SIGTERM")
    return name


def _signal_name(text: str) -> str:
    if text.isdecimal():
        names = [member.name for member in signal.Signals if member.value == int(text)]
        return names[0] if names else text
    return f"SIG{text.upper().removeprefix('SIG')}"
