"""Processes that workers are forked from, or are to be: which one is of use, and what they are told."""

from __future__ import annotations

import errno
import marshal
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deployer.wire.schema import TEMPLATE_SLOT, WARM_SLOT
from deployer.workers.worker import Fit, Worker


def template_of(release: str, workers: Iterable[Worker]) -> Worker | None:
    """The one that workers of `release` can be forked from now."""
    found = (w for w in workers if w.slot == TEMPLATE_SLOT and w.release.name == release)
    return next((worker for worker in found if worker.can_fork), None)


def warm_of(fit: Fit, workers: Iterable[Worker]) -> Worker | None:
    """The newest warm template of this fit."""
    ready = [w for w in workers if w.slot == WARM_SLOT and w.can_fork and w.fit == fit]
    return max(ready, key=lambda worker: worker.id, default=None)


def tell_names(warm: Worker, names: Sequence[str]) -> None:
    """What to import. OSError: there was no room for all of it, and it waits for the rest."""
    channel = warm.channel
    if channel is None or not (channel.send_names("import", names) and channel.send({"op": "go"})):
        raise OSError(errno.ENOBUFS, "it takes no messages")


def tell_template(worker: Worker, what: Mapping[str, Any]) -> None:
    """What to become. Does no harm to one that was started as a template, or that has heard it already."""
    if worker.channel is None:
        return
    fd = os.memfd_create("order", os.MFD_CLOEXEC)  # unlike a pipe it takes all of it, however busy the reader
    with os.fdopen(fd, "w+b") as file:
        file.write(marshal.dumps(dict(what)))
        file.seek(0)
        worker.channel.send({"op": "become"}, [fd])
