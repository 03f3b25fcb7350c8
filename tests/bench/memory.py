"""What processes cost in memory, with pages that several share told apart (/proc/PID/smaps_rollup)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PRIVATE = ("Private_Clean", "Private_Dirty")


class Memory(NamedTuple):
    """Megabytes (10^6 bytes). `private` would be freed by the process's end; `pss` has its part of what is shared."""

    private: float = 0.0
    pss: float = 0.0

    def __add__(self, other: Memory) -> Memory:  # type: ignore[override]  # not what tuples do
        return Memory(self.private + other.private, self.pss + other.pss)


def of(pid: int | str) -> Memory:
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return Memory(sum(kilobytes[name] for name in PRIVATE) * 1024 / 1e6, kilobytes["Pss"] * 1024 / 1e6)


def total(pids: Iterable[int | str]) -> Memory:
    return sum((of(pid) for pid in pids), Memory())
