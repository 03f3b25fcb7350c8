"""`releases/vN/.deployer.json`: what the release is and what it was made from, for people and for scripts.

The last file that staging writes. No secrets: it is readable by all, as the release is.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deployer import __version__
from deployer.releases import digest, settings
from deployer.releases.request import StageResult

if TYPE_CHECKING:
    from deployer.releases.python import Environment

NAME = digest.MANIFEST


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Unknown fields are ignored: a release may have been staged by a newer deployer."""

    release: str
    source: str
    ref: str | None
    commit: str | None
    subject: str | None
    author: str | None
    tree_digest: str
    files: int
    bytes: int
    lock_file: str | None
    lock_digest: str | None
    interpreter: str | None
    environment: str | None  # a name in ROOT/envs
    environment_keys: list[str]  # the variables that its workers get; their values are secrets
    config: dict[str, Any]
    warnings: list[str]
    staged_at: float  # seconds since the epoch
    deployer: str  # version
    unindexed: list[str] | None = None
    """Links of the source, and its directories without a file, before a build made more of them; None: there was no
    build."""


def write(
    result: StageResult, environment: Environment | None, directory: Path, unindexed: list[str] | None = None
) -> None:
    """Raises OSError."""
    manifest = Manifest(
        release=result.name,
        source=result.source,
        ref=result.ref,
        commit=result.commit,
        subject=result.subject,
        author=result.author,
        tree_digest=result.tree_digest,
        files=result.files,
        bytes=result.bytes,
        lock_file=environment.lock.name if environment else None,
        lock_digest=environment.lock.digest if environment else None,
        interpreter=str(environment.interpreter) if environment else None,
        environment=result.environment,
        environment_keys=sorted(result.env),
        config=settings.shown(result.config),
        warnings=result.warnings,
        staged_at=round(time.time(), 3),
        deployer=__version__,
        unindexed=unindexed,
    )
    _write(directory / NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def _write(path: Path, data: bytes) -> None:
    """Nobody reads it before the release is whole, and brought to the disk with the rest of it. A file of this name in
    the source may be another release's as well."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as file:
        os.fchmod(file.fileno(), 0o644)  # whatever the umask
        file.write(data)


def read(directory: Path) -> Manifest | None:
    """None where there is none, as in a release of an earlier deployer."""
    try:
        return msgspec.json.decode((directory / NAME).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
