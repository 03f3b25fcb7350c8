"""What is saved, how, and when: all of it follows from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PAUSE_S = (0.005, 2.0)  # between two saves; its logarithm is uniform, so that there are bursts too
DIES_AFTER_S = (0.05, 0.5)
DIES_AT_ANSWER = (2, 30)
AMID_S = (0.001, 0.15)  # in the middle of a save that is made in two steps
QUIET_S: Final = 2.5  # after some good saves, so that they can be looked for
QUIET_SHARE = 1 / 8
KILL_SHARE = 1 / 15
FILLER = "# so that it is written in two parts\n" * 40


class Kind(StrEnum):
    GOOD = "good"
    SYNTAX = "does not compile"
    IMPORT = "cannot be imported"
    DIES = "ends soon after it started"
    DIES_ANSWERING = "ends while it answers"


class Way(StrEnum):
    """Of writing a file."""

    PLAIN = "truncate and write"
    RENAME = "write another and rename it"
    PARTS = "write a part, and later the rest"
    ANEW = "delete and create"


KINDS = {Kind.GOOD: 55, Kind.SYNTAX: 14, Kind.IMPORT: 13, Kind.DIES: 13, Kind.DIES_ANSWERING: 5}
SERVABLE = (Kind.GOOD, Kind.DIES, Kind.DIES_ANSWERING)


@dataclass(frozen=True)
class Save:
    number: int
    kind: Kind
    way: Way
    amid_s: float
    pause_s: float  # after it
    dies_after_s: float
    dies_at_answer: int
    kill: str | None = None  # "manager" or "child", amid the pause

    @property
    def label(self) -> str:
        """Of one length: no two saves differ in size alone."""
        return f"save-{self.number:06d}"

    @property
    def half(self) -> str:
        """What would be served of the first part alone."""
        return f"half-{self.number:06d}"

    def text(self, words: str) -> tuple[str, str]:
        """views.py, in two parts of which the first is a whole program too. `words`: where the last words go."""
        ends = {
            Kind.GOOD: "",
            Kind.SYNTAX: "def broken(:\n",
            Kind.IMPORT: "import a_package_that_is_not_there\n",
            Kind.DIES: f"import dying\ndying.soon({self.dies_after_s!r}, {words!r})\n",
            Kind.DIES_ANSWERING: (
                "import dying\n\n\ndef answering(left=[0]):\n    left[0] += 1\n"
                f"    if left[0] >= {self.dies_at_answer}:\n        dying.now({words!r})\n"
            ),
        }
        first = f"LABEL = {self.half!r}\n\n\ndef answering():\n    pass\n\n\n{FILLER}"
        return first, f"LABEL = {self.label!r}\n{ends[self.kind]}"


def plan(seed: int, saves: int, *, kills: bool = False) -> Iterator[Save]:
    """The last one is good."""
    chance = random.Random(seed)
    for number in range(1, saves + 1):
        last = number == saves
        kind = Kind.GOOD if last else chance.choices(list(KINDS), list(KINDS.values()))[0]
        quiet = kind is Kind.GOOD and (last or chance.random() < QUIET_SHARE)
        kill = next((whom for whom in ("manager", "child") if chance.random() < KILL_SHARE), None)
        yield Save(
            number=number,
            kind=kind,
            way=chance.choice(list(Way)),
            amid_s=_log_uniform(chance, *AMID_S),
            pause_s=QUIET_S if quiet else _log_uniform(chance, *PAUSE_S),
            dies_after_s=round(chance.uniform(*DIES_AFTER_S), 3),
            dies_at_answer=chance.randint(*DIES_AT_ANSWER),
            kill=kill if kills and not last else None,
        )


def _log_uniform(chance: random.Random, least: float, most: float) -> float:
    return math.exp(chance.uniform(math.log(least), math.log(most)))
