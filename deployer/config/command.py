"""The words of `[worker] command` and the placeholders in them. What runs the command is `workers/`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PLAIN = ("fd", "worker", "release")
_LISTEN_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def split(command: str) -> list[str]:
    """The words as a shell would split them, placeholders not filled in; ValueError on an open quote."""
    return shlex.split(command)


def placeholders(text: str) -> list[str]:
    """The names in braces, in order: "fd", "fd:admin", "worker", "release".

    `{{` and `}}` stand for one brace. ValueError says which brace or name is not understood.
    """
    found = []
    for piece in _PIECE.finditer(text):
        if piece[0] in ("{{", "}}"):
            continue
        if piece[1] is None:
            raise ValueError(f"a single `{piece[0]}`")
        if piece[1] not in _PLAIN and not (piece[1].startswith("fd:") and is_listen_name(piece[1][3:])):
            raise ValueError(f"unknown placeholder `{piece[0]}`")
        found.append(piece[1])
    return found


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with each placeholder replaced by its value; the config was checked, so each has one."""

    def value(piece: re.Match[str]) -> str:
        return piece[0][0] if piece[0] in ("{{", "}}") else values[piece[1]]

    return _PIECE.sub(value, text)


def is_listen_name(name: str) -> bool:
    """Whether `name` can name a [[listen]]: LISTEN_FDNAMES separates names by colons."""
    return _LISTEN_NAME.fullmatch(name) is not None


def escape(text: str) -> str:
    """`text` with braces doubled, so that none is taken for a placeholder."""
    return text.replace("{", "{{").replace("}", "}}")
