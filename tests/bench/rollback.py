"""How long `deployer rollback` takes: 4 workers that boot in 0.3 s, against boot x (workers + 1) + 0.5 s.

python -m tests.bench.rollback [TIMES]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator

from tests.cluster import Cluster

WORKERS, BOOT_S, SLACK_S = 4, 0.3, 0.5
LIMIT_S = BOOT_S * (WORKERS + 1) + SLACK_S


def measure(times: int) -> Iterator[tuple[float, float, float]]:
    """(seconds of the rollout, of the command, of the slowest worker's boot as it was on this machine just then)."""
    with Cluster(count=WORKERS) as shop:
        shop.write(label="one", boot_s=BOOT_S)
        shop.run("up", code=0)
        shop.write(label="two", boot_s=BOOT_S)
        shop.run("deploy", code=0)
        for _ in range(times):
            began = time.monotonic()
            done = shop.run("rollback", "--json", *(["v2"] if shop.current() == "v1" else []), code=0)
            spent = time.monotonic() - began
            boots = [event["seconds"] for event in done.events if event["event"] == "worker.ready"]
            yield done.last["seconds"], spent, max(boots)


def main() -> int:
    figures = list(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
    print(f"rollback of {WORKERS} workers that boot in {BOOT_S} s; at most {LIMIT_S:.1f} s")
    for rollout, command, boot in figures:
        beside = rollout - boot * (WORKERS + 1)
        print(f"  rollout {rollout:.2f} s  command {command:.2f} s  slowest boot {boot:.2f} s  beside {beside:.2f} s")
    return 0 if statistics.median(rollout for rollout, _, _ in figures) <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
