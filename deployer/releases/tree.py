"""Release directories as the disk sees them: make them last, remove them, sweep what a kill left behind."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from deployer.osutil.files import fsync_directory
from deployer.paths import Layout

FSYNC_FILES = 256
"""Up to so many files are fsynced one by one (0.2 ms each on the SSD here, 5 ms on a slow disk: about a second).
Beyond, one syncfs is cheaper (2,000 files: 20 ms against 430 ms), though it also waits for what other programs have
written to that file system; os.sync would wait for every file system of the machine."""

_RELEASE = re.compile(r"\.?((?:v|dev-)[1-9][0-9]*)(?:\.partial)?")
_INDEX = re.compile(r"\.((?:v|dev-)[1-9][0-9]*)\.index")
_LEFTOVER = re.compile(r"\.((?:v|dev-)[1-9][0-9]*)(\.partial|\.removing|\.building)+")


def sync(path: Path, files: int) -> None:
    """Bring the tree at `path`, of `files` files, to the disk before its rename says that it is whole.

    Raises OSError: also for a write that failed late (syncfs tells so since Linux 5.8).
    """
    if files > FSYNC_FILES:
        _syncfs(path)
        return
    for directory, _, names in os.walk(path):
        for name in names:
            _fsync_file(os.path.join(directory, name))
        fsync_directory(Path(directory))


def remove(path: Path) -> None:
    """Remove a release directory; one that is not there is fine. Raises OSError.

    It is renamed out of the way first: half a release never stands under a release's name. What is already under
    a dot name is nobody's release and goes where it stands.
    """
    if match := _RELEASE.fullmatch(path.name):
        path.with_name(f".{match[1]}.index").unlink(missing_ok=True)
    if not path.name.startswith("."):
        _, aside = places(path)
        _remove_tree(aside)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        fsync_directory(path.parent)
        path = aside
    _remove_tree(path)


def places(path: Path) -> tuple[Path, Path]:
    """Where a release's files are, and where they are while they are being removed."""
    return path, path.with_name(f".{path.name}.removing")


def clean(layout: Layout, keep_names: Collection[str]) -> list[str]:
    """Remove what killed stagings and removals left, but nothing of `keep_names` ("v7": it is being staged now).

    Returns the directory names that went. Whole releases are never touched. Raises OSError, for what could not be
    removed, when all the rest is gone.
    """
    removed, faults = [], []
    for path in sorted(_leftovers(layout)):
        try:
            if _clean(layout, path, keep_names):
                removed.append(path.name)
        except OSError as error:
            faults.append(error)
    if faults:
        raise faults[0]
    return removed


def _clean(layout: Layout, path: Path, keep_names: Collection[str]) -> bool:
    """Whether this was a leftover, which is gone now."""
    index = _INDEX.fullmatch(path.name)
    if index is not None and index[1] not in keep_names and not layout.release(index[1]).is_dir():
        path.unlink(missing_ok=True)
    match = _LEFTOVER.fullmatch(path.name)
    if match is None or match[1] in keep_names:
        return False
    if path == layout.building(match[1]):
        abandon(layout, match[1])
    else:
        _remove_tree(path)
    return True


def give_name(layout: Layout, name: str) -> Path:
    """Rename the partial of `name` to what it will be called, with a mark beside it that says it is not whole."""
    mark = layout.building(name)
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    fsync_directory(layout.releases)  # on the disk before the name: the mark is what a power cut must not take
    layout.partial(name).rename(layout.release(name))
    return layout.release(name)


def finish(layout: Layout, name: str) -> None:
    """The release is whole and on the disk: the mark goes. Raises OSError; the release is then not to be used."""
    layout.building(name).unlink()
    fsync_directory(layout.releases)


def abandon(layout: Layout, name: str) -> None:
    """Remove a release whose mark says that it is not whole; nothing when there is no mark. Raises OSError."""
    mark = layout.building(name)
    if os.path.lexists(mark):
        remove(layout.release(name))
        mark.unlink()


def _leftovers(layout: Layout) -> Iterator[Path]:
    try:
        yield from layout.releases.glob(".v*")
        yield from layout.releases.glob(".dev-*")
    except FileNotFoundError:
        return


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
    except PermissionError:
        # A release may hold directories without write permission (modes are kept), which only root could empty.
        _open_directories(path)
        shutil.rmtree(path)


def _open_directories(path: Path) -> None:
    os.chmod(path, 0o700)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _open_directories(Path(entry.path))


def _fsync_file(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        if os.path.islink(path):
            return  # a link has no descriptor; the fsync of its directory carries it
        raise
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _syncfs(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(fd)
