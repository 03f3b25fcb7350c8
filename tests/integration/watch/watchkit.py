"""The real watching child over its pipes, and a source that it watches."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deployer.config.model import Config, Listen, Worker
from deployer.config.model import Source as SourceTable
from deployer.osutil.process import descendants
from deployer.releases.request import Development, Directory, StageRequest, StageResult
from deployer.releases.sources.directory import ALWAYS_EXCLUDED
from deployer.watch.protocol import (
    Cancel,
    Error,
    Fault,
    Progress,
    Result,
    Saved,
    Settings,
    Stage,
    ToChild,
    ToManager,
    Watch,
    Watching,
    decode_word,
    encode,
)
from deployer.wire.schema import Problem

COMMAND = (sys.executable, "-P", "-m", "deployer.watch")
BOUND_S = 30.0
CONFIG = Config(
    name="shop",
    worker=Worker(app="app:app"),
    listen=[Listen(address="tcp://127.0.0.1:8000")],
    source=SourceTable(link=True),
)

_Word = TypeVar("_Word", Watching, Fault, Saved, Result, Error, Progress)


class Child:
    """Watches `source`; a context manager that sees that nothing is left."""

    def __init__(self, source: Path, root: Path, *, prefix: tuple[str, ...] = (), **settings: Any) -> None:
        self.source, self.root = source, root
        (root / "releases").mkdir(parents=True, exist_ok=True)
        self._number = max([0, *(int(path.name[4:]) for path in (root / "releases").glob("dev-*"))])
        self.process = subprocess.Popen(
            (*prefix, *COMMAND),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
            start_new_session=True,
        )
        self._words: queue.Queue[ToManager | None] = queue.Queue()
        self.passed_over: list[ToManager] = []
        self.stderr = b""
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._listen_to_errors)]
        for thread in self._threads:
            thread.start()
        self.send(Watch(settings=Settings(path=str(source), root=str(root), **settings)))

    def __enter__(self) -> Child:
        self.watching = self.expect(Watching)
        return self

    def __exit__(self, *failure: object) -> None:
        pids = self.processes()
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        code = self.process.wait(BOUND_S)
        for thread in self._threads:
            thread.join(BOUND_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        if failure[0] is None:
            assert code in (0, -signal.SIGKILL), self.stderr.decode()
            assert b"Traceback" not in self.stderr, self.stderr.decode()
        wait_until(lambda: not any(map(_alive, pids)))

    def processes(self) -> list[int]:
        return descendants(self.process.pid)

    def send(self, order: ToChild) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(encode(order))
        self.process.stdin.flush()

    def next(self, timeout_s: float = BOUND_S) -> ToManager | None:
        """The next word; None when there is none in time."""
        try:
            word = self._words.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if word is None:
            self._threads[1].join(BOUND_S)
            raise AssertionError(f"the child has ended: {self.stderr.decode()}")
        return word

    def expect(self, kind: type[_Word], timeout_s: float = BOUND_S) -> _Word:
        """The next word of this kind; others are kept in `passed_over`."""
        end = time.monotonic() + timeout_s
        while True:
            word = self.next(max(0.0, end - time.monotonic()))
            assert word is not None, f"no {kind.__name__} came, but {self.passed_over}"
            if isinstance(word, kind):
                return word
            self.passed_over.append(word)

    def nothing_saved(self, for_s: float = 0.3) -> None:
        """Fails when a save is told of."""
        end = time.monotonic() + for_s
        while (left := end - time.monotonic()) > 0:
            word = self.next(left)
            assert not isinstance(word, Saved), word
            if word is not None:
                self.passed_over.append(word)

    def request(self, **more: Any) -> StageRequest:
        self._number += 1
        fields: dict[str, Any] = {
            "root": str(self.root),
            "name": f"dev-{self._number}",
            "source": Directory(path=str(self.source)),
            "directory": str(self.source),
            "host_config": CONFIG,
            "parent": os.getpid(),
            "development": Development(),
        }
        return StageRequest(**fields | more)

    def stage(self, **more: Any) -> StageResult:
        """The result of a staging that succeeds."""
        self.send(Stage(request=self.request(**more)))
        word = self.answer()
        assert isinstance(word, StageResult), word
        return word

    def fail(self, **more: Any) -> Problem:
        """Why a staging fails."""
        self.send(Stage(request=self.request(**more)))
        word = self.answer()
        assert isinstance(word, Problem), word
        return word

    def cancel(self) -> None:
        self.send(Cancel())

    def answer(self, timeout_s: float = BOUND_S) -> StageResult | Problem:
        end = time.monotonic() + timeout_s
        while True:
            word = self.next(max(0.0, end - time.monotonic()))
            assert word is not None, "the staging was not answered"
            if isinstance(word, Result):
                return word.result
            if isinstance(word, Error):
                return word.error
            self.passed_over.append(word)

    def release(self, name: str | None = None) -> Path:
        return self.root / "releases" / (name or f"dev-{self._number}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(BOUND_S)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._words.put(decode_word(line))
        self._words.put(None)

    def _listen_to_errors(self) -> None:
        assert self.process.stderr is not None
        self.stderr = self.process.stderr.read()


def tree(top: Path) -> dict[str, str | bytes]:
    """All that belongs to a snapshot of a source without .gitignore: files with their mode and bytes, links with
    their target, directories."""
    found: dict[str, str | bytes] = {}
    for parent, directories, files in os.walk(top):
        directories[:] = [name for name in directories if name not in (*ALWAYS_EXCLUDED, ".deployer")]
        for name in [*directories, *files]:
            path = Path(parent, name)
            key = str(path.relative_to(top))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            elif path.is_dir():
                found[key] = "directory"
            elif key != ".deployer.json":
                found[key] = b"%o " % (path.stat().st_mode & 0o777) + path.read_bytes()
    return found


def wait_until(condition: Callable[[], bool], bound_s: float = BOUND_S) -> None:
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
