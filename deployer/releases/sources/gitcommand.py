"""Running git through GitPython: bounded in time, killed with its helpers, its complaints cut to the line that matters.

Only the staging child imports this: GitPython itself advises against long-running processes.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from git import Git, GitCommandNotFound

from deployer.errors import SourceError
from deployer.releases.process import STOP_SIGNALS, die_with_parent
from deployer.releases.sources.credentials import mask
from deployer.releases.sources.tarstream import TruncatedError

LOCAL_TIMEOUT_S = 120.0
"""For questions to a repository on this machine; `git status` of a large work tree on a cold disk takes a minute."""
ASK_TIMEOUT_S = 60.0
"""For one question to a remote (`ls-remote`)."""
TRANSFER_TIMEOUT_S = 900.0
"""For a fetch or an export; the same 15 minutes a build gets."""
EXIT_WAIT_S = 5.0
"""From the end of git's output to its exit."""

OPTIONS = (
    "protocol.ext.allow=never",
    "protocol.file.allow=always",
    "core.autocrlf=false",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "log.showSignature=false",
    "gc.autoDetach=false",  # nothing may go on in the background after this process ended
    "maintenance.autoDetach=false",
    "http.lowSpeedLimit=1000",  # bytes a second; slower than that for lowSpeedTime seconds is dead
    "http.lowSpeedTime=60",
    "tar.umask=0022",
    "filter.lfs.smudge=",  # pointers are looked for by deployer: no archive may wait for a server behind its back
    "filter.lfs.process=",
    "filter.lfs.required=false",
)

_NO_SPACE = re.compile("No space left on device|Disk quota exceeded")
_NOISE = (
    "Please make sure you have the correct access rights",
    "and the repository exists.",
    "fatal: Could not read from remote repository.",
    "fatal: the remote end hung up unexpectedly",
    "fatal: early EOF",
    "error: failed to fetch some objects from",  # of git-lfs, after what it says about one of them
    "hint:",
)


class GitFailedError(Exception):
    """git ended with an error; `cause` is the line of its stderr that says why, credentials masked."""

    def __init__(self, stderr: str, cause: str | None = None) -> None:
        self.stderr = mask(stderr)
        self.cause = cause or _last_line(self.stderr)
        super().__init__(self.cause)


@dataclass(frozen=True)
class Output:
    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Stdout as text; what is no UTF-8 (old commits' authors) is replaced."""
        return self.stdout.decode("utf-8", "replace").rstrip("\n")


class GitCommand:
    """git in one place: `git_dir` for our bare mirror, `directory` to look at somebody's work tree."""

    def __init__(self, directory: Path, *, git_dir: Path | None = None, ceiling: Path | None = None) -> None:
        self._git = Git(str(directory))
        if ceiling is not None:
            self._git.update_environment(GIT_CEILING_DIRECTORIES=str(ceiling))
        self._prefix = ["git"]
        for option in OPTIONS:
            self._prefix += ["-c", option]
        if git_dir is not None:
            self._prefix.append(f"--git-dir={git_dir}")

    def run(self, *arguments: str, timeout_s: float = LOCAL_TIMEOUT_S) -> Output:
        """Run to the end, whatever the status. Raises GitFailedError on a time-out, OSError for a full disk."""
        process, mask = self._start(arguments)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise GitFailedError("", f"git {arguments[0]} gave no answer in {timeout_s:g} s") from error
        finally:
            _kill(process)
        output = Output(process.returncode, stdout, stderr.decode("utf-8", "replace"))
        if output.status != 0:
            _raise_if_full(output.stderr)
        return output

    def check(self, *arguments: str, timeout_s: float = LOCAL_TIMEOUT_S) -> Output:
        """As `run`, and GitFailedError for any status but 0."""
        output = self.run(*arguments, timeout_s=timeout_s)
        if output.status != 0:
            raise GitFailedError(output.stderr)
        return output

    @contextmanager
    def stream(self, *arguments: str, timeout_s: float = TRANSFER_TIMEOUT_S) -> Iterator[IO[bytes]]:
        """git's stdout while it runs. GitFailedError when git fails, also where the reader notices that first."""
        process, mask = self._start(arguments)
        assert process.stdout is not None
        assert process.stderr is not None
        complaints: list[bytes] = []
        drain = threading.Thread(target=_drain, args=(process.stderr, complaints), daemon=True)
        timer = threading.Timer(timeout_s, _kill_group, args=(process.pid,))
        timer.daemon = True
        drain.start()
        timer.start()
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            try:
                yield process.stdout
                while process.stdout.read(1 << 16):
                    pass  # padding after the end of the archive: closing now would be SIGPIPE for git
            except TruncatedError as error:
                cut_short: TruncatedError | None = error
            else:
                cut_short = None
            status = process.wait(EXIT_WAIT_S)
            drain.join(EXIT_WAIT_S)
        finally:
            timer.cancel()
            _kill(process)
        if status != 0 or cut_short is not None:
            stderr = b"".join(complaints).decode("utf-8", "replace")
            _raise_if_full(stderr)
            raise GitFailedError(stderr, None if stderr else f"git {arguments[0]} was cut short") from cut_short

    def _start(self, arguments: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], set[int]]:
        """git, and the signal mask to go back to when its end is provided for: a stop signal raised before that would
        leave its helpers running."""
        mask: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS))
        try:
            handle = self._git.execute(
                [*self._prefix, *arguments],
                as_process=True,
                start_new_session=True,  # ssh and the transfer helpers are killed with it, and have no terminal to ask
                preexec_fn=_in_child,
            )
        except BaseException as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if isinstance(error, GitCommandNotFound):
                raise SourceError("git is not installed", hint="apt-get install git") from error
            raise
        process = handle.proc
        assert process is not None
        handle.proc = None  # its finalizer would terminate and close behind our back
        return process, mask


def _in_child() -> None:
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _last_line(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_NOISE)]
    return (telling or lines or ["git gave no reason"])[-1]


def _raise_if_full(stderr: str) -> None:
    if _NO_SPACE.search(stderr):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "git")


def _drain(pipe: IO[bytes], into: list[bytes]) -> None:
    while chunk := pipe.read1(1 << 16):  # type: ignore[attr-defined]
        into.append(chunk)
        del into[:-16]


def _kill(process: subprocess.Popen[bytes]) -> None:
    _kill_group(process.pid)  # also when git has ended: a helper that outlives it keeps the group, and its number
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it ended by itself; the number is nobody's, or a stranger's
