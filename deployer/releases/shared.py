"""[release] shared: what outlives a release lies in ROOT/shared, and each release has a link to it.

The first release that ships such a path gives its content; after that ROOT/shared is the application's own, and
nothing here ever writes to it again. Only as long as no release was ever live, what one gave that then failed is
taken anew from the next, unless somebody changed it.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from deployer.config.model import Config
from deployer.errors import SourceError
from deployer.osutil.files import fsync_directory, write_atomic
from deployer.releases import digest, tree
from deployer.releases.sources.base import shown

SEEDS = ".deployer-seeds.json"
"""In ROOT/shared: by path, the digest of what the last release gave before one was ever live."""
EMPTY = hashlib.sha256().hexdigest()  # the digest of a directory that holds nothing


def link(
    config: Config, partial: Path, shared: Path, tell: Callable[[str], None], *, never_live: bool = False
) -> list[str]:
    """Put the links into the release at `partial`; warnings, one for each path that it ships beside what is shared.
    `never_live`: no release ever was.

    Raises SourceError when a path leaves the release, OSError.
    """
    if not config.release.shared:
        return []
    shared.mkdir(parents=True, exist_ok=True)
    if never_live:
        _take_back_seeds(config, partial, shared)
        _note_seeds(config, partial, shared)
    warnings = []
    for text in config.release.shared:
        warnings += _link_one(text, config, partial, shared, tell)
    return warnings


def _note_seeds(config: Config, partial: Path, shared: Path) -> None:
    """Before they are made: a seed of a staging that is killed must be known for one too."""
    seeded = {}
    for text in config.release.shared:
        relative = os.path.normpath(text)
        if not os.path.lexists(shared / relative):
            inside = partial / relative
            shipped = os.path.lexists(inside) and not inside.is_symlink()
            seeded[relative] = _digest(inside) if shipped or not _is_directory(text) else EMPTY
    if seeded:
        write_atomic(shared / SEEDS, json.dumps(_seeds(shared) | seeded).encode())


def _take_back_seeds(config: Config, partial: Path, shared: Path) -> None:
    """Those that the release at `partial` ships again, and that nobody has changed."""
    seeds = _seeds(shared)
    for relative in map(os.path.normpath, config.release.shared):
        shipped = os.path.lexists(partial / relative) and not (partial / relative).is_symlink()
        if shipped and seeds.get(relative) is not None and seeds[relative] == _digest(shared / relative):
            _discard(shared / relative)


def _seeds(shared: Path) -> dict[str, str | None]:
    try:
        found: dict[str, str | None] = json.loads((shared / SEEDS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _digest(path: Path) -> str | None:
    """Of a file or directory; None of anything else: a link is somebody's own doing."""
    try:
        if path.is_symlink():
            return None
        if path.is_dir():
            return digest.tree_digest(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def _link_one(text: str, config: Config, partial: Path, shared: Path, tell: Callable[[str], None]) -> list[str]:
    relative = os.path.normpath(text)
    inside, outside = partial / relative, shared / relative
    _make_parents(partial, relative)
    outside.parent.mkdir(parents=True, exist_ok=True)
    _discard(_aside(outside))  # of a staging that was killed
    shipped, there = os.path.lexists(inside), os.path.lexists(outside)
    warnings = []
    if shipped and (there or inside.is_symlink()):
        what = f"{outside} stays as it is" if there else "a link is not taken for its content"
        warnings.append(f"the release ships {shown(relative)}, which is shared: {what}, the shipped one is left out")
    elif shipped:
        _seed(inside, outside, config)
        tell(f"seeded {outside} from the release")
    if not os.path.lexists(outside) and _is_directory(text):
        outside.mkdir()
        _give_away(outside, config)
    if shipped:
        _discard(inside)
    # Relative: ROOT may be moved. Where nothing is shared yet, the first to write a file through the link makes it.
    up = os.path.relpath(shared, partial.parent)
    inside.symlink_to(os.path.join("../" * relative.count("/") + "..", up, relative))
    return warnings


def _is_directory(text: str) -> bool:
    """Of a path that nobody has yet: "uploads" and "a.d/" are directories, "data.sqlite3" and ".env" will be files."""
    return text.endswith("/") or "." not in os.path.basename(text)


def _make_parents(partial: Path, relative: str) -> None:
    """Directories above the link. A link among them would lead the replacement out of the release."""
    path = partial
    for part in relative.split("/")[:-1]:
        path = path / part
        if path.is_symlink() or (os.path.lexists(path) and not path.is_dir()):
            kind = "a link" if path.is_symlink() else "a file"
            raise SourceError(
                f"cannot link the shared path {shown(relative)} into the release",
                cause=f"{shown(str(path.relative_to(partial)))} is {kind} there",
                hint="make it a directory in the source, or take the path out of `shared` in [release]",
            )
        path.mkdir(exist_ok=True)


def _aside(outside: Path) -> Path:
    """Where a seed is made: always the same, so that the next staging finds what a killed one left."""
    return outside.with_name(f".{outside.name}.deployer-seed")


def _seed(inside: Path, outside: Path, config: Config) -> None:
    """Copied, not moved: a file of the release may share its inode with an earlier one. It appears whole or not."""
    aside = _aside(outside)
    try:
        if inside.is_dir():
            shutil.copytree(inside, aside, symlinks=True)
        else:
            shutil.copy2(inside, aside)
        _give_away(aside, config)
        tree.sync(aside if aside.is_dir() else aside.parent, tree.FSYNC_FILES + 1)
        aside.rename(outside)
    except BaseException:
        _discard(aside)
        raise
    fsync_directory(outside.parent)


def _give_away(path: Path, config: Config) -> None:
    """To the user that workers run as: when root deploys, they could not write there otherwise."""
    user, group = config.worker.user, config.worker.group
    if os.geteuid() != 0 or (user is None and group is None):
        return
    try:
        known = pwd.getpwnam(user) if user else None
        gid = grp.getgrnam(group).gr_gid if group else known.pw_gid if known else -1
    except KeyError:
        return  # the first worker says so, with the user's name
    uid = known.pw_uid if known else -1
    os.chown(path, uid, gid, follow_symlinks=False)
    if path.is_dir() and not path.is_symlink():
        for directory, directories, files in os.walk(path):
            for name in (*directories, *files):
                os.chown(os.path.join(directory, name), uid, gid, follow_symlinks=False)


def _discard(path: Path) -> None:
    try:
        is_directory = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if is_directory:
        tree.remove(path)
    else:
        path.unlink()
