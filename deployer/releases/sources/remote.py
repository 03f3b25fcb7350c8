"""Where a repository is, and what is said when git cannot get at it."""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deployer.errors import SourceError
from deployer.releases.sources.base import shown
from deployer.releases.sources.credentials import mask
from deployer.releases.sources.gitcommand import GitFailedError

_SCP_LIKE = re.compile(r"[^/:]+:.*")  # host:path, as git reads it: a colon before the first slash
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::.*")  # ext::command and other transports that run programs


@dataclass(frozen=True)
class Remote:
    """Where to fetch from; `path` when that is on this machine."""

    url: str
    path: Path | None

    @property
    def is_url(self) -> bool:
        """Whether git may fetch a part of the history from it; a path is copied or linked whole, which costs less."""
        return "://" in self.url or self.path is None

    @property
    def shown(self) -> str:
        return shown(mask(self.url))


def locate(url: str, base: Path) -> Remote:
    """Tell URLs from paths as git does; a path is taken from the directory of deployer.toml."""
    if url.startswith("-") or _HELPER.fullmatch(url) or not url.strip():
        raise SourceError(
            f"{url!r} is not a repository that deployer fetches from",
            cause="it would make git run a program or read an option",
            hint="use https://, ssh://, git@host:path or a path",
        )
    if url.startswith("file://"):
        return Remote(url, Path(unquote(urlsplit(url).path)))
    path = Path(os.path.normpath(base / os.path.expanduser(url)))
    if "://" in url or (_SCP_LIKE.fullmatch(url) and not path.exists()):
        return Remote(url, None)
    return Remote(str(path), path)


@contextmanager
def explained(remote: Remote) -> Iterator[None]:
    """Turn git's complaint into ours, with the next step."""
    try:
        yield
    except GitFailedError as error:
        raise _explain(remote, error) from error


def _explain(remote: Remote, error: GitFailedError) -> SourceError:
    if "dubious ownership" in error.stderr and remote.path is not None:
        return SourceError(
            f"git refuses the repository {remote.shown}: it belongs to another user",
            cause=f"owner {_owner(remote.path)}, deployer runs as {_user(os.geteuid())}",
            hint=_allow_command(remote.path),
        )
    if "Host key verification failed" in error.stderr:
        return _unknown_host(remote, error)
    if remote.path is not None and "not a git repository" in error.stderr:
        return SourceError(
            f"{remote.shown} is not a git repository",
            cause=error.cause,
            hint=f"to deploy it as a directory: deployer deploy --path {shlex.quote(remote.shown)}",
        )
    return SourceError(
        f"cannot fetch from {remote.shown}", cause=error.cause, hint=f"git ls-remote -- {shlex.quote(remote.shown)}"
    )


def _unknown_host(remote: Remote, error: GitFailedError) -> SourceError:
    """Nobody is there to be asked, as ssh would like; and to believe a key unseen is not for deployer to choose."""
    user = _user(os.geteuid())
    if "IDENTIFICATION HAS CHANGED" in error.stderr:
        return SourceError(
            f"cannot fetch from {remote.shown}",
            cause=f"{error.cause} Its key is not the one that {user} knows: another machine may be answering",
            hint="was it renewed? ask who runs the host, then remove the old key: ssh-keygen -R HOST",
        )
    return SourceError(
        f"cannot fetch from {remote.shown}",
        cause=f"{error.cause} {user} has not met this host before",
        hint=f"once, as {user}, comparing the fingerprint: git ls-remote -- {shlex.quote(remote.shown)}",
    )


def _allow_command(path: Path) -> str:
    """Both names: `git status` asks for the work tree's, the fetch for that of the .git directory in it."""
    allow = "git config --global --add safe.directory"
    parts = [path, path / ".git"] if (path / ".git").exists() else [path]
    return " && ".join(f"{allow} {shlex.quote(shown(str(part)))}" for part in parts)


def _owner(path: Path) -> str:
    return _user(path.stat().st_uid)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
