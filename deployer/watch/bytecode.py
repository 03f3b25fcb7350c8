"""The bytecode of a save (`__pycache__`): of unchanged files that of the save before, of changed ones what the check
compiled. A worker would else compile all its modules anew for each save.

Python takes it where time and size of the source are those of the file; both are kept by the copy. It is replaced
whole, never written into, and so may be linked. What cannot be had costs the worker its time, and no more.
"""

from __future__ import annotations

import os
import py_compile
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

_CACHE = "__pycache__"


def share(previous: Path, tree: Path, same: Mapping[str, Collection[str] | None]) -> None:
    """Link what the previous release has of the files that are the same: by directory their names, None for all."""
    for directory, files in same.items():
        old = os.path.join(previous, directory, _CACHE)
        try:
            names = os.listdir(old)
        except OSError:
            continue  # nobody has imported from here
        if files is not None:
            stems = {name[:-3] for name in files if name.endswith(".py")}
            names = [name for name in names if name.split(".", 1)[0] in stems]
        names = [name for name in names if name.endswith(".pyc")]
        if names:
            _link(old, os.path.join(tree, directory, _CACHE), names)


def _link(old: str, new: str, names: list[str]) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fds: list[int] = []
    try:
        os.mkdir(new, 0o755)
        fds = [os.open(path, flags) for path in (old, new)]
        for name in names:
            os.link(name, name, src_dir_fd=fds[0], dst_dir_fd=fds[1], follow_symlinks=False)
    except OSError:
        pass  # removed meanwhile, a directory without write permission, another file system
    finally:
        for fd in fds:
            os.close(fd)


def make(path: str, name: str) -> None:
    """Compile the file, which is to be called `name` in errors. Raises what Python's compiler does, and OSError."""
    head, tail = os.path.split(path)
    cached = os.path.join(head, _CACHE, f"{tail[:-3]}.{sys.implementation.cache_tag}.pyc")
    timestamp = py_compile.PycInvalidationMode.TIMESTAMP  # whatever SOURCE_DATE_EPOCH says
    try:
        py_compile.compile(path, cached, name, doraise=True, invalidation_mode=timestamp)
    except py_compile.PyCompileError as error:
        raise error.exc_value from None
    except PermissionError:
        pass  # a directory without write permission; it does compile
