"""One thing that is wrong in deployer.toml, and the sentence a person reads about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deployer.config.lines import Path
from deployer.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """`text` is said of the place `path`; `hint` is what to do."""

    path: Path
    text: str
    hint: str | None = None

    def line(self, lines: Mapping[Path, int]) -> int | None:
        """Where it is written, or else the nearest table around it that is; None when nothing is."""
        for end in range(len(self.path), 0, -1):
            if self.path[:end] in lines:
                return lines[self.path[:end]]
        return None

    def error(self, file: str, lines: Mapping[Path, int], cause: str | None = None) -> ConfigError:
        """The exception for it; `file` is the name to print before the line."""
        line = self.line(lines)
        place = file if line is None else f"{file}:{line}"
        return ConfigError(f"{place}: {self.text}", cause=cause, hint=self.hint)


def name_key(path: Path) -> str:
    """A key in words: `command` in [worker], `address` in [[listen]], item 2 of `exclude` in [source]."""
    head, *rest = path
    if not rest:
        return f"`{head}`"
    if isinstance(rest[0], int):
        table, rest = f"[[{head}]]", rest[1:]
    else:
        table = f"[{head}]"
    if not rest:
        return table
    if isinstance(rest[-1], int):
        return f"item {rest[-1] + 1} of `{'.'.join(map(str, rest[:-1]))}` in {table}"
    return f"`{'.'.join(map(str, rest))}` in {table}"


def name_table(path: Path) -> str:
    """A table in words: the top level, [worker], [[listen]]."""
    if not path:
        return "the top level"
    return f"[[{path[0]}]]" if len(path) > 1 and isinstance(path[1], int) else f"[{path[0]}]"
