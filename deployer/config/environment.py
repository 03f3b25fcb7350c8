"""The environment that the config gives to workers: files of KEY=VALUE lines, then `[worker] env`."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from deployer.config.model import Config
from deployer.errors import ConfigError

_ENTRY = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<key>[A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*
    (?:'(?P<single>[^']*)' | "(?P<double>(?:\\.|[^"\\])*)" | (?P<plain>(?!['"\ \t])[^\n]*?))
    [ \t]*(?:(?<=[ \t=])\#[^\n]*)?(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_NO_ENTRY = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_OPEN_QUOTE = re.compile(r"""[^=\n]*=[ \t]*(?:'[^']*|"(?:\\.|[^"\\])*)\Z""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "$": "$"}


def read_env_file(path: Path) -> dict[str, str]:
    """The variables in the file: `KEY=VALUE`, `export KEY=VALUE`, comments, quotes (which may span lines).

    In double quotes \\n, \\t, \\r, \\", \\\\ and \\$ are escapes. `$NAME` is left as it is. The ConfigErrors name
    file and line and never show the text there, which may be a secret.
    """
    text = _read(path)
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        if blank := _NO_ENTRY.match(text, at):
            at = blank.end()
        elif entry := _ENTRY.match(text, at):
            found[entry["key"]] = _value(entry)
            at = entry.end()
        else:
            line = text.count("\n", 0, at) + 1
            raise ConfigError(f"{path}:{line}: {_fault(text, at)}", hint='write KEY=value or KEY="value with spaces"')
    return found


def freeze(config: Config, directory: Path) -> dict[str, str]:
    """All variables of the config: each `env_file` in order (from `directory`), then `[worker] env` over them."""
    merged: dict[str, str] = {}
    for name in config.worker.env_file:
        merged |= read_env_file(Path(os.path.normpath(directory / name)))
    return merged | config.worker.env


def readable_by_others(config: Config, directory: Path) -> list[str]:
    """A warning for each env_file that everyone on this machine may read."""
    warnings = []
    for name in config.worker.env_file:
        path = Path(os.path.normpath(directory / name))
        if path.stat().st_mode & stat.S_IROTH:
            warnings.append(f"env_file {path} is readable by others: chmod o-r {path}")
    return warnings


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        why = {
            FileNotFoundError: "there is no such file",
            IsADirectoryError: "it is a directory",
            PermissionError: "permission denied",
        }.get(type(error), error.strerror)
        hint = "create it, or take it out of `env_file` in [worker]" if isinstance(error, FileNotFoundError) else None
        raise ConfigError(f"cannot read env_file {path}: {why}", hint=hint) from None
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text", hint="save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{path}:{line}: a NUL character, which no variable may hold")
    return text


def _value(entry: re.Match[str]) -> str:
    if entry["single"] is not None:
        return entry["single"]
    if entry["double"] is not None:
        return _ESCAPE.sub(lambda escape: _ESCAPES.get(escape[1], escape[0]), entry["double"])
    return entry["plain"]


def _fault(text: str, at: int) -> str:
    """What is wrong with the line that starts at `at`."""
    end = text.find("\n", at)
    line = text[at:] if end < 0 else text[at:end]
    if "=" not in line:
        return "expected KEY=VALUE"
    if _OPEN_QUOTE.match(text, at):
        return "a quote is not closed"
    key = line.partition("=")[0].strip().removeprefix("export ").strip()
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key) is None:
        return "the name of a variable has letters, digits and _ only"
    return "more text after the closing quote"
