"""The real command line, run as a subprocess in a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployer.paths import Layout

TOML = """\
name = "shop"

[worker]
command = "true"

[[listen]]
address = "tcp://127.0.0.1:8123"
"""
ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "TZ": "UTC",
    "LANG": "C.UTF-8",
    "TERM": "xterm",
    "SUDO_USER": "ana",
}


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Shop:
    """A directory with a deployer.toml, and the command to run in it."""

    directory: Path
    layout: Layout

    def start(self, *words: str, env: dict[str, str] | None = None, **pipes: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "deployer", *words],
            cwd=self.directory,
            env={**ENV, **(env or {})},
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes},
        )

    def run(self, *words: str, env: dict[str, str] | None = None, timeout: float = 30) -> Result:
        with self.start(*words, env=env) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return Result(process.returncode, out, err)
