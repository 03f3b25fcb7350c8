"""Reads what `git archive` writes, as it comes: 4 us a file, where tarfile takes 100.

Only for git's own output (ustar with pax headers); what a stranger made goes through tarfile and its filter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = 512
HEADER_MAX = 1 << 20  # bytes of one pax header: paths are at most 4096 long


class TruncatedError(Exception):
    """The stream ended in the middle, or is no tar."""


@dataclass(slots=True)
class Member:
    path: str
    kind: str  # file | link | directory
    executable: bool
    mtime: int
    size: int
    target: str


def members(stream: IO[bytes]) -> Iterator[Member]:
    """Each member; its content must be read from the stream, all of it, before the next one is asked for."""
    told: dict[bytes, bytes] = {}
    while True:
        header = _exactly(stream, BLOCK)
        if header[0] == 0:
            return
        size = int(told.get(b"size") or int(header[124:136].rstrip(b"\0 ") or b"0", 8))
        kind = header[156:157]
        if kind in (b"x", b"g"):
            if size > HEADER_MAX:
                raise TruncatedError
            data = _exactly(stream, size)
            _skip(stream, size)
            if kind == b"x":
                told = _records(data)
            continue
        path = told.get(b"path") or _path(header)
        target = told.get(b"linkpath") or _text(header[157:257])
        told = {}
        kinds = {b"0": "file", b"\0": "file", b"2": "link", b"5": "directory"}
        if kind not in kinds:
            raise TruncatedError
        mode, mtime = int(header[100:108].rstrip(b"\0 "), 8), int(header[136:148].rstrip(b"\0 "), 8)
        yield Member(_decoded(path), kinds[kind], bool(mode & 0o100), mtime, size, _decoded(target))
        _skip(stream, size)


def _skip(stream: IO[bytes], size: int) -> None:
    """What fills the last block."""
    if size % BLOCK:
        _exactly(stream, BLOCK - size % BLOCK)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise TruncatedError
    return data


def _path(header: bytes) -> bytes:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _decoded(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape").rstrip("/")


def _records(data: bytes) -> dict[bytes, bytes]:
    """ "LENGTH KEY=VALUE\\n", the length counting itself."""
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        end = int(length)
        key, _, value = data[len(length) + 1 : end - 1].partition(b"=")
        found[key] = value
        data = data[end:]
    return found
