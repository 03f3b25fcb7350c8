"""What every command works with: where the cluster lies, how to talk to it, how to print.

Only `root` and `name` are read from deployer.toml here: a mistake elsewhere in the file must not stand
between a person and `deployer rollback`. Commands that need the whole of it load it themselves.
"""

from __future__ import annotations

import os
import pwd
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from deployer.cli.output import Output
from deployer.client.client import Client
from deployer.config.load import FILE_NAME, find, load
from deployer.paths import Layout

DEFAULT_ROOT = ".deployer"


@dataclass
class Session:
    """One run of one command."""

    out: Output
    env: Mapping[str, str]
    config: Path | None = None  # --config
    started: float = field(default_factory=monotonic)

    @cached_property
    def file(self) -> Path:
        """deployer.toml: the one --config names (or the directory it is in), else the nearest."""
        explicit = self.config
        if explicit is not None and explicit.is_dir():
            explicit = explicit / FILE_NAME
        return find(explicit, Path.cwd())

    @cached_property
    def layout(self) -> Layout:
        root = self._settings.get("root", DEFAULT_ROOT)
        return Layout(Path(os.path.normpath(self.file.parent / str(root))))

    @cached_property
    def app(self) -> str:
        """The name of the application, for sentences."""
        return str(self._settings.get("name", self.file.parent.name))

    @cached_property
    def client(self) -> Client:
        return Client(self.layout)

    @cached_property
    def who(self) -> str:
        """Who asks, for the records and for whoever finds the cluster busy."""
        if self.env.get("GITHUB_ACTIONS") == "true":
            return f"{self.env.get('GITHUB_ACTOR', '?')} (GitHub run {self.env.get('GITHUB_RUN_ID', '?')})"
        if self.env.get("SUDO_USER"):
            return self.env["SUDO_USER"]
        uid = os.getuid()
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"uid {uid}"

    @cached_property
    def _settings(self) -> dict[str, Any]:
        try:
            with open(self.file, "rb") as file:
                return tomllib.load(file)
        except (OSError, ValueError):
            if (self.file.parent / DEFAULT_ROOT / "run").is_dir():
                return {}  # the cluster lies where it lies by default: a half-edited file is no obstacle
            load(self.file)  # says what is wrong, and where
            raise
