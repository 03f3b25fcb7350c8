"""Background tasks whose failure is never silent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def watched(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that hands an exception to the loop's handler, which ends the process: a bug must be seen, and a
    manager that starts again knows where it was."""
    task = asyncio.get_running_loop().create_task(coroutine)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    task.get_loop().call_exception_handler({"message": "a background task failed", "exception": error, "task": task})
