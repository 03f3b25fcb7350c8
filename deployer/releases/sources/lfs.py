"""Git LFS: a pointer is no file. Its content is fetched by git-lfs, or the deploy is refused with the files' names."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deployer.errors import SourceError
from deployer.releases.sources.base import shown
from deployer.releases.sources.gitcommand import TRANSFER_TIMEOUT_S, GitFailedError
from deployer.releases.sources.writer import Read

if TYPE_CHECKING:
    from deployer.releases.sources.gittree import Tree

POINTER_MAX = 1024  # bytes; by git-lfs's own specification
NAMED = 5

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:[a-z0-9.-]+ [^\n]*\n)*?oid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)


class Pointers:
    """The pointers of one release: their contents when `wanted`, else their names for the refusal."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._names: list[str] = []
        self._count = 0
        self._fetched: dict[str, str | None] = {}  # commit: what git-lfs complained of

    @contextmanager
    def content(self, data: bytes, path: str, tree: Tree) -> Iterator[tuple[int, Read]]:
        """Size and reader of what belongs at `path`: `data` itself, unless that is a pointer."""
        match = _POINTER.match(data) if data.startswith(b"version ") else None
        if match is None or not self._wanted:
            if match is not None:
                self._count += 1
                if len(self._names) < NAMED:
                    self._names.append(shown(path))
            yield len(data), io.BytesIO(data).read
            return
        oid, size = match[1].decode(), int(match[2])
        place = tree.mirror.path / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
        if not _is_whole(place, size):
            place.unlink(missing_ok=True)
            self._fetch(tree)
        try:
            with open(place, "rb") as file:
                yield os.fstat(file.fileno()).st_size, file.read
        except FileNotFoundError as error:
            raise SourceError(
                f"the LFS object of {shown(path)} cannot be had",
                cause=self._fetched[tree.commit] or f"git-lfs fetched no {oid[:12]} from {tree.remote.shown}",
                hint="push it there: git lfs push --all origin",
            ) from error

    def refuse(self) -> None:
        """Raises SourceError when a pointer would have been deployed in the place of its file."""
        if not self._count:
            return
        more = f" and {self._count - len(self._names)} more" if self._count > len(self._names) else ""
        raise SourceError(
            "the commit holds Git LFS pointers in the place of files",
            cause=", ".join(self._names) + more,
            hint="write lfs = true in [source], or leave them out with `exclude`",
        )

    def _fetch(self, tree: Tree) -> None:
        """All objects of the commit at once, into the mirror. Where some cannot be had, the first file that needs one
        is the refusal's: git-lfs names digests, and what it fetched may be all that this release takes."""
        if tree.commit in self._fetched:
            return
        if shutil.which("git-lfs") is None:
            raise SourceError(
                "git-lfs is not installed", cause="the source has lfs = true", hint="apt-get install git-lfs"
            )
        self._fetched[tree.commit] = None
        # Without the shared ssh connection, of which each run would leave an empty directory in /tmp.
        options = (f"remote.origin.url={tree.remote.url}", "lfs.ssh.autoMultiplex=false")
        arguments = (*(word for option in options for word in ("-c", option)), "lfs", "fetch", "origin", tree.commit)
        try:
            tree.mirror.git.check(*arguments, timeout_s=TRANSFER_TIMEOUT_S)
        except GitFailedError as error:
            self._fetched[tree.commit] = error.cause


def _is_whole(place: Path, size: int) -> bool:
    """A power cut may leave an object empty."""
    try:
        return place.stat().st_size == size
    except FileNotFoundError:
        return False
