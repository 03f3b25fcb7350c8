"""The descriptors of a worker that the keeper holds for the next manager: its log pipes, notify socket and channel."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence

from deployer.keeper.link import KeeperLink
from deployer.runtime.channel import Channel
from deployer.workers.start import STREAMS, close_notify
from deployer.workers.worker import Worker


class Kept:
    """Gives them to the keeper, and takes them back from it."""

    def __init__(self, keeper: KeeperLink) -> None:
        self._keeper = keeper

    def keep(self, worker: Worker, held: Sequence[int]) -> None:
        """`held`: the reading ends of its output, in the order of STREAMS."""
        for number, fd in enumerate(held):
            self._keeper.keep(_log_key(worker.id, number), fd)
        if worker.notify is not None:
            self._keeper.keep(_notify_key(worker.id), worker.notify.fileno())
        if worker.channel is not None:
            self._keeper.keep(_channel_key(worker.id), worker.channel.fileno())

    def take(self, worker: Worker) -> None:
        """Its notify socket and channel, as an earlier manager left them; none when the keeper is gone too."""
        notify = self._keeper.held.pop(_notify_key(worker.id), None)
        channel = self._keeper.held.pop(_channel_key(worker.id), None)
        worker.notify = None if notify is None else socket.socket(fileno=notify)
        worker.channel = None if channel is None else Channel(socket.socket(fileno=channel))

    def take_pipes(self, worker: Worker) -> tuple[int, ...]:
        """Of a worker that runs, for each of STREAMS."""
        return tuple(self._take_pipe(worker, number) for number in range(len(STREAMS)))

    def left_in_pipes(self, worker: Worker) -> list[tuple[int, int]]:
        """(stream, pipe) of a worker that has ended, where there is one."""
        found = ((number, self._keeper.held.pop(_log_key(worker.id, number), None)) for number in range(len(STREAMS)))
        return [(number, fd) for number, fd in found if fd is not None]

    def release(self, worker: Worker) -> None:
        """It has ended: nobody needs them any more."""
        if worker.notify is not None:
            close_notify(worker.notify)
            worker.notify = None
        if worker.channel is not None:
            worker.channel.close()
            worker.channel = None
        logs = [_log_key(worker.id, number) for number in range(len(STREAMS))]
        for key in (_notify_key(worker.id), _channel_key(worker.id), *logs):
            self._keeper.drop(key)

    def _take_pipe(self, worker: Worker, number: int) -> int:
        """From the keeper; when it is gone too, opened again through the worker's own end (proc(5), /proc/PID/fd)."""
        fd = self._keeper.held.pop(_log_key(worker.id, number), None)
        if fd is not None:
            return fd
        path = f"/proc/{worker.pid}/fd/{number + 1}"
        try:
            if stat.S_ISFIFO(os.stat(path).st_mode):
                return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass  # as below
        nothing, writing = os.pipe2(os.O_CLOEXEC)  # its output goes elsewhere: a pipe that ends at once
        os.close(writing)
        return nothing


def _log_key(number: int, stream: int) -> str:
    return f"log:{number}:{STREAMS[stream]}"


def _notify_key(number: int) -> str:
    return f"notify:{number}"


def _channel_key(number: int) -> str:
    return f"channel:{number}"
