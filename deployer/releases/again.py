"""The live release once more, with its environment read anew (`deployer deploy --env-only`): no fetch, no build.

The tree is copied as it was built, each file for itself: what a worker of one release writes into its directory must
not show in the other, which is why nothing is linked here.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import msgspec

from deployer.config import environment, load
from deployer.config.model import Config
from deployer.errors import SourceError
from deployer.paths import Layout
from deployer.releases import manifest, settings
from deployer.releases.request import Again, StageRequest, StageResult


def plan(request: StageRequest, source: Again) -> tuple[Config, dict[str, str]]:
    """(configuration, variables): those of the release, but [worker] env and env_file as they are now."""
    layout, directory = Layout(Path(request.root)), Path(request.directory)
    original = layout.release(source.release)
    if not original.is_dir():
        raise SourceError(f"the files of {source.release} are gone", hint="deployer deploy")
    host = request.host_config
    # Where the source holds the host's own deployer.toml, the release's copy of it is the older of the two.
    own = source.source == f"path {directory}"
    fresh = (host if own else load.overlay(host, original / "deployer.toml")).worker
    worker = msgspec.structs.replace(source.config.worker, env=fresh.env, env_file=fresh.env_file)
    config = msgspec.structs.replace(source.config, worker=worker)
    return config, environment.freeze(config, directory)


def copy(source: Again, result: StageResult, layout: Layout, into: Path) -> None:
    """Fill the empty directory `into`, and say in its manifest what it is now. Raises OSError."""
    original = layout.release(source.release)
    shutil.copytree(original, into, symlinks=True, ignore=_special, dirs_exist_ok=True)
    known = manifest.read(original)
    if known is not None:
        manifest.save(
            msgspec.structs.replace(
                known,
                release=result.name,
                environment_keys=sorted(result.env),
                config=settings.shown(result.config),
                warnings=result.warnings,
                staged_at=round(time.time(), 3),
            ),
            into,
        )


def _special(directory: str, names: list[str]) -> set[str]:
    """Sockets and fifos that a worker made: they are its own."""
    return {name for name in names if not _copied(os.lstat(os.path.join(directory, name)).st_mode)}


def _copied(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
