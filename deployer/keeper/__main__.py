"""Runs the keeper: `python -I -S __main__.py ROOT TOKEN COMMAND...`.

A module of its own so that keeper.py is loaded from its compiled form: compiling it costs a megabyte for life.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from keeper import Keeper  # type: ignore[import-not-found]  # isolated mode knows no package `deployer`

    sys.exit(Keeper(sys.argv[1], sys.argv[2], sys.argv[3:]).run())
