"""What a release is to those who run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployer.config.model import Config

OURS = ("LISTEN_", "NOTIFY_SOCKET", "DEPLOYER_", "WATCHDOG_", "INVOCATION_ID", "JOURNAL_STREAM", "MAINPID")
"""What our own starter set for us must not reach a worker, a build or a hook."""


DEV = "dev-"


def is_dev(name: str) -> bool:
    """Was it made of a save, for a watch?"""
    return name.startswith(DEV)


def named(number: int) -> str:
    """v7; of a save, whose number is negative, dev-7."""
    return f"v{number}" if number > 0 else f"{DEV}{-number}"


@dataclass(frozen=True)
class Release:
    """Everything a worker of this release is started from; the same at every respawn and at a rollback."""

    name: str
    directory: Path  # the real path: no symlink moves under a worker
    config: Config
    env: dict[str, str]
    environment: Path | None = None  # its Python environment, ROOT/envs/HASH


def base_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The manager's own variables without those that mean only the manager."""
    return {key: value for key, value in base.items() if not key.startswith(OURS)}


def activate(env: Mapping[str, str], environment: Path | None) -> dict[str, str]:
    """The variables with the Python environment in front, as its bin/activate would leave them."""
    if environment is None:
        return dict(env)
    active = {key: value for key, value in env.items() if key != "PYTHONHOME"}
    active["VIRTUAL_ENV"] = str(environment)
    active["PATH"] = f"{environment}/bin:{env.get('PATH') or '/usr/local/bin:/usr/bin:/bin'}"
    return active
