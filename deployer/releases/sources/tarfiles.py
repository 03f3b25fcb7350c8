"""Unpacks a tar that a stranger may have made: the standard library reads it and its data filter judges each member;
what is written goes through the TreeWriter."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
from pathlib import Path
from typing import IO, Protocol

from deployer.releases.sources.base import Exclude
from deployer.releases.sources.limits import Limits
from deployer.releases.sources.writer import TreeWriter

HEADERS_MAX = 4 << 20
"""Bytes that one member's headers may take: tarfile holds them in memory."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Metered:
    """The unpacked stream. Between two members it gives no more than headers take."""

    def __init__(self, stream: _Readable, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._left: int | None = None
        self.member = "its first header"

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._limits.add(self.member, len(data))
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise self._limits.refusal(self.member, "is followed by a header that has no end")
        return data

    def expect_headers(self) -> None:
        self._left = HEADERS_MAX

    def expect_content(self) -> None:
        self._left = None


def unpack_tar(file: IO[bytes], into: Path, writer: TreeWriter, exclude: Exclude, limits: Limits) -> None:
    """Raises SourceError, and tarfile.TarError, EOFError, lzma.LZMAError, zlib.error or OSError for a damaged one."""
    metered = _Metered(_decompressed(file), limits)
    metered.expect_headers()  # `open` reads the first one
    with tarfile.open(fileobj=metered, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
        while True:
            metered.expect_headers()
            member = archive.next()
            if member is None:
                return
            archive.members = []  # it would keep every member it has seen
            metered.member = member.name
            metered.expect_content()
            _unpack_member(archive, member, into, writer, exclude, limits)


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path, writer: TreeWriter, exclude: Exclude, limits: Limits
) -> None:
    path = limits.path(member.name)
    if member.isdev():
        raise limits.refusal(member.name, f"is {_kind(member)}")
    if member.islnk():
        target = limits.path(member.linkname)
    elif member.issym():
        limits.link(path, member.linkname)
    try:
        tarfile.data_filter(member, str(into))
    except tarfile.FilterError as error:
        raise limits.refusal(member.name, f"is refused by Python's data filter ({error})") from error
    if not path or exclude.covers(path, directory=member.isdir()):
        return
    if member.isdir():
        writer.directory(path)
    elif member.issym():
        writer.link(path, member.linkname)
    elif member.islnk():
        if not writer.copy(path, target):
            raise limits.refusal(member.name, f"is a link to {target}, which does not come before it")
    else:
        content = archive.extractfile(member)
        assert content is not None
        writer.file(path, bool(member.mode & 0o100), member.mtime, member.size, content.read)


def _kind(member: tarfile.TarInfo) -> str:
    return "a fifo" if member.isfifo() else "a device"


def _decompressed(file: IO[bytes]) -> _Readable:
    start = os.pread(file.fileno(), 6, 0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file, mode="rb")
    if start.startswith(b"BZh"):
        return bz2.BZ2File(file, "rb")
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(file, "rb")
    return file
