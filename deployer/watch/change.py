"""One thing that happened to one path: the word that kernel and polling have in common."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

EVERYTHING = "."
"""The path of a change of which nobody knows what it was: all is looked at anew."""


class Kind(Enum):
    MADE = auto()
    WRITING = auto()  # somebody has it open, and has written
    WRITTEN = auto()  # ... and has closed it
    CHANGED = auto()  # mode, times, or another file under its name
    GONE = auto()
    LOST = auto()  # a directory, with whatever was in it


class Change(NamedTuple):
    path: str  # relative to the source
    kind: Kind
    directory: bool = False
