"""`ROOT/current`: the one link that names the promoted release."""

from __future__ import annotations

import os
import re

from deployer.errors import DiskError
from deployer.osutil.files import replace_symlink
from deployer.paths import Layout

_TARGET = re.compile(r"(?:.*/)?releases/(v[1-9][0-9]*)/?")


def promote(layout: Layout, name: str) -> None:
    """Point `current` at release `name`, atomically and synced. Raises DiskError; the old link then stays.

    The link is relative, so that ROOT may be moved or mounted elsewhere.
    """
    if not layout.release(name).is_dir():
        raise DiskError(f"cannot promote {name}: {layout.release(name)} is not there")
    try:
        replace_symlink(f"{layout.releases.name}/{name}", layout.current)
    except OSError as error:
        raise DiskError(
            f"cannot point {layout.current} at {name}",
            cause=error.strerror,
            hint=f"ls -ld {layout.current}",
        ) from error


def read(layout: Layout) -> str | None:
    """The release that `current` names, None before the first promotion.

    Raises DiskError when `current` is no link to a release: somebody else made it, and it is not ours to replace.
    """
    try:
        target = os.readlink(layout.current)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiskError(
            f"{layout.current} is not a link", cause=error.strerror, hint=f"ls -ld {layout.current}"
        ) from error
    match = _TARGET.fullmatch(target)
    if match is None:
        raise DiskError(
            f"{layout.current} does not name a release",
            cause=f"it points at {target!r}",
            hint=f"ls -l {layout.current}",
        )
    return match[1]
