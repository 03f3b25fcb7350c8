"""A cluster without a deployer.toml of anybody's: `deployer watch --exec "node server.js"` writes one for itself."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

from deployer.config.command import escape
from deployer.config.load import FILE_NAME
from deployer.config.rules import slug
from deployer.errors import DeniedError, UsageError
from deployer.sockets.address import parse

DIRECTORY = ".deployer"
NAME = "watch.toml"

_SHELL = re.compile(r"[|&;<>$`*?()\n]")
_BRACE = re.compile(r"\{(?:fd|worker|release)\}|[{}]")

_TEMPLATE = """\
# Written by `deployer watch --exec`, each time anew.
name = {name}
root = "."

[source]
path = ".."

[worker]
command = {command}
count = 1
drain_timeout = "5s"
"""
_LISTEN = """
[[listen]]
address = {address}
"""
_NO_SOCKET = """\
ready = "delay"

[rollout]
preflight = false
"""


def write(directory: Path, command: str, listen: str | None) -> Path:
    """The configuration for `command` in `directory` (absolute), below its .deployer. UsageError, DeniedError."""
    if (directory / FILE_NAME).exists():
        raise UsageError(
            f"--exec is for a directory without a {FILE_NAME}",
            cause=f"there is {directory / FILE_NAME}, which says what to run",
            hint=f"deployer watch {shlex.quote(os.path.relpath(directory))}",
        )
    text = render(directory.name, command, address(listen, directory))
    path = directory / DIRECTORY / NAME
    half = path.with_suffix(".partial")
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        raise DeniedError(f"cannot write {path}", cause=error.strerror, hint=f"ls -ld {directory}") from error
    return path


def render(name: str, command: str, listen: str | None) -> str:
    """Pure. A program with a socket is ready when it waits on it; one without when it has lived for a second, beside
    the old one: there is nothing to try it on before that."""
    if not command.strip():
        raise UsageError("--exec: there is no command", hint='deployer watch --exec "python app.py"')
    if listen is None and "{fd}" in command:
        raise UsageError(
            "--exec: {fd} is the socket of --listen, and there is none",
            hint=f"deployer watch --listen tcp://127.0.0.1:8000 --exec {shlex.quote(command)}",
        )
    text = _TEMPLATE.format(name=_quoted(slug(name)), command=_quoted(in_words(command)))
    return text + (_NO_SOCKET if listen is None else _LISTEN.format(address=_quoted(listen)))


def in_words(command: str) -> str:
    """The command as `[worker] command` takes it: through a shell where it is written for one."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--exec: {str(error).lower()}", cause=command, hint="close the quotation mark") from error
    literal = _BRACE.sub(lambda found: found[0] if len(found[0]) > 1 else escape(found[0]), command)
    return f"sh -c {shlex.quote(literal)}" if _SHELL.search(command) or "=" in words[0] else literal


def address(listen: str | None, base: Path) -> str | None:
    """8000 and localhost:8000 are TCP; what else there is has its scheme."""
    if listen is None:
        return None
    text = f"127.0.0.1:{listen.removeprefix(':')}" if listen.removeprefix(":").isdecimal() else listen
    if "://" not in text and re.fullmatch(r"(\[[^\]]*\]|[^:/]+):\d+", text) and not text.startswith("unix:"):
        text = f"tcp://{text}"
    try:
        parse(text, base)
    except ValueError as error:
        raise UsageError(
            f"--listen: {error}", hint="deployer watch --listen tcp://127.0.0.1:8000 --exec ..."
        ) from error
    return text


def _quoted(text: str) -> str:
    # A JSON string is a TOML string but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
