"""`make bench`: all of it, one after the other. python -m tests.bench"""

from __future__ import annotations

import traceback

from tests.bench import fairness, footprint, preload, rollback, rollout, saves, stage, throughput
from tests.bench.table import end_with


def main() -> int:
    """The parts run in this process, so that Ctrl-C reaches the one that has something to clean up."""
    code = 0
    for part in (rollout, rollback, preload, saves, stage, throughput, fairness, footprint):
        try:
            code = max(code, part.main())
        except Exception:
            traceback.print_exc()
            code = 1
    return code


if __name__ == "__main__":
    end_with(main)
