"""What people read of events whose words are not part of a rollout's story."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.cli.lines import describe
from deployer.cli.output import ASCII
from deployer.wire.schema import Event

PROCESS = {"pid": 9310, "release": "dev-7"}


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("template.starting", {"slot": -1, **PROCESS}, "template: dev-7 pid 9310 starting"),
        ("warm.ready", {"slot": -2, **PROCESS, "seconds": 0.5}, "warm template: dev-7 pid 9310 ready 0.5s"),
        ("blank.starting", {"slot": -3, **PROCESS}, "template to come: dev-7 pid 9310 starting"),
        (
            "blank.exited",
            {"slot": -3, **PROCESS, "expected": True, "text": "killed by SIGKILL", "seconds": 2.0},
            "template to come: dev-7 pid 9310 stopped 2.0s",
        ),
        (
            "warm.exited",
            {"slot": -2, **PROCESS, "expected": False, "text": "killed by SIGSEGV", "seconds": 2.0},
            "warm template: dev-7 pid 9310 died: killed by SIGSEGV after 2.0s",
        ),
        ("tea.ready", {"cups": 2}, "tea.ready cups=2"),
    ],
)
def test_a_line_for_each(name: str, data: dict[str, Any], line: str) -> None:
    assert describe(Event(seq=1, ts=0.0, event=name, data=data), ASCII) == line
