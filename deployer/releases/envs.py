"""ROOT/envs: Python environments that releases share, each under the hash of all that decides what is in it.

`envs/HASH` is a link to the directory it was built in, `envs/HASH-RANDOM`, made when the environment is whole: scripts
in an environment hold its absolute path, so it cannot be moved, and what no link names is nobody's. Writers hold
`envs/.lock`; readers need no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from deployer.osutil.files import fsync_directory, replace_symlink
from deployer.releases import tree

LOCK = ".lock"
SIZE = ".deployer-size"
"""In an environment: its bytes on disk. None changes once it is built, so each is measured once."""


def is_whole(envs: Path, name: str) -> bool:
    """Whether environment `name` was built to its end, and the interpreter that it links to is still there."""
    return os.access(envs / name / "bin" / "python", os.X_OK)


@contextmanager
def locked(envs: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Alone in `envs`, until the block or this process ends. `wait` is called while another is; without it that is
    a BlockingIOError at once."""
    envs.mkdir(parents=True, exist_ok=True)
    fd = os.open(envs / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    raise
                wait()
        yield
    finally:
        os.close(fd)


def home(envs: Path, name: str) -> Path:
    """A directory, not yet there, to build `name` in. Under the lock: what killed builds of it left is removed."""
    for left in envs.glob(f"{name}-*"):
        if not _is_named(left):
            _discard(left)
    return envs / f"{name}-{secrets.token_hex(3)}"


def publish(envs: Path, name: str, built: Path) -> None:
    """The environment in `built` is whole: bring it to the disk, then let it be found. Raises OSError."""
    tree.sync(built, tree.FSYNC_FILES + 1)
    fsync_directory(envs)
    replace_symlink(built.name, envs / name)


def unused(envs: Path, referenced: Collection[str]) -> list[Path]:
    """What may go: environments that are not `referenced` (by their names), and what killed builds left."""
    try:
        entries = sorted(envs.iterdir())
    except FileNotFoundError:
        return []
    links = [path for path in entries if path.is_symlink()]
    directories = [path for path in entries if path.is_dir() and not path.is_symlink()]
    free = [path for path in links if path.name not in referenced]
    return [*free, *(path for path in directories if not _is_named(path))]


def remove(path: Path) -> None:
    """Remove what `unused` named. Raises OSError; BlockingIOError while an environment is being built."""
    with locked(path.parent):
        if path.is_symlink():
            target = path.parent / os.readlink(path)
            path.unlink()
            fsync_directory(path.parent)
            path = target
        tree.remove(path)


def largest(envs: Path) -> int:
    """Bytes that the largest environment takes on disk; 0 where there is none."""
    return max((_size(path.resolve()) for path in envs.glob("*") if path.is_symlink()), default=0)


def _size(directory: Path) -> int:
    note = directory / SIZE
    try:
        return int(note.read_text())
    except (OSError, ValueError):
        pass  # measured now
    size = 0
    with contextlib.suppress(OSError):  # a clean-up removes it right now, or the disk is full: what is asked about
        for path, _, names in os.walk(directory):
            size += sum(os.lstat(os.path.join(path, name)).st_blocks * 512 for name in names)
        note.write_text(str(size))  # in one write; a note that was cut short is measured anew
    return size


def _is_named(path: Path) -> bool:
    link = path.parent / path.name.rpartition("-")[0]
    return link.is_symlink() and os.readlink(link) == path.name


def _discard(path: Path) -> None:
    try:
        tree.remove(path)
    except OSError:
        pass  # an installer that outlived its killed build still writes there; retention tries again
