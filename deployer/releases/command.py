"""Runs the commands of a build: in a process group, until a deadline, with their output in the log and told live."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from deployer.errors import BuildError
from deployer.osutil.process import describe_exit, kill_group
from deployer.releases.guard import Guard
from deployer.releases.process import STOP_SIGNALS, die_with_parent
from deployer.units import format_duration

TAIL_LINES = 30  # of a failed command
TELL_S = 0.25
"""Between two lines of progress, each of which is a commit in state.db: four a second, however much is printed."""
TOLD_LINES = 20  # at most, in each of them
TOLD_WIDTH = 400
TERM_GRACE_S = 2.0  # from SIGTERM to SIGKILL for a command that ran out of time
LINE_MAX = 16 * 1024  # bytes; a longer line is cut into several
LOG_MAX = 32 << 20  # bytes of output kept on disk: one that prints without end must not fill it
SECRET_MIN = 6  # characters; shorter values would blot out ordinary words
MASK = "***"


class Runner:
    """The commands of one build share a log, a deadline and the secrets that none of them may show."""

    def __init__(self, *, log: Path, timeout_s: float, timeout: str, tell: Callable[[str], None]) -> None:
        self._log, self._timeout, self._tell = log, timeout, tell
        self._deadline = time.monotonic() + timeout_s
        self._secrets: re.Pattern[str] | None = None
        self._logged = 0
        self._unwritten = bytearray()
        self._fd: int | None = None

    def keep_secret(self, values: Sequence[str]) -> None:
        """Lines are told one by one: of a value with several lines each is a secret of its own."""
        parts = {line.strip() for value in values for line in value.splitlines()}
        long = sorted((part for part in parts if len(part) >= SECRET_MIN), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, long))) if long else None

    def run(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], title: str) -> None:
        """Raises BuildError when the command fails, cannot be started, or the build's time is over; OSError for the
        disk that the log is on."""
        self._note(f"$ {title}")
        self._write()
        self._tell(self._masked(f"$ {title}"))
        began = time.monotonic()
        output = _Output(self._note, self._tell, self._log)
        try:
            code = self._execute(argv, cwd, env, output, title)
        finally:
            output.finish()
            self._write()
        took = format_duration(time.monotonic() - began)
        text = describe_exit(code)[2]
        self._note(f"[{text} after {took}]")
        self._write()
        if code != 0:
            raise self._failed(f"`{self._masked(title)}` failed: {text}", f"it ran for {took}", output)

    def check_time(self, what: str) -> None:
        """For waits between commands."""
        if time.monotonic() >= self._deadline:
            raise self._late(what, None)

    def _execute(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], output: _Output, title: str) -> int:
        with Guard() as guard:
            # A stop signal that is raised between fork and `try` would leave the command running.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                process = self._start(argv, cwd, env, title, guard)
            except BaseException:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                raise
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                self._follow(process, output, title)
            finally:
                kill_group(process.pid)  # also what a finished command left in the background
                process.wait()
                guard.dismiss()
                assert process.stdout is not None
                process.stdout.close()
        return process.returncode

    def _start(
        self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], title: str, guard: Guard
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                argv,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=partial(_prepare, guard),
            )
        except OSError as error:
            raise BuildError(f"cannot run `{self._masked(title)}`", cause=error.strerror) from error

    def _follow(self, process: subprocess.Popen[bytes], output: _Output, title: str) -> None:
        """Until the command itself ends: a background process may hold its output open for ever."""
        assert process.stdout is not None
        stdout = process.stdout.fileno()
        os.set_blocking(stdout, False)
        pidfd = os.pidfd_open(process.pid)
        try:
            self._listen(process.pid, pidfd, stdout, output, title)
        finally:
            os.close(pidfd)

    def _listen(self, pid: int, pidfd: int, stdout: int, output: _Output, title: str) -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(stdout, select.POLLIN)
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                _terminate(pid, pidfd)
                _read(stdout, output)
                raise self._late(title, output)
            ready = dict(poll.poll(1000 * min(left, output.due_s())))
            if stdout in ready and not _read(stdout, output):
                poll.unregister(stdout)
            self._write()
            output.tell_due()
            if pidfd in ready:
                _read(stdout, output)
                return

    # Failures

    def _failed(self, what: str, cause: str | None, output: _Output | None) -> BuildError:
        error = BuildError(what, cause=cause, hint=f"less {self._log}")
        error.tail = () if output is None else output.tail()
        return error

    def _late(self, doing: str, output: _Output | None) -> BuildError:
        what = f"the build was not done within [build] timeout = {self._timeout}"
        self._note(f"[{what}]")
        self._write()
        return self._failed(what, f"`{self._masked(doing)}` was running", output)

    # What is written

    def _note(self, line: str) -> str:
        """The line as it may be shown; it goes to the log with the next `_write`."""
        line = self._masked(line)
        data = f"{line}\n".encode("utf-8", "replace")
        before, self._logged = self._logged, self._logged + len(data)
        if self._logged <= LOG_MAX:
            self._unwritten += data
        elif before <= LOG_MAX:
            self._unwritten += b"... more than this log may hold\n"
        return line

    def _write(self) -> None:
        if self._fd is None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._log, flags, 0o600)
        while self._unwritten:
            del self._unwritten[: os.write(self._fd, self._unwritten)]

    def _masked(self, text: str) -> str:
        return self._secrets.sub(MASK, text) if self._secrets else text


class _Output:
    """One command's output: cut into lines, the last ones kept, progress told in batches."""

    def __init__(self, note: Callable[[str], str], tell: Callable[[str], None], log: Path) -> None:
        self._note, self._tell, self._log = note, tell, log
        self._last: deque[str] = deque(maxlen=TAIL_LINES)
        self._untold: deque[str] = deque(maxlen=TOLD_LINES)
        self._skipped = 0
        self._rest = b""
        self._due_at = 0.0

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take_line(line)
        while len(self._rest) > LINE_MAX:
            self._take_line(self._rest[:LINE_MAX])
            self._rest = self._rest[LINE_MAX:]

    def due_s(self) -> float:
        """How long until there is something to tell."""
        return max(0.0, self._due_at - time.monotonic()) if self._untold else 3600.0

    def tell_due(self) -> None:
        if self._untold and time.monotonic() >= self._due_at:
            self._flush()

    def finish(self) -> None:
        if self._rest:
            self._take_line(self._rest)
            self._rest = b""
        if self._untold:
            self._flush()

    def tail(self) -> tuple[str, ...]:
        if self._rest:
            self._take_line(self._rest)
            self._rest = b""
        return tuple(self._last)

    def _take_line(self, data: bytes) -> None:
        # A progress bar draws over itself: what stands there at the end is the line.
        text = data.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
        line = self._note(text)
        self._last.append(line)
        if not line.strip():
            return
        if len(self._untold) == TOLD_LINES:
            self._skipped += 1
        self._untold.append(line[:TOLD_WIDTH])

    def _flush(self) -> None:
        more = [f"... {self._skipped} lines more in {self._log}"] if self._skipped else []
        self._tell("\n".join([*more, *self._untold]))
        self._untold.clear()
        self._skipped = 0
        self._due_at = time.monotonic() + TELL_S


def _read(fd: int, output: _Output) -> bool:
    """All there is now; False at its end."""
    for _ in range(4):  # then the caller looks at its clock: some print faster than anybody reads
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        output.take(data)
    return True


def _terminate(pid: int, pidfd: int) -> None:
    """SIGTERM to the group, and a moment to obey; the caller kills what is left."""
    try:
        os.killpg(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    select.select([pidfd], [], [], TERM_GRACE_S)


def _prepare(guard: Guard) -> None:
    """Between fork and exec."""
    guard.watch_me()
    die_with_parent()
    for number in (*STOP_SIGNALS, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    usual = os.environ.get("DEPLOYER_OPEN_FILES")
    if usual is not None:  # the keeper raised it for itself; loops over all descriptors would take minutes
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(usual), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
