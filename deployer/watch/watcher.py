"""One loop that joins them all: the manager's orders, what changes in the source, the staging under way."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from deployer.releases.sources.base import shown
from deployer.watch.batch import Batch
from deployer.watch.change import Change, Kind
from deployer.watch.protocol import Cancel, Saved, Settings, Stage, ToChild, ToManager, Watch, decode_order
from deployer.watch.settle import WRITER_S, Settle
from deployer.watch.sight import Sight
from deployer.watch.stager import BEGIN, NO, WHOLE, YES, Stager

CHECKOUT_ASK_S = 0.01  # between two looks whether git is through
_READ = 1 << 16


class EndedError(Exception):
    """The manager wants no more: it has closed the pipe of its orders."""


class Orders:
    """Lines of the manager."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""

    def read(self) -> list[ToChild]:
        """Those that are whole, when `fd` is readable. Raises EndedError, msgspec.DecodeError."""
        data = os.read(self.fd, _READ)
        if not data:
            raise EndedError
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [decode_order(line) for line in lines]

    def first(self) -> Settings:
        """Waits for it."""
        while True:
            for order in self.read():
                assert isinstance(order, Watch)
                return order.settings


class Watcher:
    """From its making on it watches."""

    def __init__(self, settings: Settings, orders: Orders, tell: Callable[[ToManager], None]) -> None:
        self._orders = orders
        self._tell = tell
        self._stager = Stager(tell)
        self._settle = Settle(settings.settle_s)
        self._batch = Batch()
        self._disturbed: str | None = None  # what changed since the staging began its copy
        self._sight = Sight(settings, tell)
        self._suspect()

    def run(self) -> None:
        """Until EndedError is raised; then nothing is left of a staging."""
        try:
            while True:
                self._turn()
        finally:
            self._sight.close()
            self._stager.stop()

    def _suspect(self) -> None:
        """Nobody has seen who writes, or has just written: what is that fresh may be half of a file."""
        now, at = time.monotonic(), time.time()
        for written, path in self._sight.written_since(at - WRITER_S):
            self._settle.note(Change(path, Kind.WRITING), now - (at - written))

    def _turn(self) -> None:
        ready = self._wait()
        if self._stager.words in ready:
            self._stager.hear()
        if self._stager.questions in ready:
            self._stager.hear_question()
        if self._orders.fd in ready:  # last: a new staging has other descriptors, or others of the same number
            for order in self._orders.read():
                self._obey(order)
        asked = self._stager.asked
        if asked is not None or self._sight.fd in ready or self._is_settled() or _is_over(self._sight_due()):
            self._see()
        if self._is_settled():
            self._settled()
        if asked is not None:
            self._answer(asked)
        if _is_over(self._stager.kill_at):
            self._stager.kill()

    def _wait(self) -> set[int]:
        """The descriptors that are ready; none when something is due."""
        poll = select.poll()
        for fd in (self._orders.fd, self._sight.fd, self._stager.words, self._stager.questions):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        dues = [self._sight_due(), self._due(), self._stager.kill_at]
        left = min(due for due in dues if due is not None) - time.monotonic()
        return {fd for fd, _ in poll.poll(max(0.0, left) * 1000)}

    def _sight_due(self) -> float:
        return self._sight.due(settling=self._settle.due() is not None)

    def _due(self) -> float | None:
        """When the save is complete, or is to be asked about again."""
        due = self._settle.due()
        if due is None or not _is_over(due) or not self._sight.checkout.is_under_way():
            return due
        later = self._settle.due(checkout=True)
        assert later is not None
        return later if _is_over(later) else time.monotonic() + CHECKOUT_ASK_S

    def _is_settled(self) -> bool:
        return _is_over(self._due())

    def _obey(self, order: ToChild) -> None:
        if isinstance(order, Stage):
            self._stager.begin(order.request)
        elif isinstance(order, Cancel):
            self._stager.cancel()

    def _see(self) -> None:
        now, at = time.monotonic(), time.time()
        for change in self._sight.read():
            self._settle.note(change, now)
            self._disturbed = self._disturbed or change.path
            if self._sight.counts(change):
                self._batch.add(change, at)

    def _settled(self) -> None:
        self._settle.told()
        if self._batch:
            at = self._batch.at
            files, count = self._batch.take()
            self._tell(Saved(files=[shown(path) for path in files], count=count, at=at))

    def _answer(self, question: bytes) -> None:
        """All that happened until now has been seen."""
        if question == BEGIN:
            if self._settle.due() is not None:
                return  # asked again when it is quiet
            self._disturbed = None
            self._batch.copied()
            self._stager.answer(YES)
        elif question == WHOLE:
            changed = self._disturbed
            self._stager.answer(YES if changed is None else NO + os.fsencode(changed))


def _is_over(due: float | None) -> bool:
    return due is not None and time.monotonic() >= due
