"""What is compared, and deployer as one of it: a system serves an app with workers that need some time to boot.

Its peers are in rivals.py. `with system:` runs one; nothing of it is left after.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deployer.releases.served import RUNTIME
from tests import apps
from tests.apps import App
from tests.cluster import Cluster

WORKERS = 4
BOOT_S = 0.3
SOAK_S = 1.0
THREADS = 8
DRAIN_S = 30  # every system may take as long for its open requests
GOOD, BROKEN = "good", "raises_at_import"


@dataclass(frozen=True)
class Plan:
    """How many workers there are, how long each of them boots, and how long ours looks at its canary."""

    workers: int = WORKERS
    boot_s: float = BOOT_S
    soak_s: float = SOAK_S


class System(ABC):
    """One system with its app."""

    name = ""
    app = ""
    settings = ""
    ours = False
    must_lose_none = False
    settle_s = 0.0  # how long it must be left alone after a rollout, before it hears of the next
    plan: Plan

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *failure: object) -> None: ...

    @property
    @abstractmethod
    def address(self) -> str: ...

    @abstractmethod
    def write(self, behaviour: str, label: str) -> None:
        """Put a release's files where the next reload finds them."""

    @abstractmethod
    def reload(self) -> str:
        """Ask for the rollout and wait as long as the command for it does; what it said of itself, or ""."""


class Deployer(System):
    """Ours, around any server. `worker` is put into [worker] of its deployer.toml."""

    ours = True

    def __init__(
        self,
        server: str,
        app: str,
        plan: Plan | None = None,
        *,
        name: str = "",
        worker: str = "",
        must_lose_none: bool = True,
    ) -> None:
        self.name, self.app, self.server = f"deployer, {name or server}", app, server
        self.plan, self.worker, self.must_lose_none = plan or Plan(), worker, must_lose_none
        self.settings = (
            f"count = {self.plan.workers}, soak = {self.plan.soak_s:g}s, drain_timeout = {DRAIN_S}s, "
            "preflight and health check on"
        )

    def __enter__(self) -> Self:
        options: dict[str, Any] = {
            "soak": f"{self.plan.soak_s:g}s",
            "drain_timeout": f"{DRAIN_S}s",
            "ready_timeout": "30s",
            "interval": "5s",
            "worker_extra": self.worker,
        }
        self._cluster = BenchCluster(server=self.server, count=self.plan.workers, **options)
        try:
            self.write(GOOD, "r0")
            self._cluster.run("up", code=0)
        except BaseException:
            self._cluster.close(check=False)
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        self._cluster.close(check=failure[0] is None)

    @property
    def address(self) -> str:
        return self._cluster.address

    def write(self, behaviour: str, label: str) -> None:
        self._cluster.write(behaviour, label, boot_s=self.plan.boot_s)

    def reload(self) -> str:
        done = self._cluster.run("deploy", "--json")
        self.events = done.events
        if not self.events:
            raise RuntimeError(f"deployer deploy: exit {done.code}: {done.text}")
        return f"exit {done.code} {done.last.get('outcome', '')}"

    def release(self, directory: Path) -> App:
        """The same release, to be run without deployer."""
        return SERVERS[self.server](directory, GOOD, label="alone", boot_s=self.plan.boot_s)


class BenchCluster(Cluster):
    """With the servers of this file too. `make` writes a release of something else."""

    def __init__(self, *, server: str = "mini", make: Callable[..., App] | None = None, **toml: Any) -> None:
        super().__init__(server=server, **toml)
        self._make = make or SERVERS[server]

    def __enter__(self) -> Self:
        return self

    def write(self, behaviour: str = GOOD, label: str = "hello", **options: Any) -> App:
        for path in self.directory.glob("*"):
            if path.is_file():
                path.unlink()
        app = self._make(self.directory, behaviour, label=label, **options)
        (self.directory / "deployer.toml").write_text(app.toml(self.address, **self.toml))
        return app


@dataclass(frozen=True)
class Served(App):
    """What deployer's runtime serves; `command` is how it does that without deployer."""

    def toml(self, address: str, **options: Any) -> str:
        return super().toml(address, **options).replace(f"command = {json.dumps(self.command)}", 'app = "app:app"')


def served(directory: Path, behaviour: str = GOOD, *, label: str = "hello", boot_s: float = 0.0) -> App:
    """`[worker] app`: the ASGI app that uvicorn and granian get."""
    apps.uvicorn(directory, behaviour, label=label, boot_s=boot_s)
    return by_runtime(directory)


def by_runtime(directory: Path) -> App:
    """The app.py that is there."""
    return Served(directory, f"{sys.executable} {RUNTIME} app:app", "notify")


def sample(directory: Path, behaviour: str = GOOD, *, label: str = "hello", boot_s: float = 0.0) -> App:
    """The repository's sample app (Starlette on uvicorn), which shows `label` and takes `boot_s` longer to start."""
    directory.mkdir(parents=True, exist_ok=True)
    source = apps.REPO / "sample_app"
    text = (source / "app.py").read_text().replace("Hello from the first release", label)
    end = "raise RuntimeError('broken on purpose')\n" if behaviour == BROKEN else ""
    (directory / "app.py").write_text(f"{text}\ntime.sleep({boot_s})\n{end}")
    for name in ("serve.py", "sessions.py"):
        (directory / name).write_text((source / name).read_text())
    return App(directory, f"{sys.executable} serve.py", "notify")


SERVERS: dict[str, Callable[..., App]] = apps.SERVERS | {"sample_app": sample, "served": served}
