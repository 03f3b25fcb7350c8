"""Stages a snapshot in a fork: all is imported already, and what is stuck can be killed while the watching goes on.

The fork does what `python -m deployer.releases.stage` does (releases/stage.py), with two things besides. A snapshot is
of one moment: before and after its copy the fork asks (one message each way) whether the source is quiet, and whether
anything of it changed meanwhile; then it is copied again. And what changed must parse (parse.py).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
import warnings
from collections.abc import Callable
from typing import NoReturn

from deployer.errors import Exit, SourceError
from deployer.osutil.process import describe_exit, kill_group

# What only some stagings need is imported here, before any forks, and not when somebody waits for one.
from deployer.releases import again, build, python, stage  # noqa: F401
from deployer.releases import process as manners
from deployer.releases.fetch import Fetched
from deployer.releases.request import StageRequest, decode_line
from deployer.releases.sources.base import shown
from deployer.watch.parse import check
from deployer.watch.protocol import Error, Progress, Result, ToManager
from deployer.wire.schema import Problem

STOP_S = 30.0  # how long a cancelled fork may take to remove what it made
UNQUIET_S = 5.0  # how long a tree is copied again and again
BEGIN, WHOLE = b"begin", b"whole"  # the fork's questions
YES, NO = b"+", b"-"  # answers; a no is followed by what changed
_READ = 1 << 16
_ANSWER = 4096


class Stager:
    """At most one staging at a time; the caller's poll tells when to call what."""

    def __init__(self, tell: Callable[[ToManager], None]) -> None:
        self.asked: bytes | None = None  # what the fork waits to hear
        self._tell = tell
        self._pid: int | None = None
        self._words = self._questions = -1
        self._rest = b""
        self._answered = True
        self._cancelled = False
        self._kill_at: float | None = None

    @property
    def busy(self) -> bool:
        """A staging is under way that has said neither result nor error."""
        return not self._answered

    @property
    def words(self) -> int | None:
        """Readable: `hear`."""
        return self._words if self._words >= 0 else None

    @property
    def questions(self) -> int | None:
        """Readable: `hear_question`."""
        return self._questions if self._questions >= 0 else None

    @property
    def kill_at(self) -> float | None:
        """By time.monotonic: when to call `kill`."""
        return self._kill_at

    def begin(self, request: StageRequest) -> None:
        self.end()  # the one before has said its last word, and needs no time to end
        words, told = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _stage(parent, request, told, theirs)
        os.setpgid(pid, pid)  # the fork does so too: whoever comes first
        os.close(told)
        theirs.close()
        self._pid, self._words, self._questions = pid, words, ours.detach()
        os.set_blocking(words, False)
        self._rest, self._answered, self._cancelled, self._kill_at = b"", False, False, None

    def cancel(self) -> None:
        if self._pid is not None and not self._answered and not self._cancelled:
            self._cancelled = True
            self._kill_at = time.monotonic() + STOP_S
            os.killpg(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        self._kill_at = None
        if self._pid is not None:
            kill_group(self._pid)

    def hear(self) -> None:
        """Tell the manager what the fork says; reap it when it says nothing any more."""
        data = os.read(self._words, _READ)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._pass_on(line)
        if not data:
            self.end()

    def hear_question(self) -> None:
        """It stands in `asked` until it is answered or nobody waits for that any more."""
        try:
            self.asked = os.read(self._questions, _ANSWER) or None
        except ConnectionError:
            self.asked = None  # it was killed
        if self.asked is None:
            self._close_questions()

    def answer(self, text: bytes) -> None:
        self.asked = None
        try:
            os.write(self._questions, text[:_ANSWER])
        except ConnectionError:
            pass  # it was killed

    def end(self) -> None:
        """Wait for the fork that has nothing more to say; one that ended without a last word gets one."""
        if self._pid is None:
            return
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid, self._kill_at = None, None
        os.close(self._words)
        self._words = -1
        self._close_questions()
        if not self._answered:
            self._answered = True
            self._tell(Error(error=_silent(status, cancelled=self._cancelled)))

    def _close_questions(self) -> None:
        self.asked = None
        if self._questions >= 0:
            os.close(self._questions)
            self._questions = -1

    def stop(self) -> None:
        """Nothing is left of a staging, and nobody is told."""
        if self._pid is None:
            return
        self._tell = _nobody
        self.cancel()
        pidfd = os.pidfd_open(self._pid)
        try:
            select.select([pidfd], [], [], STOP_S)
        finally:
            os.close(pidfd)
        kill_group(self._pid)
        self.end()

    def _pass_on(self, data: bytes) -> None:
        line = decode_line(data)
        if line.progress is not None:
            self._tell(Progress(text=line.progress))
        elif line.result is not None:
            self._answered = True
            self._tell(Result(result=line.result))
        elif line.error is not None:
            self._answered = True
            self._tell(Error(error=line.error))


class OneMoment(stage.Conditions):
    """The fork's side."""

    def __init__(self, questions: socket.socket) -> None:
        self._questions = questions

    def take(self, copy: Callable[[], Fetched]) -> Fetched:
        deadline = time.monotonic() + UNQUIET_S
        while True:
            self._ask(BEGIN)
            failure: SourceError | None = None
            try:
                fetched = copy()
            except SourceError as error:
                failure = error
            changed = self._ask(WHOLE)
            if changed is None:
                if failure is not None:
                    raise failure
                return fetched
            if time.monotonic() >= deadline:
                raise SourceError(
                    "files change all the time",
                    cause=f"{shown(changed)} was written while the source was copied, for {UNQUIET_S:.0f} s",
                    hint="add what is written to `ignore` in [watch] of deployer.toml, or to .gitignore",
                ) from failure

    def accept(self, taken: stage.Taken) -> None:
        check(taken)

    def _ask(self, question: bytes) -> str | None:
        """None for yes; else what changed."""
        self._questions.send(question)
        answer = self._questions.recv(_ANSWER)
        return os.fsdecode(answer[1:]) if answer.startswith(NO) else None


def _stage(parent: int, request: StageRequest, told: int, questions: socket.socket) -> NoReturn:
    """The fork: never returns into the code it was forked from."""
    status: int = Exit.BUG
    try:
        os.setpgid(0, 0)
        manners.die_with_parent()
        manners.raise_on_stop()
        if os.getppid() == parent:
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(nothing, 0)
            os.dup2(told, 1)
            os.closerange(3, questions.fileno())
            os.closerange(questions.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
            gc.disable()  # it lives for some milliseconds
            warnings.simplefilter("ignore")  # of files that are compiled: the worker that imports them tells
            status = stage.perform(lambda: request, OneMoment(questions))
    finally:
        os._exit(status)


def _nobody(word: ToManager) -> None:
    """Listens."""


def _silent(status: int, *, cancelled: bool) -> Problem:
    if cancelled:
        return Problem(what="staging was stopped", exit=Exit.TERMINATED, reason="aborted")
    cause = f"it ended: {describe_exit(status)[2]}"
    return Problem(what="staging failed without saying why", cause=cause, exit=Exit.NOT_STARTED, reason="source")
