"""What end-to-end tests add to a Cluster: edits of what is written, events, rollouts stopped in a phase."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from tests import apps
from tests.cluster import Cluster, alive, wait_until

Edit = tuple[str, str, str]  # file, what is there, what is to be there
FAST_HEALTH: Edit = ("deployer.toml", "[health]\n", '[health]\ntimeout = "1s"\n')
LIGHT = {"keepalive": 2, "fresh": 1, "slow": 1, "slow_path": "/slow?s=0.4"}
IDENTITY = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]


class Shop(Cluster):
    """A cluster whose files are changed by `edits` each time they are written."""

    def __init__(self, *, edits: Sequence[Edit] = (), **options: Any) -> None:
        self.edits = list(edits)
        super().__init__(**options)

    def write(self, behaviour: str = "good", label: str = "hello", **options: Any) -> apps.App:
        app = (
            self._write_sample(behaviour, label)
            if self.server == "sample"
            else super().write(behaviour, label, **options)
        )
        for name, old, new in self.edits:
            self.edit(name, old, new)
        return app

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.directory / name
        text = path.read_text()
        assert old in text, f"{name} has no {old!r}"
        path.write_text(text.replace(old, new))

    def _write_sample(self, behaviour: str, label: str) -> apps.App:
        """The sample app as it is in the repository; a broken one raises at import."""
        assert behaviour in ("good", "raises_at_import")
        unwanted = shutil.ignore_patterns("__pycache__", "demo.py")
        shutil.copytree(apps.REPO / "sample_app", self.directory, ignore=unwanted, dirs_exist_ok=True)
        app = apps.App(self.directory, f"{sys.executable} serve.py", "notify")
        (self.directory / "deployer.toml").write_text(app.toml(self.address, **self.toml))
        self.edit("app.py", "Hello from the first release", label)
        if behaviour != "good":
            self.edit("app.py", "import os\n", "import os\nraise RuntimeError('broken on purpose')\n")
        return app

    # Looking

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        return [event for event in self.api("/v1/events") if name in (None, event["event"])]

    def history(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("/v1/rollouts")[0]
        return found

    def releases(self) -> dict[str, dict[str, Any]]:
        return {release["name"]: release for release in self.api("/v1/releases")[0]}

    def assert_serves(self, release: str, pids: dict[int, int] | None = None) -> dict[int, int]:
        """One release everywhere: every slot, `current`, the status and the answers. `pids`: slots untouched."""
        status = self.settled()
        slots = {worker["slot"]: worker["pid"] for worker in status["workers"]}
        assert status["release"] == release, status
        assert self.current() == release
        assert self.release_served() == release
        for slot, pid in (pids or {}).items():
            assert slots[slot] == pid, f"slot {slot} was touched: {pid} -> {slots[slot]}"
        return slots

    def half_made(self) -> set[str]:
        """What is in `releases` apart from the releases that deployer knows, and the index of each."""
        known = set(self.releases())
        there = {path.name for path in self.root.glob("releases/*")}
        return there - known - {f".{name}.index" for name in known & there}

    # Commands under way

    def begin(self, *words: str) -> Running:
        return Running(self, *words)

    def kill_all_but_workers(self) -> list[int]:
        """SIGKILL to keeper and manager, both gone when this returns; they were these."""
        pids = [self.keeper_pid(), self.manager_pid()]
        for pid in pids:  # the keeper first: it would start another manager
            os.kill(pid, 9)
        wait_until(lambda: not any(alive(pid) for pid in pids), "keeper and manager gone")
        return pids


class Running:
    """A command with --json under way; its events are read as they come."""

    def __init__(self, cluster: Cluster, *words: str, process: subprocess.Popen[str] | None = None) -> None:
        self._words = words
        self.process: subprocess.Popen[str] = process or cluster.start(*words, "--json")
        self.events: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.finish()

    def until(self, event: str, timeout: float = 30.0, **fields: Any) -> dict[str, Any]:
        """Read on until this event."""
        what = f"{event} {fields}"
        return self.until_any(lambda e: e["event"] == event and fields.items() <= e.items(), what, timeout)

    def phase(self, phase: str) -> dict[str, Any]:
        return self.until("rollout.phase", phase=phase)

    def until_any(self, good: Callable[[dict[str, Any]], bool], what: str, timeout: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"not within {timeout:g} s: {what}; after {self.events[-5:]}") from None
            assert found is not None, f"{self._words} ended without {what}: {self.events[-5:]} {self.error_text}"
            self.events.append(found)
            if good(found):
                return found

    def finish(self, timeout: float = 60.0) -> int:
        """Its exit code, once it has ended; `events` then has all it printed."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        while (found := self._queue.get_nowait() if not self._queue.empty() else None) is not None:
            self.events.append(found)
        return code

    @property
    def error_text(self) -> str:
        return "".join(self._errors)

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self._errors.extend(lines)


def python_for_nobody() -> str | None:
    """An interpreter that the user nobody may run, with the libraries of ours where it can read them."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [python, "-c", "import msgspec, typer"]
        env = {"PYTHONPATH": f"{apps.REPO}:{site}", "PATH": "/usr/bin:/bin"}
        with contextlib.suppress(OSError):
            if subprocess.run(probe, user="nobody", env=env, cwd="/", capture_output=True, check=False).returncode == 0:
                return python
    return None


def git(directory: Path, *words: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *words], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def own_traceback(text: str) -> bool:
    """A traceback of deployer's own; one of the application's is shown behind a bar."""
    return any(line.startswith("Traceback") for line in text.splitlines())


def assert_clear(done: Any, code: int, *words: str) -> None:
    """One clear message with the next step: exit code, `error:` and `hint:`, and no traceback of our own."""
    text = done.text if hasattr(done, "text") else str(done)
    assert done.code == code, f"exit {done.code}, not {code}: {text}"
    assert not own_traceback(text), text
    assert text.count("error:") == 1, text
    assert "hint:" in text, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
