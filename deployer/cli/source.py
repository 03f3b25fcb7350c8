"""Tells what a person means by SOURCE: a directory, a git repository, an archive, or a version of a package.

Paths are made absolute here: the manager, which reads them, has its own working directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deployer.config.package import is_pinned
from deployer.errors import UsageError

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ARCHIVE = re.compile(r".+\.(tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz|zip)(\?.*)?$", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SCP = re.compile(r"^[\w.-]+@[\w.-]+:")


@dataclass(frozen=True)
class Source:
    """The source fields of a DeployRequest; all empty means [source] of deployer.toml."""

    path: str | None = None
    git: str | None = None
    ref: str | None = None
    artifact: str | None = None
    sha256: str | None = None
    package: str | None = None


def classify(
    source: str | None, path: Path | None, git: str | None, ref: str | None, sha256: str | None = None
) -> Source:
    """One source out of what was given on the command line; refuses two, and options of another kind of source."""
    given = [name for name, value in (("SOURCE", source), ("--path", path), ("--git", git)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} both name a source", hint="deployer deploy --help")
    if path is not None and ref is not None:
        raise UsageError(
            "--ref goes with a git repository, not with --path", hint=f"deployer deploy --git {path} --ref {ref}"
        )
    if sha256 is not None and (source is None or not _is_archive(source)):
        raise UsageError("--sha256 goes with an archive", hint="deployer deploy shop.tar.gz --sha256 DIGEST")
    if path is not None:
        return Source(path=_directory(path))
    if git is not None:
        return Source(git=_repository(git), ref=ref)
    return Source(ref=ref) if source is None else _guess(source, ref, sha256)


def _guess(source: str, ref: str | None, sha256: str | None) -> Source:
    if is_pinned(source) and not Path(source).exists():
        return Source(package=_without_ref(source, ref, "a package"))
    if _is_archive(source):
        return _archive(_without_ref(source, ref, "an archive"), sha256)
    if is_remote(source):
        return Source(git=source, ref=ref)
    directory = Path(_directory(Path(source)))
    if source.endswith(".git") or is_bare(directory):
        return Source(git=str(directory), ref=ref)
    if ref is None:
        return Source(path=str(directory))
    if not (directory / ".git").exists():
        raise UsageError(f"--ref: {source} is no git repository", hint=f"deployer deploy {source}")
    return Source(git=str(directory), ref=ref)


def _is_archive(source: str) -> bool:
    """By its name; a directory that is called so is a directory."""
    if not _ARCHIVE.fullmatch(source) or _SCP.match(source):
        return False
    return source.startswith(("https://", "http://")) or not (_URL.match(source) or Path(source).is_dir())


def _archive(source: str, sha256: str | None) -> Source:
    if sha256 is not None and _SHA256.fullmatch(sha256) is None:
        raise UsageError("--sha256: not 64 hexadecimal digits", hint="sha256sum FILE")
    if _URL.match(source):
        if sha256 is None:
            raise UsageError(
                "an archive from a URL needs --sha256",
                cause="what comes from elsewhere is deployed only when it is known byte for byte",
                hint=f"deployer deploy {source} --sha256 DIGEST",
            )
        return Source(artifact=source, sha256=sha256)
    file = Path(source).expanduser().absolute()
    if not file.is_file():
        raise UsageError(f"{file}: no such file", hint="deployer pack -o shop.tar.gz")
    return Source(artifact=str(file.resolve()), sha256=sha256)


def _without_ref(source: str, ref: str | None, kind: str) -> str:
    if ref is not None:
        raise UsageError(f"--ref goes with a git repository, {source} is {kind}", hint=f"deployer deploy {source}")
    return source


def is_remote(text: str) -> bool:
    return bool(_URL.match(text) or _SCP.match(text))


def is_bare(directory: Path) -> bool:
    return (directory / "HEAD").is_file() and (directory / "objects").is_dir() and (directory / "refs").is_dir()


def _repository(git: str) -> str:
    return git if is_remote(git) else _directory(Path(git))


def _directory(path: Path) -> str:
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise UsageError(
            f"{path}: {'not a directory' if path.exists() else 'no such directory'}", hint="deployer deploy ."
        )
    return str(path.resolve())
