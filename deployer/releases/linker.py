"""Hard links made by a second process while the first goes on looking.

Of a tree that hardly changed, link(2) is half of the time of a copy, and rsync too spreads it over its processes.
(Threads do not help: each link would wait for the interpreter's lock twice.) A fork of this process takes orders
from a pipe and answers once, at the end, with what could not be linked; it dies with this one.
"""

from __future__ import annotations

import marshal
import os
import signal
from typing import Any, NamedTuple, NoReturn

from deployer.releases import process
from deployer.releases.index import Entry, decode
from deployer.releases.links import NO_LINK

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotLinked(NamedTuple):
    """A file that must be copied; `own` when the release before has no longer what was staged there, in a file of so
    many `links`."""

    directory: bytes
    name: bytes
    own: bool
    links: int = 0


class Linker:
    """Links files of the tree `old` under the same names in `new`; a context manager, so that it is always reaped.

    A stage is a process of one thread, which alone may be forked.
    """

    def __init__(self, old: bytes, new: bytes) -> None:
        orders, self._orders = os.pipe()
        self._answer, answer = os.pipe()
        with process.stop_held():
            self._pid = os.fork()
            if self._pid == 0:
                os.close(self._orders)
                os.close(self._answer)
                _work(orders, answer, old, new)
        os.close(orders)
        os.close(answer)

    def link(self, directory: bytes, entries: bytes) -> None:
        """These files (`index.encode`) of the directory, which is there in both trees; soon. Raises OSError of an
        earlier order."""
        self._order((directory, entries, None))

    def seal(self, directory: bytes, mode: int, times_ns: tuple[int, int]) -> None:
        """Give the new directory its mode and times: after all that was ordered for it, which would move them."""
        self._order((directory, b"", (mode, *times_ns)))

    def finish(self) -> list[NotLinked]:
        """Wait for the end of all orders. Raises OSError for the disk's faults (a full one)."""
        os.close(self._orders)
        self._orders = -1
        with open(self._answer, "rb", closefd=False) as file:
            answer = file.read()
        if not answer:
            raise ChildProcessError("the process that links files was killed")
        number, path, failed = marshal.loads(answer)  # noqa: S302  # written by a fork of this very process
        if number:
            raise OSError(number, os.strerror(number), path)
        return [NotLinked(*each) for each in failed]

    def close(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
        os.close(self._answer)
        os.kill(self._pid, signal.SIGKILL)  # finished, or no longer wanted
        os.waitpid(self._pid, 0)

    def _order(self, order: tuple[Any, ...]) -> None:
        data = memoryview(marshal.dumps(order))
        try:
            while data:
                data = data[os.write(self._orders, data) :]
        except BrokenPipeError:
            self.finish()  # it met an error, and tells which
            raise


def _work(orders: int, answer: int, old: bytes, new: bytes) -> NoReturn:
    """The fork: never returns into the code it was forked from."""
    status = 1
    try:
        parent = os.getppid()
        process.die_with_parent()
        for number in process.STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, process.STOP_SIGNALS)
        if os.getppid() == parent:
            result: tuple[int, str | None, list[NotLinked]]
            try:
                result = 0, None, _links(orders, old, new)
            except OSError as error:
                result = error.errno or 5, error.filename and os.fsdecode(error.filename), []
            with open(answer, "wb") as file:
                marshal.dump((*result[:2], [tuple(each) for each in result[2]]), file)
            status = 0
    finally:
        os._exit(status)


def _links(orders: int, old: bytes, new: bytes) -> list[NotLinked]:
    failed: list[NotLinked] = []
    with open(orders, "rb") as file:
        while True:
            try:
                directory, entries, seal = marshal.load(file)  # noqa: S302  # from this process's own parent
            except EOFError:
                return failed
            if seal is not None:
                path = os.path.join(new, directory)
                os.chmod(path, seal[0])
                os.utime(path, ns=seal[1:])
            else:
                failed += _link_in(directory, decode(entries), old, new)


def _link_in(directory: bytes, entries: list[Entry], old: bytes, new: bytes) -> list[NotLinked]:
    try:
        from_fd = os.open(os.path.join(old, directory), _DIRECTORY)
    except OSError:
        return [NotLinked(directory, entry.name, False) for entry in entries]  # it was removed meanwhile
    into_fd = -1
    failed = []
    try:
        into_fd = os.open(os.path.join(new, directory), _DIRECTORY)
        for entry in entries:
            try:
                found = os.stat(entry.name, dir_fd=from_fd, follow_symlinks=False)
                if not entry.is_still(found):
                    failed.append(NotLinked(directory, entry.name, True, found.st_nlink))
                    continue
                os.link(entry.name, entry.name, src_dir_fd=from_fd, dst_dir_fd=into_fd, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                failed.append(NotLinked(directory, entry.name, False))
    finally:
        os.close(from_fd)
        if into_fd >= 0:
            os.close(into_fd)
    return failed
