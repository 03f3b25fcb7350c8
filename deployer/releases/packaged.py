"""A release that was installed from an index: how its programs and modules are found.

The tree itself is the directory that `pip install --target` fills: modules at the top, console scripts in bin/. So
`python -m shop` and `shop-server` run with the two variables that are set here, and with nothing else: no virtual
environment, whose paths would have to be moved with the release.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = ".deployer-package.json"
"""In the tree: which package it is."""


def activate(env: dict[str, str], tree: Path, release: Path) -> dict[str, str]:
    """`env` for the workers, builds and hooks of `release`, whose files are at `tree` now; as it is for any other."""
    if not (tree / MARK).is_file():
        return env
    path = env.get("PATH") or os.environ.get("PATH") or "/usr/local/bin:/usr/bin:/bin"
    modules = env.get("PYTHONPATH")
    return {
        **env,
        "PATH": f"{release}/bin:{path}",
        "PYTHONPATH": f"{release}:{modules}" if modules else str(release),
    }
