"""Messages of workers, as the manager passes them on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from structlog.testing import capture_logs

from deployer.workers.messages import AT_ONCE, Messages


class Line:
    """A channel whose worker never stops talking, and never listens."""

    def __init__(self, *, has_room: bool = True) -> None:
        self.has_room, self.sent = has_room, 0

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        return {"op": "broadcast", "data": 1}, []

    def send(self, message: dict[str, Any]) -> bool:
        self.sent += 1
        return self.has_room


def worker(slot: int, line: Line) -> Any:
    return SimpleNamespace(slot=slot, pid=slot, channel=line, exit=None, deaf=False, forks=False)


def test_one_that_never_stops_talking_does_not_stop_us() -> None:
    line = Line()
    workers = {1: worker(1, line)}
    Messages(workers).hear(workers[1])
    assert line.sent == AT_ONCE


def test_one_that_does_not_listen_is_noted_once() -> None:
    deaf = Line(has_room=False)
    workers = {1: worker(1, Line()), 2: worker(2, deaf)}
    messages = Messages(workers)
    with capture_logs() as logs:
        messages.hear(workers[1])
        deaf.has_room = True
        messages.hear(workers[1])
        deaf.has_room = False
        messages.hear(workers[1])
    assert [(entry["event"], entry["slot"]) for entry in logs] == [("worker.message_lost", 2)] * 2
