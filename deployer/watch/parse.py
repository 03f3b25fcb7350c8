"""Whether what changed can be read at all: .py compiles, .json and .toml parse. A worker would find out later, and not
of a file that it imports only with the first visitor.

Only files that differ from the release before are looked at, and one that was no better there is passed over: the
templates of a code generator are named .py too, and nobody imports them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import time
import tomllib
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deployer.errors import BuildError
from deployer.releases.index import DamagedError, Entry, IndexReader, files, place
from deployer.releases.sources.base import shown
from deployer.releases.stage import Taken
from deployer.watch import bytecode

BUDGET_S = 1.0
"""Of a checkout that changed thousands of files not all are compiled: the worker imports what it needs anyway."""
SIZE_MAX = 8 << 20  # bytes; what is larger is data
SHOWN = 3  # files whose faults are shown in full

_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_COMMENTS = re.compile(rb"^\s*(//|/\*)", re.MULTILINE)
_PYTHON = re.compile(r"python(3(\.\d+)?)?")


class FaultError(Exception):
    """One file that cannot be read."""

    def __init__(self, line: int | None, why: str, excerpt: list[str]) -> None:
        super().__init__(why)
        self.cause = f"line {line}: {why}" if line is not None else why
        self.excerpt = excerpt


class Compared(NamedTuple):
    """Two releases. Each directory by its path, each file by its name in it."""

    changed: dict[str, list[tuple[str, Entry]]]
    same: dict[str, set[str] | None]  # None: all files that it has


def check(taken: Taken) -> None:
    """Raises BuildError (reason "syntax") for changed files that cannot be read. Leaves bytecode in a save."""
    new = place(taken.layout.release(taken.name))
    old = place(taken.previous) if taken.previous is not None else None
    compared = compare(new, old)
    ours = runs_on_ours(taken)
    if taken.development and ours and taken.previous is not None:
        bytecode.share(taken.previous, taken.tree, compared.same)
    compiler = _compiler(taken) if ours else None
    faults = _faults(taken, compared, compiler, judge=old is not None)
    if faults:
        raise _error(faults)


def compare(new: Path, old: Path | None) -> Compared:
    """By the indexes: which files are new or differ, and which are the same, also in their times."""
    changed: dict[str, list[tuple[str, Entry]]] = {}
    same: dict[str, set[str] | None] = {}
    before = IndexReader(old) if old is not None else None
    after = IndexReader(new)
    try:
        known = dict(before.rows()) if before is not None else {}
        for directory, rows in after.rows():
            path, former = os.fsdecode(directory), known.get(directory, [])
            if rows == former:
                same[path] = None
                continue
            were, are = files(former), files(rows)
            kept = {name for name, entry in are.items() if name in were and _is_same(were[name], entry)}
            same[path] = {os.fsdecode(name) for name in kept}
            changed[path] = [(os.fsdecode(name), entry) for name, entry in are.items() if name not in kept]
    except DamagedError:
        return Compared({}, {})
    finally:
        after.close()
        if before is not None:
            before.close()
    return Compared(changed, same)


def _is_same(old: Entry, new: Entry) -> bool:
    return (old.digest, old.mtime_ns) == (new.digest, new.mtime_ns)


def runs_on_ours(taken: Taken) -> bool:
    """Whether Python in this release is of the version that this process is: else nobody knows what compiles there."""
    if taken.environment is not None:
        settings = taken.layout.envs / taken.environment.name / "pyvenv.cfg"
        return taken.environment.is_whole(taken.layout.envs) and _version(settings) == sys.version_info[:2]
    worker = taken.config.worker
    if worker.app is not None:
        return True
    try:
        program = shlex.split(worker.command or "")[0]
    except (ValueError, IndexError):
        return False
    if not _PYTHON.fullmatch(os.path.basename(program)):
        return False
    found = shutil.which(program, path=taken.env.get("PATH") or os.environ.get("PATH"))
    return found is not None and os.path.realpath(found) == os.path.realpath(sys.executable)


def _version(settings: Path) -> tuple[int, ...] | None:
    try:
        text = settings.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


Parser = Callable[[str, str], None]
"""Of a file's path, and what to call it. Raises FaultError."""


def _compiler(taken: Taken) -> Parser:
    """In a save the compiled code stays there: the worker need not do it again."""
    return partial(_parse_python, bytecode.make if taken.development else _compile)


def _faults(taken: Taken, compared: Compared, compiler: Parser | None, *, judge: bool) -> list[tuple[str, FaultError]]:
    """With `judge` unset nothing is known of what was there before, and so nothing is held against it."""
    faults: list[tuple[str, FaultError]] = []
    deadline = time.monotonic() + BUDGET_S
    for directory, entries in compared.changed.items():
        for name, entry in entries:
            parse = compiler if name.endswith(".py") else _PARSERS.get(os.path.splitext(name)[1])
            if parse is None or entry.size > SIZE_MAX:
                continue
            if time.monotonic() > deadline:
                return faults
            path = os.path.join(directory, name)
            try:
                parse(os.path.join(taken.tree, path), path)
            except FaultError as fault:
                if judge and not _was_no_better(taken.previous, path, name):
                    faults.append((path, fault))
    return faults


def _was_no_better(previous: Path | None, path: str, name: str) -> bool:
    if previous is None:
        return False
    parse = partial(_parse_python, _compile) if name.endswith(".py") else _PARSERS[os.path.splitext(name)[1]]
    before = os.path.join(previous, path)
    try:
        parse(before, path)
    except FaultError:
        return True
    except OSError:
        pass  # it is new
    return False


def _parse_python(act: Callable[[str, str], None], path: str, name: str) -> None:
    try:
        act(path, name)
    except OSError:
        raise
    except Exception as error:  # beside SyntaxError: ValueError for a null byte, RecursionError, ...
        line = error.lineno if isinstance(error, SyntaxError) else None
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise FaultError(line, why, "".join(traceback.format_exception_only(error)).splitlines()) from error


def _compile(path: str, name: str) -> None:
    with open(path, "rb") as file:
        source = file.read()
    compile(source, name, "exec", dont_inherit=True)


def _parse_json(path: str, name: str) -> None:
    with open(path, "rb") as file:
        data = file.read()
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        if not _COMMENTS.search(data):  # tsconfig.json and its like are read by more lenient parsers
            raise _text_fault(name, error.doc, error.lineno, error.colno, error.msg) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise FaultError(None, str(error), [f"{type(error).__name__}: {error}"]) from error


def _parse_toml(path: str, name: str) -> None:
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-8")
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_PLACE.search(str(error))
        why = str(error)[: found.start()] if found else str(error)
        line, column = (int(found[1]), int(found[2])) if found else (text.count("\n") + 1, 1)
        raise _text_fault(name, text, line, column, why) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise FaultError(None, str(error), [f"{type(error).__name__}: {error}"]) from error


_PARSERS: dict[str, Parser] = {".json": _parse_json, ".toml": _parse_toml}


def _text_fault(name: str, text: str, line: int, column: int, why: str) -> FaultError:
    """As Python shows its own."""
    lines = text.split("\n")
    source = lines[line - 1].rstrip() if line <= len(lines) else ""
    cut = source[max(0, column - 60) : column + 20]
    caret = " " * (column - 1 - max(0, column - 60)) + "^"
    return FaultError(line, why, [f'  File "{shown(name)}", line {line}', f"    {cut}", f"    {caret}", f"{why}"])


def _error(faults: list[tuple[str, FaultError]]) -> BuildError:
    path, first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    verb = "compile" if path.endswith(".py") else "parse"
    error = BuildError(f"{shown(path)} does not {verb}{more}", cause=first.cause, reason="syntax")
    error.tail = tuple(line for _, fault in faults[:SHOWN] for line in fault.excerpt)
    return error
