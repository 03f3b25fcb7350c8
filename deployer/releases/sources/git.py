"""A commit of a git repository, by URL or path: mirrored in ROOT, exported without its history."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from deployer.errors import SourceError
from deployer.paths import Layout
from deployer.releases.request import Git
from deployer.releases.sources.base import Exclude, Origin, Progress, shown
from deployer.releases.sources.gitcommand import GitCommand
from deployer.releases.sources.gittree import SHORT, Tree, unpack
from deployer.releases.sources.lfs import Pointers
from deployer.releases.sources.mirror import Mirror
from deployer.releases.sources.refs import Resolved, check_name, fetch_ref
from deployer.releases.sources.remote import explained, locate
from deployer.releases.sources.submodules import add_submodules
from deployer.releases.sources.writer import TreeWriter

NAMED_FILES = 5


def export(source: Git, base: Path, layout: Layout, writer: TreeWriter, progress: Progress) -> Origin:
    """Fill the empty tree of `writer` with the commit's files. Raises SourceError, and OSError for the disk."""
    check_name(source.ref)
    remote = locate(source.url, base)
    mirror = Mirror(layout.mirror, remote.url)
    with explained(remote):
        if remote.path is not None:
            _check_local(remote.path, layout.root)
        progress(f"fetching {remote.shown}")
        resolved = fetch_ref(mirror, remote, None if source.ref == "HEAD" else source.ref, progress)
    subject, author = _describe(mirror.git, resolved)
    progress(f"exporting {resolved.commit[:SHORT]} {subject}")
    pointers = Pointers(source.lfs)
    tree = Tree(mirror, remote, resolved.commit, "")
    unpack(tree, writer, Exclude(source.exclude), pointers)
    if source.submodules:
        add_submodules(tree, layout, writer, Exclude(source.exclude), pointers, progress)
    pointers.refuse()
    return Origin(
        description=f"git {remote.shown}",
        commit=resolved.commit,
        subject=subject,
        author=author,
        ref=resolved.ref,
    )


def _check_local(path: Path, root: Path) -> None:
    """A repository on this machine must be one, and its work tree must hold nothing that would not be deployed."""
    if not path.is_dir():
        raise SourceError(
            f"the repository {shown(str(path))} does not exist",
            cause="no such directory",
            hint="set `git` in [source] of deployer.toml to a URL or an existing path",
        )
    git = GitCommand(path, ceiling=path.resolve().parent)
    if git.check("rev-parse", "--is-inside-work-tree").text != "true":
        return
    top = Path(os.fsdecode(git.check("rev-parse", "--show-toplevel").stdout.removesuffix(b"\n")))
    arguments = ["status", "--porcelain=v1", "-z", "--untracked-files=normal", "--", "."]
    if root.resolve().is_relative_to(top):  # ROOT is ours: its files are no change of the user's
        arguments.append(f":(exclude,top,literal){root.resolve().relative_to(top)}")
    files = _changed_files(git.check(*arguments).stdout)
    if files:
        raise _dirty(path, files)


def _changed_files(status: bytes) -> list[str]:
    """Names out of `status -z`: "XY name", and after a rename one more field with the old name."""
    names = []
    fields = iter(status.split(b"\0"))
    for field in fields:
        if not field:
            continue
        names.append(shown(os.fsdecode(field[3:])))
        if field[:1] in (b"R", b"C"):
            next(fields, None)
    return names


def _dirty(path: Path, files: list[str]) -> SourceError:
    more = f" and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else ""
    return SourceError(
        f"the work tree of {shown(str(path))} has changes that are not committed",
        cause=", ".join(files[:NAMED_FILES]) + more,
        hint=f"commit them, or deploy the files as they are: deployer deploy --path {shlex.quote(shown(str(path)))}",
    )


def _describe(git: GitCommand, resolved: Resolved) -> tuple[str, str]:
    """Subject and author of the commit."""
    shown_as = "--format=%s%x00%an"
    text = git.check("log", "-1", "--no-color", "--encoding=UTF-8", shown_as, resolved.commit, "--").text
    subject, _, author = text.partition("\0")
    return subject, author
