"""The process that watches a source, and stages what is saved in it (deployer/watch): started, heard, asked, ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import msgspec
import structlog

from deployer.manager.staging import STDERR_TAIL, STOP_S, signal_all, start
from deployer.osutil.tasks import watched
from deployer.releases.request import StageRequest, StageResult
from deployer.watch import protocol
from deployer.watch.protocol import Error, Fault, Progress, Result, Saved, Settings, Watching
from deployer.wire.schema import Problem

END_S = 5.0  # how long it may take to end when it is told to

log = structlog.get_logger()


class ChildGoneError(Exception):
    """It ended while it staged: what it made is to be made again."""


class WatchChild:
    """One process. `hear` gets what it has to say, `on_end` why it ended, unless it was `close`d."""

    def __init__(
        self, settings: Settings, hear: Callable[[Watching | Fault | Saved], None], on_end: Callable[[str], None]
    ) -> None:
        self.settings, self._hear, self._on_end = settings, hear, on_end
        self._process: asyncio.subprocess.Process | None = None
        self._staging: asyncio.Future[StageResult | Problem] | None = None
        self._tell: Callable[[str], None] = lambda text: None
        self._closing = False
        self._task = watched(self._run())

    async def stage(self, request: StageRequest, on_progress: Callable[[str], None]) -> StageResult | Problem:
        """What it made, or why it could not. Cancelling undoes it. ChildGoneError: nobody knows what became of it."""
        while self._staging is not None:  # one that was cancelled, and takes its leave
            await asyncio.wait([self._staging])
        staging = self._staging = asyncio.get_running_loop().create_future()
        staging.add_done_callback(_seen)
        self._tell = on_progress
        self._say(protocol.Stage(request=request))
        try:
            return await asyncio.shield(staging)
        except asyncio.CancelledError:
            if not staging.done():
                self._say(protocol.Cancel())
                asyncio.get_running_loop().call_later(STOP_S, self._end_if_busy_with, staging)
                await asyncio.wait([staging])
            raise

    async def close(self) -> None:
        """It ends, and with it what it was staging."""
        self._closing = True
        if self._process is None:
            self._task.cancel()  # kills what is about to be there (asyncio.create_subprocess_exec)
        elif self._process.stdin is not None:
            self._process.stdin.close()
        done, _ = await asyncio.wait([self._task], timeout=END_S)
        if not done:
            self._kill()
            await asyncio.wait([self._task])

    # Private

    async def _run(self) -> None:
        try:
            self._process = process = await start("deployer.watch", self.settings.root)
        except OSError as error:
            self._gone(f"it cannot be started: {error}", b"")
            return
        assert process.stdout is not None
        assert process.stderr is not None
        errors = asyncio.create_task(process.stderr.read())
        why = None
        try:
            self._say(protocol.Watch(settings=self.settings))
            async for line in process.stdout:
                self._take(protocol.decode_word(line))
        except (msgspec.DecodeError, ValueError) as error:  # ValueError: a line beyond LINE_LIMIT
            why = f"it wrote what nobody understands: {error}"
            self._kill()
        await process.wait()
        self._gone(why or f"it ended with {process.returncode}", await errors)

    def _take(self, word: protocol.ToManager) -> None:
        match word:
            case Progress():
                self._tell(word.text)
            case Result():
                self._answer(word.result)
            case Error():
                self._answer(word.error)
            case _:
                self._hear(word)

    def _answer(self, answer: StageResult | Problem) -> None:
        """Each staging has one answer, in order."""
        staging, self._staging = self._staging, None
        if staging is not None:
            staging.set_result(answer)

    def _say(self, message: protocol.ToChild) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(protocol.encode(message))  # a pipe that broke: its end is heard

    def _end_if_busy_with(self, staging: asyncio.Future[StageResult | Problem]) -> None:
        if not staging.done():
            self._kill()

    def _gone(self, why: str, stderr: bytes) -> None:
        lines = stderr.decode(errors="replace").splitlines()[-STDERR_TAIL:]
        staging, self._staging = self._staging, None
        if staging is not None:
            staging.set_exception(ChildGoneError(why))
        if not self._closing:
            log.error("watch.child_ended", why=why, stderr=lines)
            self._on_end("\n".join([why, *lines[-1:]]))

    def _kill(self) -> None:
        if self._process is not None:
            signal_all(self._process, signal.SIGKILL)


def _seen(staging: asyncio.Future[StageResult | Problem]) -> None:
    """Its error may come when nobody waits for it any more."""
    if not staging.cancelled():
        staging.exception()
