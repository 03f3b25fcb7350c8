"""Unpacks a zip that a stranger may have made. The standard library has no filter for zips: each rule is here."""

from __future__ import annotations

import calendar
import stat
import zipfile
from typing import IO

from deployer.releases.sources.base import Exclude
from deployer.releases.sources.limits import MEMBERS_MAX, Limits
from deployer.releases.sources.writer import TreeWriter

TARGET_MAX = 4096  # bytes of a link's target
UNIX = 3  # "made by": then the upper half of the attributes are a mode
_FILE_KINDS = {stat.S_IFREG, 0}


def unpack_zip(file: IO[bytes], writer: TreeWriter, exclude: Exclude, limits: Limits) -> None:
    """Raises SourceError, and zipfile.BadZipFile, zlib.error, EOFError or NotImplementedError for a damaged one."""
    with zipfile.ZipFile(file) as archive:
        if len(archive.filelist) > MEMBERS_MAX:
            raise limits.refusal(archive.filelist[MEMBERS_MAX].filename, f"is one of more than {MEMBERS_MAX:,} members")
        for info in archive.filelist:
            _unpack_member(archive, info, writer, exclude, limits)


def _unpack_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, writer: TreeWriter, exclude: Exclude, limits: Limits
) -> None:
    # `filename` was cut at a NUL: what the archive says is what is judged.
    path = limits.path(info.orig_filename.replace("\\", "/") if info.create_system == 0 else info.orig_filename)
    mode = info.external_attr >> 16 if info.create_system == UNIX else 0
    if info.flag_bits & 0x1:
        raise limits.refusal(info.filename, "is encrypted")
    is_link = stat.S_ISLNK(mode)
    if not is_link and not info.is_dir() and stat.S_IFMT(mode) not in _FILE_KINDS:
        raise limits.refusal(info.filename, "is no file: " + stat.filemode(mode))
    if not path or exclude.covers(path, directory=info.is_dir()):
        return
    if info.is_dir():
        writer.directory(path)
        return
    with archive.open(info) as content:
        if is_link:
            target = content.read(TARGET_MAX + 1)
            if len(target) > TARGET_MAX:
                raise limits.refusal(info.filename, "is a link whose target has no end")
            writer.link(path, limits.link(path, target.decode("utf-8", "surrogateescape")))
            return

        def read(count: int) -> bytes:
            data = content.read(count)
            limits.add(path, len(data))
            return data

        mtime = calendar.timegm((*info.date_time, 0, 0, 0))
        writer.file(path, bool(mode & 0o100), mtime, info.file_size, read)
        if content.read(1):  # also what makes zipfile compare the checksum
            raise limits.refusal(info.filename, "is larger than the archive's list says")
