"""A thousand rolling restarts of workers of an `app`, with clients that are busy, idle for seconds, slow, and new.

python -m tests.bench.restarts [WORKERS]   how many workers are restarted in all (1000)

Counted is what the promise is about: requests that were sent and not answered whole. 0 is met.
"""

from __future__ import annotations

import shutil
import sys
import time

from tests import apps
from tests.bench.table import end_with
from tests.cluster import Cluster
from tests.load import LoadProcess

RESTARTED, COUNT = 1000, 4
CLIENTS = {"keepalive": 8, "fresh": 3, "slow": 3, "idle": 24, "slow_keepalive": 4, "slow_path": "/slow?s=0.5"}


def plant(cluster: Cluster) -> None:
    shutil.copytree(apps.HERE / "watched", cluster.directory)
    (cluster.directory / "views.py").write_text("LABEL = 'restarts'\n\n\ndef answering():\n    pass\n")
    (cluster.directory / "deployer.toml").write_text(
        f'name = "restarts"\n\n[worker]\napp = "app:app"\ncount = {COUNT}\ndrain_timeout = "10s"\n\n'
        f'[[listen]]\naddress = "{cluster.address}"\n\n[health]\nhttp = "/healthz"\n'
    )


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else RESTARTED
    with Cluster() as cluster:
        plant(cluster)
        cluster.run("up", code=0)
        began, restarted = time.monotonic(), 0
        with LoadProcess(cluster.address, **CLIENTS) as load:
            while restarted < wanted:
                cluster.run("restart", "--quiet", code=0)
                restarted += COUNT
            report = load.stop()
        spent = time.monotonic() - began
    print(
        f"{restarted} restarts of workers ({restarted // COUNT} of all {COUNT}) in {spent:.0f} s: "
        f"{report.requests} requests, {report.lost} lost, {report.errors} errors; "
        f"p99 {report.p99_s * 1000:.0f} ms, longest {report.max_s:.2f} s"
    )
    return 0 if report.lost == 0 and report.errors == 0 else 1


if __name__ == "__main__":
    end_with(main)
