"""One hook as a process: in a session of its own, told its context on stdin, heard line by line, and ended whole.

/bin/sh waits at a gate, the first line of its stdin, and only then becomes the hook. The manager writes that line when
the process is in state.db; if it dies before, the pipe ends and the hook never runs: none runs that nobody knows of.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployer.logs.capture import LineReader, open_pipe
from deployer.osutil.process import environment, open_pidfd, start_ticks

SHELL = "/bin/sh"
GATE = 'IFS= read -r go && cd "$1" && shift && exec "$@"'
STDIN_MAX = 64 * 1024  # bytes: what a pipe takes at once, pipe(7)
GRACE_S = 5.0  # from SIGTERM to SIGKILL, for a hook that took too long or is not wanted any more
LEFTOVER_S = 1.0  # how long what a hook left behind may go on writing
GONE_S = 2.0  # how long the end of a killed process is waited for


@dataclass(frozen=True)
class End:
    """`code` as subprocess has it: negative for a signal."""

    code: int
    timed_out: bool


class HookProcess:
    """Started, but waiting at the gate: `go`, then `wait`. A cancelled `wait` ends it and all its group."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        reading, writing = open_pipe()
        stdin_r, self._stdin = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = _spawn([SHELL, "-c", GATE, "deployer-hook", str(cwd), *argv], env, stdin_r, writing)
        except OSError:
            os.close(reading)
            os.close(self._stdin)
            raise
        finally:
            os.close(stdin_r)
            os.close(writing)
        self._pidfd = os.pidfd_open(self.pid)
        self.ticks = start_ticks(self.pid) or 0
        self._reader = LineReader(reading, on_line)
        self._exit = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    def go(self, data: bytes) -> None:
        """Let it run, with `data` on its stdin."""
        line = b"go\n" + data
        assert len(line) <= STDIN_MAX, "more than a pipe takes would block the manager"
        try:
            os.write(self._stdin, line)
        except BrokenPipeError:
            pass  # it was killed already; `wait` tells
        os.close(self._stdin)

    async def wait(self, timeout: float) -> End:
        """How it ended. What it left behind in its group ends with it."""
        code: int | None = None
        try:
            timed_out = not await _within(self._exit, timeout)
            if timed_out:
                self._signal(signal.SIGTERM)
                if not await _within(self._exit, GRACE_S):
                    self._signal(signal.SIGKILL)
                    await self._exit.wait()
            await _within(self._reader.ended, LEFTOVER_S)
        except asyncio.CancelledError:
            self._signal(signal.SIGTERM)
            await _within(self._exit, GRACE_S)
            raise
        finally:
            self._signal(signal.SIGKILL)  # before it is reaped: later the id may be another's
            self._reader.finish()
            code = self._reap()
        assert code is not None
        return End(code, timed_out)

    # Private

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exit.set()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # only its zombie is left, or it made itself another user

    def _reap(self) -> int | None:
        """Its exit code; None when it was killed this moment and is still about to end."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            loop.add_reader(self._pidfd, self._reap)
            return None
        os.close(self._pidfd)
        return os.waitstatus_to_exitcode(status)


def end_inherited(pid: int, ticks: int, mark: Mapping[str, str]) -> None:
    """Kill the group of a hook that a dead manager left. `mark`: variables by which its children are known when it is
    itself gone and nothing else tells whether the group's number still means the same."""
    pidfd = open_pidfd(pid, ticks)
    if pidfd is not None:
        try:
            os.killpg(pid, signal.SIGKILL)
            select.select([pidfd], [], [], GONE_S)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
        return
    for name in os.listdir("/proc"):
        if name.isdecimal() and _is_left(int(name), pid, mark):
            try:
                os.kill(int(name), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def _is_left(pid: int, session: int, mark: Mapping[str, str]) -> bool:
    try:
        return os.getsid(pid) == session and mark.items() <= environment(pid).items()
    except (ProcessLookupError, PermissionError):
        return False


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _spawn(argv: list[str], env: Mapping[str, str], stdin: int, output: int) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    defaults = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ]
    return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=defaults)
