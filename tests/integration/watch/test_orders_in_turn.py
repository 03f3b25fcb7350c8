"""An order that the watching child reads in the same moment as the end of the staging before."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from deployer.config.model import Build
from deployer.releases.request import StageResult
from deployer.watch.protocol import Stage
from tests.integration.watch.watchkit import CONFIG, Child, wait_until


def test_the_next_staging_takes_nothing_for_its_own(watch: Callable[..., Child], source: Path) -> None:
    """Its pipes get the numbers of those that have just ended."""
    child = watch()
    built = source.parent / "built"
    config = msgspec.structs.replace(CONFIG, build=Build(run=[f"touch {built}; sleep 0.3"]))
    child.send(Stage(request=child.request(host_config=config)))
    wait_until(built.exists)
    os.kill(child.process.pid, signal.SIGSTOP)
    try:
        (fork,) = psutil.Process(child.process.pid).children()
        wait_until(lambda: fork.status() == psutil.STATUS_ZOMBIE)
        child.send(Stage(request=child.request()))
    finally:
        os.kill(child.process.pid, signal.SIGCONT)
    for name in ("dev-1", "dev-2"):
        result = child.answer()
        assert isinstance(result, StageResult), result
        assert result.name == name
