"""A tar or zip, from a file or over https: what CI built once, unpacked the same way everywhere.

No directory is stripped: what lies at the top of the archive lies at the top of the release, as `deployer pack` makes
it. An archive that holds one directory and nothing else is unpacked like that too, and told about.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import msgspec

from deployer.errors import SourceError
from deployer.paths import Layout
from deployer.releases.digest import Summary
from deployer.releases.request import Artifact
from deployer.releases.sources.base import Exclude, Origin, Progress, shown
from deployer.releases.sources.download import download
from deployer.releases.sources.limits import Limits
from deployer.releases.sources.tarfiles import unpack_tar
from deployer.releases.sources.tokens import Secret
from deployer.releases.sources.writer import TreeWriter
from deployer.releases.sources.zipfiles import unpack_zip

MANIFEST = ".deployer-artifact.json"
MANIFEST_MAX = 64 << 20
CHUNK = 1 << 20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def extract(
    source: Artifact, base: Path, layout: Layout, writer: TreeWriter, progress: Progress
) -> tuple[Origin, Summary]:
    """Fill the empty tree of `writer`. Raises SourceError, and OSError for the disk written to."""
    secret = Secret(source.location, "artifact")
    if "://" in source.location:
        file, digest = download(secret, layout.releases, progress)
    else:
        file = _open(Path(os.path.normpath(base / os.path.expanduser(source.location))))
        digest = _digest(file)
    with file:
        _verify(secret.shown, source.sha256, digest)
        progress(f"unpacking {secret.shown}")
        limits = Limits(os.fstat(file.fileno()).st_size, secret.shown)
        _unpack(file, secret.shown, writer, Exclude(source.exclude), limits)
    outside = writer.link_that_leaves()
    if outside is not None:
        raise limits.refusal(outside, "is a link that leaves the release by way of others")
    only = writer.only_directory()
    if only is not None:
        progress(f"all of it lies in {shown(only)}/, which stays: artifacts of `deployer pack` have no such directory")
    told = _manifest(writer)
    summary = writer.seal()
    if told and not source.exclude and told.get("tree_digest") != summary.digest:
        raise SourceError(
            f"{secret.shown} does not hold what its {MANIFEST} says",
            cause=f"its tree digest is {summary.digest}, there it is {told.get('tree_digest')}",
            hint="make it again: deployer pack",
        )
    origin = Origin(
        description=f"artifact {secret.shown}",
        commit=_text(told, "commit"),
        subject=_text(told, "subject"),
        author=_text(told, "author"),
        ref=_text(told, "ref"),
    )
    return origin, summary


def _open(path: Path) -> IO[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115  # the caller closes it
    except OSError as error:
        raise SourceError(
            f"cannot read the artifact {shown(str(path))}",
            cause=error.strerror,
            hint="set `artifact` in [source], or run: deployer deploy FILE.tar.gz",
        ) from error
    return file


def _digest(file: IO[bytes]) -> str:
    value = hashlib.sha256()
    while chunk := file.read(CHUNK):
        value.update(chunk)
    file.seek(0)
    return value.hexdigest()


def _verify(location: str, expected: str | None, found: str) -> None:
    if expected is None and "://" in location:
        raise SourceError(
            f"{location} has no `sha256` to compare it with",
            cause="what comes from elsewhere is deployed only when it is known byte for byte",
            hint="write sha256 in [source], or --sha256 DIGEST: `deployer pack` prints it",
        )
    if expected is not None and expected.lower() != found:
        raise SourceError(
            f"{location} is not the artifact that was meant",
            cause=f"its sha256 is {found}, `sha256` says {expected.lower()}",
            hint="build it once, deploy that file: deployer pack",
        )


def _unpack(file: IO[bytes], location: str, writer: TreeWriter, exclude: Exclude, limits: Limits) -> None:
    try:
        if os.pread(file.fileno(), 4, 0) in (b"PK\3\4", b"PK\5\6"):
            unpack_zip(file, writer, exclude, limits)
        else:
            unpack_tar(file, writer.into, writer, exclude, limits)
    except _DAMAGED as error:
        raise _damaged(location, error) from error
    except OSError as error:
        if error.errno is None:  # what gzip and bz2 raise for bad data
            raise _damaged(location, error) from error
        raise


def _damaged(location: str, error: Exception) -> SourceError:
    return SourceError(
        f"{location} is no tar or zip, or it is damaged",
        cause=shown(str(error)) or type(error).__name__,
        hint="known are .tar, .tar.gz, .tar.bz2, .tar.xz and .zip",
    )


def _manifest(writer: TreeWriter) -> dict[str, Any]:
    """What `deployer pack` wrote down. It is about the tree, and no part of it."""
    path = writer.into / MANIFEST
    try:
        if path.is_symlink() or path.stat().st_size > MANIFEST_MAX:
            return {}
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        writer.remove(MANIFEST)
        return told
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def _text(told: dict[str, Any], key: str) -> str | None:
    value = told.get(key)
    return value if isinstance(value, str) else None
