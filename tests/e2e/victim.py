"""A cluster whose manager is killed on order, at one of its commits: see killsite/sitecustomize.py."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster import wait_until
from tests.e2e.shop import Shop, alive


class Victim:
    """The killing, and looking at what came of it. `shop` is not started yet."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.order = shop.base / "order"
        shop.env |= {"PYTHONPATH": str(Path(__file__).parent / "killsite"), "KILL_ORDER": str(self.order)}

    def transactions(self, work: Callable[[], object]) -> list[str]:
        """`where name` of each that `work` makes while nobody is killed."""
        self.order.write_text("count nobody 0 nothing")
        work()
        self.order.unlink()
        path = Path(f"{self.order}.seen")
        lines = path.read_text().splitlines()
        path.unlink()
        return lines

    def arm(self, point: str, how: str) -> None:
        """`point`: where turn name."""
        Path(f"{self.order}.seen").unlink(missing_ok=True)
        where, rest = point.split(" ", 1)
        self.order.with_suffix(".new").write_text(f"{where} {how} {rest}")
        self.order.with_suffix(".new").rename(self.order)

    def wait_for_the_kill(self, *pids: int) -> None:
        wait_until(lambda: not self.order.exists(), "the order was carried out")
        wait_until(lambda: not any(alive(pid) for pid in pids), "killed")

    def lying_about(self) -> list[str]:
        """Names in ROOT, but for those that each release and each deploy adds to, and what SQLite keeps."""
        root = self.shop.root
        sockets = len(os.listdir(root / "run" / "notify"))
        found = [str(path.relative_to(root)) for path in (*root.iterdir(), *root.glob("run/*"), *root.glob("shared/*"))]
        return [f"{sockets} sockets", *sorted(name for name in found if not name.startswith("state.db"))]

    def events_after(self, seq: int) -> list[dict[str, Any]]:
        """From state.db itself: hundreds of times `deployer events` would take half of the time."""
        with contextlib.closing(sqlite3.connect(f"file:{self.shop.root}/state.db?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT seq, event, rollout, data FROM events WHERE seq > ? ORDER BY seq", (seq,))
            return [json.loads(data) | {"seq": at, "event": name, "rollout": of} for at, name, of, data in rows]

    @property
    def seq(self) -> int:
        """Of the last event."""
        return int(self.events_after(0)[-1]["seq"])


def numbered(lines: list[str]) -> list[str]:
    """Points, `where turn name`, from lines `where name`."""
    split = [line.partition(" ") for line in lines]
    return [f"{where} {lines[: at + 1].count(f'{where} {name}')} {name}" for at, (where, _, name) in enumerate(split)]
