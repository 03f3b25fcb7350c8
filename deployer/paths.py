"""Where everything lies under ROOT (DESIGN.md, "Disk"). Names only: nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The files of one cluster, all below `root` (an absolute path)."""

    root: Path

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    @property
    def database(self) -> Path:
        return self.root / "state.db"

    @property
    def mirror(self) -> Path:
        return self.root / "mirror.git"

    def submodule_mirror(self, key: str) -> Path:
        return self.root / "mirrors" / f"{key}.git"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def keeper_pid(self) -> Path:
        return self.run / "keeper.pid"

    @property
    def manager_state(self) -> Path:
        """JSON that the manager writes when it is ready or cannot start; `up` reads it."""
        return self.run / "manager.json"

    @property
    def notify(self) -> Path:
        """Directory of the workers' NOTIFY_SOCKETs, one a worker."""
        return self.run / "notify"

    @property
    def scoreboard(self) -> Path:
        """What workers of `[worker] app` say of themselves (deployer/runtime/scoreboard.py)."""
        return self.run / "scoreboard"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def app_log(self) -> Path:
        return self.logs / "app.log"

    @property
    def own_log(self) -> Path:
        return self.logs / "deployer.log"

    @property
    def hooks(self) -> Path:
        """The host's own hooks, one executable a stage."""
        return self.root / "hooks"

    def rollout_log(self, number: int) -> Path:
        """What the hooks of one rollout print."""
        return self.logs / f"rollout-{number}.log"

    @property
    def envs(self) -> Path:
        """Python environments, shared by releases with the same lock file."""
        return self.root / "envs"

    def build_log(self, name: str) -> Path:
        """What the build of release `name` printed."""
        return self.logs / f"build-{name}.log"

    def release(self, name: str) -> Path:
        return self.releases / name

    def partial(self, name: str) -> Path:
        """Where a release is made; renamed to `release(name)` only when whole."""
        return self.releases / f".{name}.partial"

    def building(self, name: str) -> Path:
        """A file that says: `release(name)` is not whole yet, its build runs or was killed."""
        return self.releases / f".{name}.building"
