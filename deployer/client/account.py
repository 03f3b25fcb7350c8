"""run/manager.json: what a manager says of itself when nobody can ask it."""

from __future__ import annotations

from typing import Literal

import msgspec

from deployer.paths import Layout
from deployer.wire.schema import Problem


class ManagerState(msgspec.Struct):
    """run/manager.json, as the manager writes it."""

    pid: int
    state: Literal["starting", "ready", "failed"]
    problem: Problem | None = None
    token: str = ""


def read_state(layout: Layout) -> ManagerState | None:
    """None while it has not said anything (it writes by rename)."""
    try:
        return msgspec.json.decode(layout.manager_state.read_bytes(), type=ManagerState)
    except (OSError, msgspec.MsgspecError):
        return None
