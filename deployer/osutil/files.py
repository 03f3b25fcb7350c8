"""Files and links that are either the old or the new ones, whole, whatever moment the power fails."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make the names in `path` (a created, renamed or removed entry) last through a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data` whole: a reader sees the old bytes or the new ones. Raises OSError.

    The mode is set outright: the umask of whoever runs this has no say in who may read a secret.
    """
    temporary = _temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def replace_symlink(target: str, link: Path) -> None:
    """Point `link` at `target` in one step; there is no moment without a link. Raises OSError.

    A directory at `link` is refused by the kernel, never removed.
    """
    temporary = _temporary(link)
    temporary.symlink_to(target)
    try:
        temporary.replace(link)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(link.parent)


def _temporary(path: Path) -> Path:
    """A name beside `path`, of this process alone. Those that killed processes left there are removed."""
    head, tail = f".{path.name}.", ".tmp"
    for name in os.listdir(path.parent):
        if name.startswith(head) and name.endswith(tail) and _is_nobodys(name[len(head) : -len(tail)]):
            path.with_name(name).unlink(missing_ok=True)
    return path.with_name(f"{head}{os.getpid()}{tail}")


def _is_nobodys(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()
