"""What an archive may hold, whoever made it: everything else is refused by the member's name."""

from __future__ import annotations

import posixpath

from deployer.errors import SourceError
from deployer.releases.sources.base import shown
from deployer.units import format_size

BYTES_MAX = 16 << 30  # unpacked
MEMBERS_MAX = 500_000
RATIO_MAX = 200  # unpacked to packed; text compresses 5 to 30 times, zeros a thousand
RATIO_FROM = 64 << 20  # bytes below which no ratio is a danger
NAME_MAX = 255  # bytes of one part of a path, by the kernel


class Limits:
    """Counts while one archive is unpacked. Every method raises SourceError."""

    def __init__(self, packed: int, archive: str) -> None:
        self._packed = max(packed, 1)
        self._archive = archive
        self._bytes = 0
        self._members = 0

    def path(self, name: str) -> str:
        """The member's path in the release: relative, without "." and ".."; "" is the top itself."""
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise self.refusal(name, f"is one of more than {MEMBERS_MAX:,} members")
        if name.startswith("/"):
            raise self.refusal(name, "is an absolute path")
        parts = name.split("/")
        if ".." in parts:
            raise self.refusal(name, 'leaves the release by ".."')
        if "\0" in name or any(len(part.encode("utf-8", "surrogateescape")) > NAME_MAX for part in parts):
            raise self.refusal(name[:80], "is no name that a file can have")
        path = posixpath.normpath(name)
        return "" if path == "." else path

    def link(self, path: str, target: str) -> str:
        """The target, when its words stay in the release; `TreeWriter.link_that_leaves` looks at where it leads."""
        if target.startswith("/"):
            raise self.refusal(path, f"is a link to the absolute path {shown(target)}")
        leads = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if leads == ".." or leads.startswith("../"):
            raise self.refusal(path, f"is a link that leaves the release: {shown(target)}")
        return target

    def add(self, path: str, count: int) -> None:
        """So many bytes more come out of the archive, for this member."""
        self._bytes += count
        if self._bytes > BYTES_MAX:
            raise self.refusal(path, f"makes it more than {format_size(BYTES_MAX)} unpacked")
        if self._bytes > RATIO_FROM and self._bytes > self._packed * RATIO_MAX:
            raise self.refusal(path, f"unpacks to more than {RATIO_MAX} times what the archive holds (a bomb?)")

    def refusal(self, name: str, why: str) -> SourceError:
        return SourceError(
            f"the archive {self._archive} is refused", cause=f"{shown(name)} {why}", hint="make it by: deployer pack"
        )
