"""`deployer watch` as its user runs it: a tree that is edited, a terminal for the keys, and what is served."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from tests import apps
from tests.cluster import DEPLOYER, wait_until
from tests.e2e.shop import Running, Shop, alive

FIRST = "save-000000"
SERVED_LIMIT_S = 30.0
QUIT_LIMIT_S = 30.0
CHILD = b"deployer.watch"


class Tree(Shop):
    """A source tree with tests/apps/watched in it, and a deployer.toml that no cluster was started for yet."""

    def plant(self, label: str = FIRST, *, worker: str = 'app = "app:app"', extra: str = "") -> None:
        """`worker` is put into [worker], `extra` at the end of deployer.toml."""
        shutil.copytree(apps.HERE / "watched", self.directory, dirs_exist_ok=True)
        self.views.write_text(views(label))
        self.configure(worker, extra)

    def configure(self, worker: str, extra: str = "") -> None:
        (self.directory / "deployer.toml").write_text(
            f'name = "app"\n\n[worker]\n{worker}\ncount = 1\ndrain_timeout = "5s"\n\n'
            f'[[listen]]\naddress = "{self.address}"\n\n[health]\nhttp = "/healthz"\n\n{extra}'
        )

    @property
    def views(self) -> Path:
        return self.directory / "views.py"

    def watch(self, *words: str) -> Watching:
        return Watching(self, *words)

    # Looking

    def served(self) -> str | None:
        """The label that a new connection is answered with; None when it is not answered."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            status, headers, body = self.get()
            return headers.get("x-release", body.decode().split()[0]) if status == 200 else f"status {status}"
        return None

    def until_served(self, label: str, limit_s: float = SERVED_LIMIT_S, pause_s: float = 0.02) -> float:
        """Seconds until a new connection is answered with this label."""
        began = time.monotonic()
        seen: set[str | None] = set()

        def look() -> bool:
            seen.add(found := self.served())
            return found == label

        try:
            wait_until(look, label, limit_s, pause_s)
        except AssertionError:
            raise AssertionError(f"{label} is not served within {limit_s:g} s, but {seen}\n{self.log_tail()}") from None
        return time.monotonic() - began

    def until_body(self, word: str, limit_s: float = SERVED_LIMIT_S) -> None:
        """The first word of what a new connection is answered with, of apps whose headers say something else."""

        def look() -> bool:
            with contextlib.suppress(OSError, ValueError, IndexError):
                return self.get()[2].decode().split()[0] == word
            return False

        wait_until(look, f"{word} is served", limit_s)

    def processes(self) -> list[int]:
        """Those too that are told apart by nothing but where they work, as the watching child."""
        base = f"{self.base}/"
        return sorted({*super().processes(), *(p.pid for p in psutil.process_iter() if _cwd(p).startswith(base))})

    def manager_is_ready(self) -> bool:
        """One that runs, and has taken over."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            word = json.loads((self.root / "run" / "manager.json").read_text())
            return word["state"] == "ready" and alive(word["pid"])
        return False

    def watching_child(self) -> int | None:
        """Its pid. A staging that it has forked is not meant."""
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            for process in psutil.Process(self.manager_pid()).children():
                if CHILD.decode() in process.cmdline():
                    return int(process.pid)
        return None

    def dev_releases(self) -> set[str]:
        """Directories of snapshots. What is being made or removed has a dot name, and is gone in a moment."""
        return {path.name for path in self.root.glob("releases/dev-*") if path.is_dir()}


class Watching(Running):
    """`deployer watch --json` under way. Leaving the `with` quits it, as its user would."""

    def __init__(self, tree: Tree, *words: str) -> None:
        self._keys, terminal = os.openpty()
        try:
            process = subprocess.Popen(
                [DEPLOYER, "watch", *words, "--json"],
                cwd=tree.directory,
                env=tree.env,
                text=True,
                stdin=terminal,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            os.close(terminal)
        super().__init__(tree, "watch", *words, process=process)

    def __exit__(self, *failure: object) -> None:
        try:
            if failure[0] is None and self.process.poll() is None:
                assert self.quit() == 0, self.error_text
        finally:
            super().__exit__(*failure)
            os.close(self._keys)

    def press(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def quit(self) -> int:
        self.press("q\n")
        return self.finish(QUIT_LIMIT_S)

    def drain(self) -> list[dict[str, Any]]:
        """All events until now."""
        while not self._queue.empty():
            if (found := self._queue.get_nowait()) is not None:
                self.events.append(found)
        return self.events


def views(label: str) -> str:
    return f"LABEL = {label!r}\n\n\ndef answering():\n    pass\n"


def usage(pid: int) -> tuple[int, int]:
    """(resident kB, open descriptors)."""
    process = psutil.Process(pid)
    return process.memory_info().rss // 1024, process.num_fds()


def size_kb(directory: Path) -> int:
    """On disk; a file with several names counts once."""
    done = subprocess.run(["du", "-sk", str(directory)], capture_output=True, text=True, timeout=30, check=False)
    return int(done.stdout.split()[0])  # files that vanish meanwhile make it complain, not wrong


def _cwd(process: psutil.Process) -> str:
    try:
        return f"{process.cwd()}/"
    except psutil.Error:
        return ""


def event_names(events: list[dict[str, Any]]) -> str:
    """For the message of a test that failed."""
    return json.dumps([event["event"] for event in events[-20:]])
