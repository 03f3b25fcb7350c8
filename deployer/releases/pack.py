"""Makes an artifact of a directory: the same tree gives the same bytes, whoever packs it and when.

A .tar.gz with its files at the top (no directory around them), sorted, owned by 0, dated by the commit, or 0 where
there is none. `.deployer-artifact.json` in it says what it is; the tree digest there is what a release that is made of
it must have.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deployer.errors import DeniedError
from deployer.osutil.files import write_atomic
from deployer.releases.digest import Summary, walk
from deployer.releases.index import IndexWriter
from deployer.releases.links import Previous
from deployer.releases.request import Directory
from deployer.releases.sources import directory
from deployer.releases.sources.artifact import MANIFEST
from deployer.releases.sources.base import Progress
from deployer.releases.sources.credentials import mask

GIT_TIMEOUT_S = 60.0
CHUNK = 1 << 20


class Manifest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What `.deployer-artifact.json` says. Nothing of the machine that packed is in it: it is the same anywhere."""

    name: str
    source: str  # the repository's URL, or the directory's name
    tree_digest: str
    files: int
    bytes: int
    commit: str | None = None
    subject: str | None = None
    author: str | None = None
    ref: str | None = None
    changed: bool = False  # the work tree was not what the commit says
    format: int = 1


@dataclass(frozen=True)
class Packed:
    file: Path
    sha256: str
    manifest: Manifest


def pack(source: Directory, root: Path, name: str, output: Path | None, progress: Progress) -> Packed:
    """Pack the directory `source.path`, without what a deploy of it would leave out, into `output`; the digest goes
    beside it as `output`.sha256. Raises SourceError, DeniedError."""
    path = Path(source.path)
    commit = _commit(path)
    with tempfile.TemporaryDirectory(prefix="deployer-pack-") as temporary:
        tree = Path(temporary) / "tree"
        tree.mkdir()
        index = IndexWriter(Path(temporary) / "index")
        previous = Previous(None, may_link=False, shared=[])
        own = [f"/{name}-*.tar.gz", f"/{name}-*.tar.gz.sha256", f"/{MANIFEST}", *_inside(output, path)]
        taken = msgspec.structs.replace(source, exclude=[*source.exclude, *own])
        # ROOT need not be there, on a build machine it is not.
        left_out = root if root.is_dir() else Path(temporary)
        try:
            _, summary = directory.copy(taken, path, left_out, tree, index, previous, progress)
        finally:
            index.close()
        manifest = _manifest(name, path, commit, summary)
        version = (commit.id if commit else summary.digest)[:9] + ("-changed" if manifest.changed else "")
        file = output or Path.cwd() / f"{name}-{version}.tar.gz"
        try:
            digest = _write(tree, manifest, commit.time if commit else 0, file)
            write_atomic(file.with_name(f"{file.name}.sha256"), f"{digest}  {file.name}\n".encode(), 0o644)
        except OSError as error:
            raise DeniedError(f"{file} cannot be written", cause=error.strerror) from error
    return Packed(file, digest, manifest)


@dataclass(frozen=True)
class _Commit:
    id: str
    time: int
    subject: str
    author: str


def _inside(output: Path | None, path: Path) -> list[str]:
    """The artifact itself is no part of what is packed."""
    if output is None or not output.absolute().is_relative_to(path):
        return []
    relative = output.absolute().relative_to(path)
    return [f"/{relative}", f"/{relative}.sha256"]


def _commit(path: Path) -> _Commit | None:
    told = _git(path, "log", "-1", "--no-show-signature", "--encoding=UTF-8", "--format=%H%x00%ct%x00%s%x00%an")
    if told is None or told.count("\0") != 3:
        return None
    commit, time, subject, author = told.split("\0")
    return _Commit(commit, int(time), subject, author)


def _manifest(name: str, path: Path, commit: _Commit | None, summary: Summary) -> Manifest:
    url = _git(path, "config", "--get", "remote.origin.url") if commit else None
    branch = _git(path, "symbolic-ref", "--short", "--quiet", "HEAD") if commit else None
    return Manifest(
        name=name,
        source=mask(url) if url else path.name,
        tree_digest=summary.digest,
        files=summary.files,
        bytes=summary.bytes,
        commit=commit.id if commit else None,
        subject=commit.subject if commit else None,
        author=commit.author if commit else None,
        ref=branch or None,
        changed=bool(commit and _git(path, "status", "--porcelain", "--untracked-files=normal", "--", ".")),
    )


def _git(path: Path, *arguments: str) -> str | None:
    """What git says of the directory; None where there is no repository, or no git."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(path), *arguments]
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, env=env, timeout=GIT_TIMEOUT_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").rstrip("\n") if done.returncode == 0 else None


def _write(tree: Path, manifest: Manifest, time: int, file: Path) -> str:
    """Written aside and renamed: there is never half an artifact of that name. Its sha256."""
    aside = file.with_name(f".{file.name}.partial")
    try:
        with open(aside, "wb") as raw:
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                _fill(tree, manifest, time, packed)
            raw.flush()
            os.fsync(raw.fileno())
        value = hashlib.sha256()
        with open(aside, "rb") as raw:
            while chunk := raw.read(CHUNK):
                value.update(chunk)
        aside.rename(file)
        return value.hexdigest()
    finally:
        aside.unlink(missing_ok=True)


def _fill(tree: Path, manifest: Manifest, time: int, packed: gzip.GzipFile) -> None:
    with tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        archive.addfile(_member(MANIFEST, time, size=len(text)), io.BytesIO(text))
        for relative, entry in walk(os.fsencode(tree)):
            name = os.fsdecode(relative)
            if entry.is_symlink():
                member = _member(name, time)
                member.type, member.linkname, member.mode = tarfile.SYMTYPE, os.fsdecode(os.readlink(entry.path)), 0o777
                archive.addfile(member)
            elif entry.is_dir(follow_symlinks=False):
                member = _member(name, time)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                found = entry.stat(follow_symlinks=False)
                member = _member(name, time, size=found.st_size)
                member.mode = 0o755 if found.st_mode & 0o100 else 0o644
                with open(entry.path, "rb") as content:
                    archive.addfile(member, content)
            archive.members = []  # type: ignore[attr-defined]  # it would keep every member it has seen


def _member(name: str, time: int, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, time, 0o644
    return member
