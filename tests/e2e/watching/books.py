"""What the judge concludes from what was seen. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.e2e.watching.plan import SERVABLE, Save
from tests.load import Loss, Sighting

NOTICED_S = 5.0  # a client on a busy machine learns so late that its connection ended with the process


@dataclass(frozen=True)
class Death:
    """The last words of a process that the application itself ended."""

    pid: int
    at: float  # epoch
    ports: tuple[int, ...]  # of the clients that were connected to it

    @classmethod
    def read(cls, line: str) -> Death:
        raw = json.loads(line)
        return cls(raw["pid"], raw["at"], tuple(raw["ports"]))


@dataclass(frozen=True)
class Losses:
    lost: tuple[Loss, ...]
    by_the_app: tuple[Loss, ...]  # the connection was in the hands of a process that ended itself


def sorted_out(losses: Iterable[Loss], deaths: Sequence[Death]) -> Losses:
    """A dead process excuses one loss for each connection that it held, and none from before its end."""
    left = [(death, set(death.ports)) for death in deaths]
    lost, by_the_app = [], []
    for loss in losses:
        for death, ports in left:
            if loss.port in ports and death.at <= loss.at <= death.at + NOTICED_S:
                ports.discard(loss.port)
                by_the_app.append(loss)
                break
        else:
            lost.append(loss)
    return Losses(tuple(lost), tuple(by_the_app))


def never_to_be_served(seen: Iterable[Sighting], saves: Iterable[Save], first: str) -> set[str]:
    """Labels that were answered and must not have been: of half a file, or of a save that cannot run."""
    fit = {save.label for save in saves if save.kind in SERVABLE} | {first}
    return {one.release for one in seen} - fit
