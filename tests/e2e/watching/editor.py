"""How editors save a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.e2e.watching.plan import Way


def write(path: Path, first: str, rest: str = "", *, way: Way = Way.PLAIN, amid_s: float = 0.0) -> None:
    """`amid_s` passes in the middle of those ways that have a middle."""
    if way is Way.RENAME:
        rename(path, first + rest)
    elif way is Way.PARTS:
        parts(path, first, rest, amid_s)
    elif way is Way.ANEW:
        path.unlink(missing_ok=True)
        time.sleep(amid_s)
        path.write_text(first + rest)
    else:
        path.write_text(first + rest)


def rename(path: Path, text: str) -> None:
    """VS Code, JetBrains ("safe write"), most formatters: another file, which takes the name."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.write_text(text)
    new.replace(path)


def parts(path: Path, first: str, rest: str, amid_s: float) -> None:
    """One that writes slowly; the file is open for all the time."""
    with path.open("w") as file:
        file.write(first)
        file.flush()
        time.sleep(amid_s)
        file.write(rest)


def vim(path: Path, text: str) -> None:
    """`:w` with 'backupcopy' off: the probe 4913, the old file renamed to a backup, a new file of the old name, and
    the backup removed."""
    probe, backup = path.with_name("4913"), path.with_name(path.name + "~")
    probe.touch()
    probe.unlink()
    path.rename(backup)
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    backup.unlink()
