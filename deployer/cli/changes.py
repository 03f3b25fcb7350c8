"""What differs, in words: the commits between two releases, files with sizes, names of settings.

git runs here, in the command, and never in the manager; trees are read from the disk.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployer.cli.output import Output, clean
from deployer.paths import Layout
from deployer.releases.compare import Difference
from deployer.units import format_size
from deployer.wire.schema import Changes

GIT_LIMIT_S = 20.0
COMMITS_SHOWN = 50
FILES_SHOWN = 100
_FORMAT = "%H%x1f%an%x1f%s"


@dataclass(frozen=True)
class Commit:
    sha: str
    author: str
    subject: str


def commits(layout: Layout, old: str | None, new: str | None) -> list[Commit] | None:
    """Those that `new` has and `old` has not, newest first. None when it cannot be told (other sources, no mirror)."""
    if old is None or new is None or not layout.mirror.is_dir():
        return None
    words = ["git", "--git-dir", str(layout.mirror), "log", f"--format={_FORMAT}", f"--max-count={COMMITS_SHOWN + 1}"]
    try:
        done = subprocess.run(
            [*words, f"{old}..{new}", "--"],
            env=_environment(),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None  # a commit that the mirror no longer has
    lines = done.stdout.decode(errors="replace").splitlines()
    return [Commit(*fields) for line in lines if len(fields := line.split("\x1f", 2)) == 3]


def show_commits(out: Output, title: str, found: Sequence[Commit]) -> None:
    if not found:
        return
    more = "+" if len(found) > COMMITS_SHOWN else ""
    out.result(f"{title} ({min(len(found), COMMITS_SHOWN)}{more}):")
    for commit in found[:COMMITS_SHOWN]:
        out.result(f"  {commit.sha[:7]} {clean(commit.subject)} ({clean(commit.author)})")


def show_files(out: Output, found: Sequence[Difference]) -> None:
    if not found:
        return
    out.result(f"files ({len(found)}):")
    for difference in found[:FILES_SHOWN]:
        out.result(f"  {_sign(difference)} {clean(difference.path)}  {_sizes(difference, out)}")
    if len(found) > FILES_SHOWN:
        out.result(f"  ... {len(found) - FILES_SHOWN} more (--json lists all)")


def show_names(out: Output, title: str, changes: Changes, *, value: str = "") -> None:
    """`value` stands for the values, which are not shown."""
    lines = [f"+ {key}{value}" for key in changes.added]
    lines += [f"- {key}" for key in changes.removed]
    lines += [f"~ {key}{value}" for key in changes.changed]
    show_lines(out, title, lines)


def show_lines(out: Output, title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    out.result(f"{title} ({len(lines)}):")
    for line in lines[:FILES_SHOWN]:
        out.result(f"  {clean(line)}")
    if len(lines) > FILES_SHOWN:
        out.result(f"  ... {len(lines) - FILES_SHOWN} more (--json lists all)")


def directory(path: str) -> Path | None:
    found = Path(path)
    return found if found.is_dir() else None


def as_changes(found: Iterable[Difference]) -> Changes:
    names: dict[str, list[str]] = {"+": [], "-": [], "~": []}
    for difference in found:
        names[_sign(difference)].append(difference.path)
    return Changes(added=names["+"], removed=names["-"], changed=names["~"])


def _sign(difference: Difference) -> str:
    return "+" if difference.old is None else "-" if difference.new is None else "~"


def _sizes(difference: Difference, out: Output) -> str:
    sizes = [format_size(size) for size in (difference.old, difference.new) if size is not None]
    return f" {out.glyphs.arrow} ".join(dict.fromkeys(sizes))


def _environment() -> dict[str, str]:
    """Nothing of a repository that the command may have been called from (a git hook)."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
    }
