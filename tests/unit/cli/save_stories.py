"""Saves as the manager would tell them: watch 3, which begins on an empty cluster."""

from __future__ import annotations

import json
from typing import Any

from scripted_manager import event

from deployer.client.follow import decode_event
from deployer.wire.schema import Event

ROOT = "/srv/shop/.deployer"
T0 = 1700000000.0  # 22:13:20 UTC
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/usr/lib/python3.11/importlib/__init__.py", line 126, in import_module',
    "    return _bootstrap._gcd_import(name[level:], package, level)",
    f'  File "{ROOT}/releases/dev-3/shop.py", line 4, in <module>',
    "    from app.views import cart",
    f'  File "{ROOT}/releases/dev-3/app/views.py", line 28, in <module>',
    '    RATE = os.environ["RATE"]',
    '  File "<frozen os>", line 679, in __getitem__',
    "KeyError: 'RATE'",
]


class Story:
    """Events in order, numbered; times are in seconds after T0."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, name: str, when: float, rollout: int | None = None, /, **fields: Any) -> None:
        number = len(self.events) + 1
        self.events.append(event(number, name, rollout=rollout, ts=round(T0 + when, 3), **fields))

    @property
    def decoded(self) -> list[Event]:
        return [decode_event(json.dumps(event).encode()) for event in self.events]

    def watch_started(self, at: float = 0.0, **fields: Any) -> Story:
        known = {"watch": 3, "kind": "dev", "path": "/srv/shop", "mode": "kernel", "directories": 213}
        self.add("watch.started", at, **{**known, **fields})
        return self

    def begin(
        self,
        rollout: int,
        at: float,
        *files: str,
        count: int | None = None,
        saved: float | None = None,
        previous: str | None = None,
        **fields: Any,
    ) -> Story:
        named = list(files)[:20]
        saved_at = None if saved is None else round(T0 + saved, 3)
        if named:
            self.add("watch.saved", at, watch=3, files=named, count=count or len(files), at=saved_at)
        known = {"kind": "deploy", "release": None, "slots": [1], "who": "ana", "message": None, "watch": 3}
        more = {"previous": previous, "files": named, "saved_at": saved_at, "fixes": None}
        self.add("rollout.started", at, rollout, **{**known, **more, **fields})
        self.add("rollout.phase", at, rollout, phase="staging")
        return self

    def promoted(self, rollout: int, release: str, at: float, **fields: Any) -> Story:
        self.add("release.staged", at - 0.03, rollout, release=release, source="/srv/shop", files=213, seconds=0.01)
        self.add("rollout.phase", at, rollout, phase="promoting")
        return self.finished(rollout, at + 0.2, "promoted", release=release, serving=release, **fields)

    def finished(self, rollout: int, at: float, outcome: str, **fields: Any) -> Story:
        known = {"release": None, "serving": None, "reason": None, "exit_code": 0, "seconds": 0.1, "problem": None}
        self.add("rollout.finished", at, rollout, **{"outcome": outcome, "tail": [], **known, **fields})
        return self

    def failed(self, rollout: int, release: str | None, at: float, serving: str | None, **fields: Any) -> Story:
        known = {"what": "it does not start", "cause": None, "hint": None, "reason": "worker_exit", "tail": []}
        said = {**known, **fields}
        self.add("rollout.failed", at, rollout, slot=0, **said)
        problem = {key: said[key] for key in ("what", "cause", "hint")}
        more = {"release": release, "serving": serving, "exit_code": 3, "reason": said["reason"]}
        return self.finished(rollout, at, "failed", **more, problem=problem, tail=said["tail"])


def a_day() -> Story:
    """Begun; a good save; one that does not start; its fix; nothing changed; the watch is over."""
    return (
        Story()
        .watch_started()
        .begin(1, 0.01)
        .promoted(1, "dev-1", 0.32)
        .begin(2, 11.0, "app/views.py", saved=10.98, previous="dev-1")
        .promoted(2, "dev-2", 11.054)
        .begin(3, 20.0, "app/views.py", saved=19.98, previous="dev-2")
        .failed(
            3,
            "dev-3",
            20.1,
            "dev-2",
            what="the preflight worker of dev-3 exited with code 1 after 0.1s, before it was ready",
            tail=TRACEBACK,
        )
        .begin(4, 30.0, "app/views.py", "app/cart.py", "a.css", "b.css", saved=29.98, previous="dev-2")
        .promoted(4, "dev-4", 31.5)
        .begin(5, 40.0, "app/views.py", saved=39.98, previous="dev-4")
        .finished(5, 40.01, "unchanged", release="dev-4", serving="dev-4")
    )
