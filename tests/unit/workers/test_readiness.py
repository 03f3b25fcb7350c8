"""What is said of a worker that was not ready in time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deployer.config.model import Config
from deployer.config.model import Worker as WorkerConfig
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.wire.schema import PREFLIGHT_SLOT, TEMPLATE_SLOT
from deployer.workers.readiness import until_ready
from deployer.workers.worker import Worker


def too_late(slot: int, *, ready_at: float | None = None, **config: Any) -> Failure:
    release = Release("v7", Path("/"), Config(name="a", worker=WorkerConfig(**config, ready_timeout="2s")), {})
    worker = Worker(1, slot, 1, release, (), pid=1, ticks=1, pidfd=-1, spawned_at=0.0, ready_at=ready_at)

    async def wait() -> Failure | None:
        return await until_ready(worker)  # its deadline, 0, is over

    failure = asyncio.run(wait())
    assert failure is not None
    assert failure.reason == "never_ready"
    return failure


@pytest.mark.parametrize(
    ("slot", "ready_at", "what"),
    [
        (TEMPLATE_SLOT, None, "the template did not finish importing shop:app within 2s"),
        (PREFLIGHT_SLOT, None, "the preflight worker did not finish starting shop:app within 2s"),
        (2, None, "worker 2 did not finish starting shop:app within 2s"),
        (1, 5.0, "worker 1 passed its preflight, but did not accept visitors in time: its event loop is stuck"),
    ],
)
def test_an_app_is_told_in_the_applications_terms(slot: int, ready_at: float | None, what: str) -> None:
    assert too_late(slot, ready_at=ready_at, app="shop:app").what == what


def test_a_command_is_told_in_those_of_its_protocol() -> None:
    assert too_late(1, command="x", ready="notify").what == "worker 1 did not send READY=1 within 2s"
