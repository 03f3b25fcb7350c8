"""Unpacks one commit of a mirror, below a directory of the new release."""

from __future__ import annotations

from dataclasses import dataclass

from deployer.errors import SourceError
from deployer.releases.sources.base import Exclude, check_path, shown
from deployer.releases.sources.gitcommand import GitFailedError
from deployer.releases.sources.lfs import POINTER_MAX, Pointers
from deployer.releases.sources.mirror import Mirror
from deployer.releases.sources.remote import Remote
from deployer.releases.sources.tarstream import members
from deployer.releases.sources.writer import TreeWriter

SHORT = 9  # digits of a commit id for people


@dataclass(frozen=True)
class Tree:
    """A commit and where its files go: "" is the top of the release."""

    mirror: Mirror
    remote: Remote
    commit: str
    prefix: str

    def path(self, inside: str) -> str:
        return f"{self.prefix}/{inside}" if self.prefix else inside


def unpack(tree: Tree, writer: TreeWriter, exclude: Exclude, pointers: Pointers) -> None:
    """`git archive` as it comes: memory grows neither with the tree nor with its largest file. All files are ours
    (git archive says root), so that root and others stage alike; links to absolute paths stay as they are."""
    try:
        with tree.mirror.git.stream("archive", "--format=tar", tree.commit) as stream:
            for member in members(stream):
                path = tree.path(member.path)
                check_path(path, f"commit {tree.commit[:SHORT]}")
                if exclude.covers(path, directory=member.kind == "directory"):
                    _pass_over(stream.read, member.size)
                elif member.kind == "directory":
                    writer.directory(path)
                elif member.kind == "link":
                    writer.link(path, member.target)
                elif member.size <= POINTER_MAX:
                    data = stream.read(member.size)
                    with pointers.content(data, path, tree) as (size, read):
                        writer.file(path, member.executable, member.mtime, size, read)
                else:
                    writer.file(path, member.executable, member.mtime, member.size, stream.read)
    except GitFailedError as error:
        what = f"cannot export commit {tree.commit[:SHORT]}" + (f" of {shown(tree.prefix)}" if tree.prefix else "")
        raise SourceError(what, cause=error.cause) from error


def _pass_over(read: object, size: int) -> None:
    assert callable(read)
    while size:
        data = read(min(size, 1 << 20))
        if not data:
            return  # cut short: the next header tells
        size -= len(data)
