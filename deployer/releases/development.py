"""What a release made of a save is like: as the configuration says, without what a developer would wait for."""

from __future__ import annotations

import msgspec

from deployer.config.model import Config, Hooks, OnFailure
from deployer.releases.request import Development


def shaped(config: Config, development: Development) -> Config:
    """Pure. A warm template takes the place of `preload`; hooks, soak and standby are for releases."""
    replace = msgspec.structs.replace
    worker = replace(config.worker, preload=False, stop_signal=development.stop_signal or config.worker.stop_signal)
    return replace(
        config,
        worker=worker,
        rollout=replace(config.rollout, soak="0s", standby="0s", on_failure=OnFailure.REVERT),
        hooks=Hooks(),
        build=replace(config.build, run=config.watch.build or config.build.run),
    )
