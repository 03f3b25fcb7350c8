"""What makes a fetched tree runnable: its Python environment, then the commands of `[build] run`.

The environment is built while the release is still `.vN.partial`. Commands run in the release under its real name:
CMake, Laravel, Next.js and many others write the absolute path of what they built into it. Until all have ended,
`releases/.vN.building` says that `vN` is not whole, so that a killed build is swept away (releases/tree.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployer.config.model import Config
from deployer.paths import Layout
from deployer.releases import python, tree
from deployer.releases.command import Runner
from deployer.releases.python import Environment
from deployer.releases.release import activate, base_environment
from deployer.units import parse_duration


@dataclass(frozen=True)
class Build:
    """One release's build. `env`: its frozen environment, of which only `[worker] env` may be shown."""

    name: str
    layout: Layout
    config: Config
    env: Mapping[str, str]
    environment: Environment | None
    tell: Callable[[str], None]

    def run(self) -> bool:
        """Whether the release has its real name now, and the mark beside it. Raises BuildError, OSError; the caller
        removes the release."""
        commands, partial = self.config.build.run, self.layout.partial(self.name)
        if self.environment is None and not commands:
            return False
        runner = self._runner()
        if self.environment is not None:
            python.make(
                self.environment,
                partial,
                self.layout.envs,
                runner=runner,
                env=self._variables(partial, active=False),
                tell=self.tell,
            )
        if not commands:
            return False
        release = tree.give_name(self.layout, self.name)
        for command in commands:
            runner.run(["/bin/sh", "-c", command], cwd=release, env=self._variables(release), title=command)
        return True

    def _runner(self) -> Runner:
        timeout = self.config.build.timeout
        log = self.layout.build_log(self.name)
        log.unlink(missing_ok=True)
        runner = Runner(log=log, timeout_s=parse_duration(timeout), timeout=timeout, tell=self.tell)
        plain = self.config.worker.env
        runner.keep_secret([value for key, value in self.env.items() if key not in plain])
        return runner

    def _variables(self, directory: Path, *, active: bool = True) -> dict[str, str]:
        env = base_environment(os.environ) | dict(self.env)
        for key in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "PYTHONHOME"):
            env.pop(key, None)  # of whoever started the manager
        env["DEPLOYER_APP"] = self.config.name
        env["DEPLOYER_RELEASE"] = self.name
        env["DEPLOYER_RELEASE_DIR"] = env["PWD"] = str(directory)
        env["DEPLOYER_ROOT"] = str(self.layout.root)
        if active and self.environment is not None:
            env = activate(env, self.layout.envs / self.environment.name)
        return env
