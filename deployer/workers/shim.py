"""The shim: becomes a worker once it is told to.

Run as `python -I -S shim.py FD`, standard library only. It reads one order (in marshal: both ends are one
interpreter) from the pipe FD and then executes the worker's program in its place. The order is written only after the
worker's pid is in state.db; when the manager dies before that, the pipe ends without an order and the shim exits: no
worker runs that nobody knows of. Being the process itself, it can also set LISTEN_PID to the right pid
(sd_listen_fds(3)).

    order: {argv, env, cwd, sockets: [fd], hold: [fd], channel: fd, umask, nice, rlimits: [[number, value]], uid, gid,
            groups: [gid]}

`hold` are the reading ends of the worker's own log pipes: while it holds them a dead manager *and* a dead keeper
cannot break its pipe (EPIPE) under it. `channel` is its line to the manager, if it has one, named in DEPLOYER_CHANNEL.
"""

from __future__ import annotations

# signal itself would load enum, and json re: half of the time that every boot of a worker waits for this.
import _signal  # type: ignore[import-not-found]
import fcntl
import marshal
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIRST_FD = 3  # SD_LISTEN_FDS_START
HIGH_FD = 100  # out of the way of the sockets
NO_ORDER = 123  # tells the next manager that the program never ran
CANNOT_EXECUTE = 126
NOT_FOUND = 127


def main() -> int:
    order = read_order(int(sys.argv[1]))
    if order is None:
        return NO_ORDER
    try:
        prepare(order)
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except FileNotFoundError as error:
        return complain(order, error, NOT_FOUND)
    except Exception as error:
        return complain(order, error, CANNOT_EXECUTE)


def read_order(fd: int) -> dict[str, Any] | None:
    """The order, or None when the writer went away before it was whole."""
    with os.fdopen(fd, "rb") as pipe:
        data = pipe.read()
    try:
        order: dict[str, Any] = marshal.loads(data)  # noqa: S302  # from the manager
    except (EOFError, ValueError, TypeError):
        return None
    return order


def prepare(order: dict[str, Any]) -> None:
    """Descriptors, limits, user, directory, environment: in that order, since each may need what comes after it."""
    channel = place_descriptors(order["sockets"], order["hold"], order["channel"])
    for number, value in order["rlimits"]:
        set_limit(number, value)
    if order["nice"] is not None:
        os.setpriority(os.PRIO_PROCESS, 0, order["nice"])
    if order["umask"] is not None:
        os.umask(order["umask"])
    if order["gid"] is not None:
        os.setgroups(order["groups"])
        os.setgid(order["gid"])
    if order["uid"] is not None:
        os.setuid(order["uid"])
    os.chdir(order["cwd"])
    if order["sockets"]:
        order["env"]["LISTEN_PID"] = str(os.getpid())
    if channel is not None:
        order["env"]["DEPLOYER_CHANNEL"] = str(channel)
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them, and that would be inherited
        _signal.signal(number, _signal.SIG_DFL)


def set_limit(number: int, value: int) -> None:
    """The soft limit; root raises the hard one where it stands in the way. -1 is no limit (RLIM_INFINITY)."""
    hard = resource.getrlimit(number)[1]
    above = hard != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > hard)
    resource.setrlimit(number, (value, value if above else hard))


def place_descriptors(sockets: list[int], hold: list[int], channel: int | None) -> int | None:
    """Sockets from 3 on in their order, the held pipes and the channel high up, everything else closed. Answers where
    the channel is."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in sockets]
    held = {fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for fd in hold}
    line = None if channel is None else fcntl.fcntl(channel, fcntl.F_DUPFD, HIGH_FD)
    for number, fd in enumerate(high, FIRST_FD):
        os.dup2(fd, number)
    end = FIRST_FD + len(sockets)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd >= end and fd not in held and fd != line:
            try:
                os.close(fd)
            except OSError:
                pass  # the one listdir itself used
    return line


def complain(order: dict[str, Any], error: Exception, code: int) -> int:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    place = f" (in {order['cwd']})"
    print(f"deployer: cannot run {order['argv'][0]!r}: {cause}{place}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
