"""Submodules, as deep as they go: each repository mirrored under ROOT/mirrors, the commit that the tree pins exported.

git's own `submodule update` needs a work tree and asks for nothing to be trusted; here no path is written but
through the TreeWriter, and a repository from elsewhere may not name one of this machine.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployer.errors import SourceError
from deployer.paths import Layout
from deployer.releases.sources.base import Exclude, Progress, shown
from deployer.releases.sources.gittree import SHORT, Tree, unpack
from deployer.releases.sources.lfs import Pointers
from deployer.releases.sources.mirror import Mirror
from deployer.releases.sources.remote import Remote, explained, locate
from deployer.releases.sources.writer import TreeWriter

DEPTH_MAX = 10
"""Submodules in submodules: deeper is a repository that holds itself."""


@dataclass(frozen=True)
class _Link:
    path: str
    commit: str


def add_submodules(
    tree: Tree, layout: Layout, writer: TreeWriter, exclude: Exclude, pointers: Pointers, progress: Progress
) -> None:
    """Fill every submodule's directory. Raises SourceError that names the submodule."""
    pending = [(tree, 0)]
    while pending:
        parent, depth = pending.pop()
        known = _gitmodules(parent)
        for link in _links(parent) if known else ():
            path = parent.path(link.path)
            if exclude.covers(path, directory=True):
                continue
            url = known.get(link.path)
            if url is None:
                progress(
                    f"{shown(path)} stays empty: a submodule that .gitmodules does not name, or with update = none"
                )
                continue
            if depth >= DEPTH_MAX:
                raise SourceError(f"submodules are nested deeper than {DEPTH_MAX}", cause=f"at {shown(path)}")
            child = _fetch(parent, link, url, layout, progress)
            unpack(child, writer, exclude, pointers)
            pending.append((child, depth + 1))


def _fetch(parent: Tree, link: _Link, url: str, layout: Layout, progress: Progress) -> Tree:
    path = parent.path(link.path)
    remote = _locate(parent, url, path)
    mirror = Mirror(layout.submodule_mirror(hashlib.sha256(remote.url.encode()).hexdigest()[:16]), remote.url)
    progress(f"fetching {remote.shown} for {shown(path)}")
    try:
        with explained(remote):
            mirror.path.parent.mkdir(exist_ok=True)
            found = mirror.have_commit(link.commit, progress, shallow=remote.is_url)
    except SourceError as error:
        error.what = f"submodule {shown(path)}: {error.what}"
        raise
    if not found:
        raise SourceError(
            f"submodule {shown(path)}: {remote.shown} has no commit {link.commit[:SHORT]}",
            cause="no branch or tag reaches it: was it pushed?",
            hint=f"git -C {shown(path)} push",
        )
    return Tree(mirror, remote, link.commit, path)


def _locate(parent: Tree, url: str, path: str) -> Remote:
    remote = locate(_absolute(parent.remote.url, url), Path("/"))
    if remote.path is not None and parent.remote.path is None:
        raise SourceError(
            f"submodule {shown(path)} names a repository of this machine: {remote.shown}",
            cause=f"{parent.remote.shown} is elsewhere and may not choose what of this machine is deployed",
            hint=f"git config -f .gitmodules submodule.{shown(path)}.url URL",
        )
    return remote


def _absolute(parent: str, url: str) -> str:
    """git resolves "./x" and "../x" against the parent's URL; scp-like ones (host:path) too."""
    if not url.startswith(("./", "../")):
        return url
    head, separator, tail = parent.partition("://")
    if separator:
        host, _, path = tail.partition("/")
        return f"{head}://{host}{posixpath.normpath(posixpath.join('/' + path, url))}"
    if not parent.startswith("/") and ":" in parent:
        host, _, path = parent.partition(":")
        return f"{host}:{posixpath.normpath(posixpath.join(path, url))}"
    return posixpath.normpath(posixpath.join(parent, url))


def _gitmodules(tree: Tree) -> dict[str, str]:
    """URL by path; without those that say update = none."""
    listed = tree.mirror.git.run("config", "-z", f"--blob={tree.commit}:.gitmodules", "--list")
    if listed.status != 0:
        return {}  # there is none
    sections: dict[str, dict[str, str]] = {}
    for item in listed.stdout.decode("utf-8", "surrogateescape").split("\0"):
        key, _, value = item.partition("\n")
        if key.startswith("submodule."):
            name, _, field = key.removeprefix("submodule.").rpartition(".")
            sections.setdefault(name, {})[field] = value
    return {
        posixpath.normpath(fields["path"]): fields["url"]
        for fields in sections.values()
        if "path" in fields and "url" in fields and fields.get("update") != "none"
    }


def _links(tree: Tree) -> Iterator[_Link]:
    """Where the tree pins a commit of another repository."""
    listed = tree.mirror.git.check("ls-tree", "-r", "-z", "--full-tree", tree.commit).stdout
    for item in listed.split(b"\0"):
        if item.startswith(b"160000 "):
            described, _, path = item.partition(b"\t")
            yield _Link(os.fsdecode(path), described.split()[2].decode())
