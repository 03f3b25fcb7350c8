"""What the manager and its watching child say to each other: lines of JSON, one message each."""

from __future__ import annotations

import msgspec

from deployer.releases.request import StageRequest, StageResult
from deployer.wire.schema import Problem


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to watch, and what counts."""

    path: str  # absolute: the source
    root: str  # absolute: ROOT, which is never looked at
    paths: list[str] = []  # globs or directories, relative to the source; none: all of it
    ignore: list[str] = []
    extensions: list[str] = []
    settle_s: float = 0.02  # quiet for so long after the last change: then it is a save
    poll_s: float | None = None  # look so often; None: the kernel tells
    include: list[str] = []  # of [source], as exclude: what belongs to a snapshot
    exclude: list[str] = []


class Watch(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="watch"):
    """The first line."""

    settings: Settings


class Stage(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="stage"):
    """One at a time."""

    request: StageRequest


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="cancel"):
    """Undo the staging under way, and answer it as aborted; or answer its result, where it is too late."""


class Watching(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="watching"):
    """From now on changes are told; said again when the mode changes."""

    mode: str  # kernel | poll
    directories: int


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="fault"):
    """Something a person should know; it goes on."""

    what: str
    cause: str | None = None
    hint: str | None = None


class Saved(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="saved"):
    """All is quiet again after changes that count."""

    files: list[str]  # relative to the source; the first of them
    count: int
    at: float  # of the last change, seconds since the epoch


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="progress"):
    text: str


class Result(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="result"):
    result: StageResult


class Error(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="error"):
    error: Problem


ToChild = Watch | Stage | Cancel
ToManager = Watching | Fault | Saved | Progress | Result | Error

_to_child = msgspec.json.Decoder(ToChild)
_to_manager = msgspec.json.Decoder(ToManager)


def encode(message: ToChild | ToManager) -> bytes:
    """With its newline."""
    return msgspec.json.encode(message) + b"\n"


def decode_order(line: bytes) -> ToChild:
    """Raises msgspec.DecodeError for what is none."""
    return _to_child.decode(line)


def decode_word(line: bytes) -> ToManager:
    """Raises msgspec.DecodeError for what is none."""
    return _to_manager.decode(line)
