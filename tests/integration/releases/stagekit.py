"""A ROOT, real git repositories, and the real child process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deployer.config.model import Config, Listen, Worker
from deployer.config.model import Source as SourceTable
from deployer.paths import Layout
from deployer.releases.request import Directory, Source, StageRequest, encode_request

COMMAND = (sys.executable, "-P", "-m", "deployer.releases.stage")
BOUND_S = 60.0
HERE = Directory(path=".")
CONFIG = Config(
    name="shop",
    worker=Worker(command="serve {fd}"),
    listen=[Listen(address="tcp://127.0.0.1:8000")],
    source=SourceTable(link=True),
)


@dataclass
class Done:
    """What one staging said."""

    exit: int
    progress: list[str] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def told(self) -> str:
        """The whole error as a person reads it."""
        assert self.error is not None
        return "\n".join(str(self.error[key]) for key in ("what", "cause", "hint"))


class Stager:
    """Stages into one ROOT, beside the deployer.toml of `directory`."""

    def __init__(self, directory: Path, root: Path) -> None:
        self.directory = directory
        self.layout = Layout(root)
        root.mkdir(parents=True, exist_ok=True)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def request(self, source: Source, name: str = "v1", **more: Any) -> StageRequest:
        fields: dict[str, Any] = {"host_config": CONFIG, "parent": os.getpid()} | more
        return StageRequest(
            root=str(self.layout.root), name=name, source=source, directory=str(self.directory), **fields
        )

    def start(self, request: StageRequest) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.layout.root,
            env=self.env,
            process_group=0,
        )
        assert child.stdin is not None
        child.stdin.write(encode_request(request))
        child.stdin.close()
        child.stdin = None
        return child

    def run(self, source: Source, name: str = "v1", **more: Any) -> Done:
        return self.finish(self.start(self.request(source, name, **more)))

    def finish(self, child: subprocess.Popen[bytes]) -> Done:
        stdout, stderr = child.communicate(timeout=BOUND_S)
        assert b"Traceback" not in stderr, stderr.decode()
        done = Done(child.returncode)
        for line in stdout.splitlines():
            (kind, value), *_ = msgspec.json.decode(line).items()
            if kind == "progress":
                done.progress.append(value)
            else:
                setattr(done, kind, value)
        if done.exit == 0:
            assert done.result is not None, (stdout, stderr)
        return done

    def release(self, name: str = "v1") -> Path:
        return self.layout.release(name)

    def assert_nothing_left(self, *, releases: tuple[str, ...] = (), mirror: bool = False) -> None:
        """Only these releases lie in ROOT, and no half of anything."""
        indexes = {f".{name}.index" for name in releases}
        assert sorted(set(os.listdir(self.layout.releases)) - indexes) == sorted(releases)
        expected = ["mirror.git", "releases"] if mirror else ["releases"]
        assert sorted(os.listdir(self.layout.root)) == expected


class Repository:
    """A repository made by the git command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=Ada Lovelace", "-c", "user.email=ada@example.org")
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        command = ("git", *identity, "-c", "protocol.file.allow=always", *arguments)
        done = subprocess.run(command, cwd=self.path, env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8", "replace").strip()

    def commit(self, subject: str, **files: str) -> str:
        """Write the files (`a__py` is a.py), commit all there is; the commit's id."""
        for name, text in files.items():
            (self.path / name.replace("__", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)
        return self.git("rev-parse", "HEAD")


def wait_until(condition: Callable[[], bool], bound_s: float = BOUND_S) -> None:
    """Poll; fails when the condition does not come true in time."""
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.002)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def write(top: Path, **texts: str) -> None:
    """`a__b_txt`-like names are unreadable: pass a dictionary by `**`."""
    for name, text in texts.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def settle(top: Path) -> None:
    """Files as old as a source's usually are: the clock of ctime ticks in steps."""
    for path in top.rglob("*"):
        if path.is_file():
            os.utime(path, (1_600_000_000, 1_600_000_000))


def stage(stager: Stager, name: str, source: Directory = HERE, **config: Any) -> dict[str, Any]:
    done = stager.run(source, name, host_config=msgspec.structs.replace(CONFIG, **config))
    assert done.result is not None, done.error
    return done.result


def inode(path: Path) -> int:
    return path.stat().st_ino
