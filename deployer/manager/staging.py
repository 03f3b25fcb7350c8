"""Runs the staging child (git, copying) and hears it. The manager itself never imports git."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import msgspec

from deployer.errors import Exit
from deployer.releases.request import StageRequest, StageResult, decode_line, encode_request
from deployer.wire.schema import Problem

LINE_LIMIT = 64 * 1024 * 1024  # a result carries the release's environment
STDERR_TAIL = 20
STOP_S = 30.0  # how long the child may take to remove what it made


async def stage(request: StageRequest, on_progress: Callable[[str], None]) -> StageResult | Problem:
    """What the child made, or why it could not. Cancelling kills the child and all it started."""
    child = await start("deployer.releases.stage", request.root)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    errors = asyncio.create_task(child.stderr.read())
    ended: StageResult | Problem | None = None
    try:
        # A resumed rollout's request was written by a manager that is dead.
        child.stdin.write(encode_request(msgspec.structs.replace(request, parent=os.getpid())))
        child.stdin.close()
        async for data in child.stdout:
            line = decode_line(data)
            if line.progress is not None:
                on_progress(line.progress)
            ended = line.result or line.error or ended
        await child.wait()
    except (msgspec.DecodeError, ConnectionError) as error:
        ended = _broken(f"it wrote what nobody understands: {error}", await _kill(child, errors))
    except asyncio.CancelledError:
        await _stop(child)
        errors.cancel()
        raise
    return ended or _broken(f"it ended with {child.returncode}", await errors)


async def _stop(child: asyncio.subprocess.Process) -> None:
    """SIGTERM lets it remove what it made; then its group is killed."""
    signal_all(child, signal.SIGTERM)
    try:
        await asyncio.wait_for(child.wait(), STOP_S)
    except TimeoutError:
        pass  # killed below
    signal_all(child, signal.SIGKILL)
    await child.wait()


async def _kill(child: asyncio.subprocess.Process, errors: asyncio.Task[bytes]) -> bytes:
    signal_all(child, signal.SIGKILL)
    await child.wait()
    return await errors


async def start(module: str, root: str) -> asyncio.subprocess.Process:
    """A child of ours, in a session of its own, that is spoken to by lines. OSError: it cannot be started."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the working directory is no place to import from
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        cwd=root,
        limit=LINE_LIMIT,
    )


def signal_all(child: asyncio.subprocess.Process, number: int) -> None:
    """To the child and all of its group."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass  # it and all of its group have ended


def _broken(why: str, stderr: bytes) -> Problem:
    lines = stderr.decode(errors="replace").splitlines()[-STDERR_TAIL:]
    cause = "\n".join([why, *lines])
    return Problem(what="staging failed without saying why", cause=cause, exit=Exit.NOT_STARTED, reason="source")
