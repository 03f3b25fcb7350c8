"""env_files that lie where a release is made from: they hold secrets, and a release can be read by all."""

from __future__ import annotations

import filecmp
import glob
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from deployer.config.model import Config
from deployer.releases.request import Directory
from deployer.releases.sources.base import Progress, shown


def leave_out(
    source: Directory, config: Config, base: Path, root: Path, tell: Progress, *, shared: Collection[str] = ()
) -> Directory:
    """The directory without the env_files of `config` that lie in it, through whatever link they are named.

    ROOT is no part of it anyway. What is `shared` does not stay in a release: it is moved to ROOT/shared.
    """
    top, root = _real(base / os.path.expanduser(source.path)), _real(root)
    patterns = []
    for file in _files(config, base):
        if not file.is_relative_to(top) or file.is_relative_to(root):
            continue
        relative = str(file.relative_to(top))
        if not _is_shared(relative, shared):
            tell(f"left out {shown(relative)}: it is an env_file")
            patterns.append(f"/{glob.escape(relative)}")
    return msgspec.structs.replace(source, exclude=[*source.exclude, *patterns])


def committed(config: Config, base: Path, repository: str, tree: Path) -> list[str]:
    """A warning for each env_file that the repository holds as it is: what is committed is taken."""
    tops = {_real(base), _real(base / os.path.expanduser(repository))}
    found = {
        str(file.relative_to(top))
        for file in _files(config, base)
        for top in tops
        if file.is_relative_to(top) and _is_same(file, tree / file.relative_to(top))
    }
    return [
        f"env_file {shown(path)} is committed, so that every release holds it: git rm --cached {shown(path)}"
        for path in sorted(found)
        if not _is_shared(path, config.release.shared)
    ]


def _files(config: Config, base: Path) -> Iterator[Path]:
    return (_real(base / name) for name in config.worker.env_file)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_shared(relative: str, shared: Collection[str]) -> bool:
    return any(Path(relative).is_relative_to(os.path.normpath(path)) for path in shared)


def _is_same(file: Path, copy: Path) -> bool:
    try:
        return not copy.is_symlink() and filecmp.cmp(file, copy, shallow=False)
    except OSError:
        return False
