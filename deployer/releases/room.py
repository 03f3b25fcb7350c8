"""Whether the disk can take a release: judged before anything is fetched or built, so that a deploy that cannot fit
costs nothing and fills nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from deployer.errors import DiskError
from deployer.paths import Layout
from deployer.releases import envs
from deployer.releases.request import Again, Directory, StageRequest
from deployer.releases.sources.base import Exclude
from deployer.releases.sources.directory import ALWAYS_EXCLUDED
from deployer.releases.sources.ignore import Ignore, Level
from deployer.units import format_size

GROWTH = 1.2  # how much larger than the last release of a source the next one is taken to be
RESERVE = 32 * 1024 * 1024  # bytes that stay free for state.db and logs, or ...
PLENTY = 20 * 1024**3  # bytes free, with which a directory that was deployed before is not measured again
RESERVE_SHARE = 100  # ... this part of a small file system


def check(request: StageRequest, layout: Layout) -> None:
    """Raises DiskError. A guess that does not fit is looked into before it is believed."""
    if request.room is None:
        return
    free = _free(layout.releases)
    if isinstance(request.source, Again):
        needed: float | None = request.source.bytes * GROWTH
    elif request.room.expected_bytes is None:
        needed = None
    else:
        needed = request.room.expected_bytes * GROWTH
    sure = not isinstance(request.source, Directory) or free >= PLENTY
    if needed is not None and needed <= free and sure:
        return
    if isinstance(request.source, Directory):
        needed = _new_bytes(request, request.source, layout, stop_above=free)
    if needed is None or needed <= free:
        return
    raise _refused(request, layout, f"it needs about {format_size(int(needed))}", free, done="fetched or built")


def check_environment(request: StageRequest, layout: Layout) -> None:
    """The same for a Python environment that has to be built: nobody knows how large it will be, so it is taken to be
    as large as the largest there is. Raises DiskError."""
    if request.room is None:
        return
    needed, free = envs.largest(layout.envs), _free(layout.root)
    if needed > free:
        needs = f"its Python environment has to be built, and the largest there is takes {format_size(needed)}"
        raise _refused(request, layout, needs, free, done="built")


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize - min(RESERVE, found.f_blocks * found.f_frsize // RESERVE_SHARE)


def _refused(request: StageRequest, layout: Layout, needs: str, free: int, *, done: str) -> DiskError:
    could_go = request.room.could_go if request.room is not None else []
    return DiskError(
        f"there is no room for release {request.name}: nothing was {done}",
        cause=f"{needs}, and {format_size(max(0, free))} are free in {layout.root} (beside a reserve)",
        hint=f"rm -r {layout.release(could_go[0])}  # these could go: {', '.join(could_go)}"
        if could_go
        else f"make room there, then deploy again: df -h {layout.root}",
    )


def _new_bytes(request: StageRequest, source: Directory, layout: Layout, *, stop_above: int) -> int:
    """Bytes in files that the release before does not have as they are: those it has need no room again. Hard
    links and clones need none, and what must be copied all the same is small against the whole."""
    top = Path(os.path.normpath(Path(request.directory) / os.path.expanduser(source.path)))
    assert request.room is not None
    before = layout.release(request.room.previous) if request.room.previous else None
    total = 0
    for path, size, mtime_ns in _files(top, layout.root, source):
        if before is not None and _has(before / path, size, mtime_ns):
            continue
        total += size
        if total > stop_above:
            break
    return total


def _files(top: Path, root: Path, source: Directory) -> Iterator[tuple[str, int, int]]:
    """(path, size, mtime) of what would be copied, by the same rules as the copy."""
    ignore, exclude, include = Ignore(top), Exclude((*ALWAYS_EXCLUDED, *source.exclude)), Exclude(source.include)
    pending: list[tuple[str, list[Level]]] = [("", [])]
    while pending:
        prefix, levels = pending.pop()
        try:
            entries = list(os.scandir(top / prefix))
        except OSError:
            continue  # the copy will say what is wrong with it
        here = ignore.level(os.path.join(top, prefix, ".gitignore"), prefix.rstrip("/"))
        levels = levels if here is None else [*levels, here]
        for entry in entries:
            path, directory = prefix + entry.name, entry.is_dir(follow_symlinks=False)
            if exclude.matches(path, directory=directory) or (directory and Path(entry.path) == root):
                continue
            if ignore.matches(levels, path, directory=directory) and not include.matches(path, directory=directory):
                continue
            if directory:
                pending.append((path + "/", levels))
            elif entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                yield path, found.st_size, found.st_mtime_ns


def _has(path: Path, size: int, mtime_ns: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (size, mtime_ns)
