"""The shim, started as the pool starts it: what becomes of an order, and that nothing becomes of none."""

from __future__ import annotations

import contextlib
import fcntl
import json
import marshal
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from deployer.workers import shim

LIMIT_S = 60.0
MSGQUEUE = 12  # RLIMIT_MSGQUEUE, which `resource` does not name; its hard limit is finite
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a process to another user")

TELL = """
import json, os, resource
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[int(name)] = os.fstat(int(name)).st_ino
    except OSError:
        pass  # the one listdir used
umask = os.umask(0)
print(json.dumps({
    "pid": os.getpid(), "sid": os.getsid(0), "cwd": os.getcwd(), "fds": fds, "umask": umask,
    "nice": os.getpriority(os.PRIO_PROCESS, 0), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "msgqueue": resource.getrlimit(12),
    "user": [os.getresuid(), os.getresgid(), os.getgroups()],
    "environ": open("/proc/self/environ", "rb").read().decode().split("\\0")[:-1],
    "status": open("/proc/self/status").read(),
}))
"""
TELLING = [sys.executable, "-I", "-S", "-c", TELL]


class Shim:
    """One shim with a pipe for its order, its output in files. Descriptors are given by the number they have there."""

    def __init__(self, directory: Path, inherit: Mapping[int, int]) -> None:
        self.directory = directory
        self.out, self.err = directory / "out", directory / "err"
        order_r, order_w = os.pipe()
        at = 90  # of the order's pipe in the shim; out of the way of what it inherits
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.out), flags, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, str(self.err), flags, 0o600),
            *((os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in inherit.items()),
            (os.POSIX_SPAWN_DUP2, order_r, at),
        ]
        argv = [sys.executable, "-I", "-S", shim.__file__, str(at)]
        stops = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT]  # ignored where the tests themselves run under nohup
        self.pid = os.posix_spawn(sys.executable, argv, {}, file_actions=actions, setsid=True, setsigdef=stops)
        os.close(order_r)
        self.order_w = order_w

    def order(self, argv: Sequence[str], **keys: Any) -> None:
        order = {
            "argv": list(argv),
            "env": {"PATH": "/usr/bin:/bin"},
            "cwd": str(self.directory),
            "sockets": [],
            "hold": [],
            "channel": None,
            "umask": None,
            "nice": None,
            "rlimits": [],
            "uid": None,
            "gid": None,
            "groups": [],
            **keys,
        }
        self.write(marshal.dumps(order))

    def write(self, data: bytes) -> None:
        with os.fdopen(self.order_w, "wb") as pipe:
            pipe.write(data)
        self.order_w = -1

    def ended(self) -> int:
        pidfd = os.pidfd_open(self.pid)
        try:
            assert select.select([pidfd], [], [], LIMIT_S)[0], "it does not end"
        finally:
            os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def told(self) -> dict[str, Any]:
        assert self.ended() == 0, self.err.read_text()
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found


@contextlib.contextmanager
def high(*files: int) -> Iterator[list[int]]:
    """The same descriptors at numbers of ours that no file action of a test uses as a target."""
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in files]
    try:
        yield moved
    finally:
        for fd in moved:
            os.close(fd)


def run(directory: Path, argv: Sequence[str] = TELLING, inherit: Mapping[int, int] | None = None, **keys: Any) -> Shim:
    made = Shim(directory, inherit or {})
    made.order(argv, **keys)
    return made


# Descriptors


@pytest.mark.parametrize(
    "places", [[10, 11], [11, 10], [3, 4], [4, 3], [4, 10], [90 + 30, 5]], ids=lambda places: "-".join(map(str, places))
)
def test_sockets_are_descriptors_from_three_on_in_their_order(tmp_path: Path, places: list[int]) -> None:
    """Wherever they were, also where one stands in the place of the other."""
    with socket.socket() as one, socket.socket() as other, high(one.fileno(), other.fileno()) as ours:
        shim = run(tmp_path, inherit=dict(zip(places, ours, strict=True)), sockets=places)
        inodes = [os.fstat(fd).st_ino for fd in ours]
        told = shim.told()
    assert [told["fds"]["3"], told["fds"]["4"]] == inodes
    assert set(told["fds"]) == {"0", "1", "2", "3", "4"}


def test_one_socket_may_be_given_twice(tmp_path: Path) -> None:
    """As LISTEN_FDS counts it, and once more for {fd}."""
    with socket.socket() as one, high(one.fileno()) as ours:
        inode = os.fstat(one.fileno()).st_ino
        told = run(tmp_path, inherit={10: ours[0]}, sockets=[10, 10]).told()
    assert [told["fds"]["3"], told["fds"]["4"]] == [inode, inode]


def test_nothing_else_is_inherited_but_the_ends_it_holds(tmp_path: Path) -> None:
    """A worker that held a stranger's pipe or socket would keep it open for ever."""
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(socket.socket()) for _ in range(3)]
        one, *others = stack.enter_context(high(*(sock.fileno() for sock in strangers)))
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        stack.callback(os.close, writing)
        (held,) = stack.enter_context(high(reading))
        inherit = {10: one, 11: others[0], 3: others[1], 12: held}
        told = run(tmp_path, inherit=inherit, sockets=[10], hold=[12]).told()
        inodes = [os.fstat(one).st_ino, os.fstat(held).st_ino]
    rest = {int(fd): inode for fd, inode in told["fds"].items() if int(fd) > 2}
    assert list(rest.values()) == inodes
    assert min(rest) == 3
    assert max(rest) >= shim.HIGH_FD


def test_listen_pid_is_the_programs_own(tmp_path: Path) -> None:
    with socket.socket() as one, high(one.fileno()) as ours:
        made = run(tmp_path, inherit={10: ours[0]}, sockets=[10], env={"PATH": "/bin", "LISTEN_FDS": "1"})
        told = made.told()
    assert f"LISTEN_PID={made.pid}" in told["environ"]
    assert told["pid"] == made.pid


def test_without_sockets_there_is_no_listen_pid(tmp_path: Path) -> None:
    assert run(tmp_path).told()["environ"] == ["PATH=/usr/bin:/bin"]


# What the program runs in

STATUS = ["/bin/cat", "/proc/self/status", "/proc/self/stat"]


def status(made: Shim) -> dict[str, str]:
    assert made.ended() == 0, said(made)
    return dict(line.split(":\t", 1) for line in made.out.read_text().splitlines() if ":\t" in line)


def test_the_environment_is_the_orders_and_no_more(tmp_path: Path) -> None:
    env = {"A": "1", "PATH": "/bin", "UMLAUT": "ä=ö", "EMPTY": ""}
    assert run(tmp_path, env=env).told()["environ"] == ["A=1", "PATH=/bin", "UMLAUT=ä=ö", "EMPTY="]


def test_it_runs_in_the_release_and_in_a_session_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    made = run(tmp_path, cwd=str(tmp_path / "release"))
    told = made.told()
    assert told["cwd"] == str(tmp_path / "release")
    assert told["sid"] == made.pid


def test_by_default_limits_are_left_as_they_are(tmp_path: Path) -> None:
    told = run(tmp_path).told()
    ours = os.umask(0)
    os.umask(ours)
    assert told["umask"] == ours
    assert told["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert tuple(told["nofile"]) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_umask_nice_and_limits_are_set(tmp_path: Path) -> None:
    """The soft limit is set and the hard one stays, so that the program may raise it again. The last one counts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    nofile, core = resource.RLIMIT_NOFILE, resource.RLIMIT_CORE
    told = run(tmp_path, umask=0o27, nice=7, rlimits=[[nofile, 300], [nofile, 256], [core, 0]]).told()
    assert told["umask"] == 0o27
    assert told["nice"] == 7
    assert told["nofile"] == [256, hard]
    assert told["core"][0] == 0


def test_a_hard_limit_that_stands_in_the_way_is_raised_where_that_is_allowed(tmp_path: Path) -> None:
    """Root with CAP_SYS_RESOURCE may; others are told so, and nothing runs with less than was asked for."""
    hard = resource.getrlimit(MSGQUEUE)[1]
    assert hard != resource.RLIM_INFINITY
    made = run(tmp_path, rlimits=[[MSGQUEUE, hard + 1]])
    if may_raise_limits():
        assert made.told()["msgqueue"] == [hard + 1, hard + 1]
    else:
        assert made.ended() == 126
        assert "not allowed to raise maximum limit" in said(made)


def may_raise_limits() -> bool:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")]
    return bool(int(line.split()[1], 16) >> 24 & 1)  # CAP_SYS_RESOURCE, capabilities(7)


@root_only
def test_it_becomes_another_user_for_good(tmp_path: Path) -> None:
    """Real, effective and saved: there is no way back. Descriptors and limits were set before."""
    made = run(tmp_path, STATUS, cwd="/", uid=65534, gid=65533, groups=[65533, 65532], nice=-1)
    lines = status(made)
    assert lines["Uid"].split() == ["65534"] * 4
    assert lines["Gid"].split() == ["65533"] * 4
    assert sorted(lines["Groups"].split()) == ["65532", "65533"]
    assert int(lines["CapEff"], 16) == 0
    assert made.out.read_text().splitlines()[-1].rpartition(")")[2].split()[16] == "-1", "niceness, field 19 of stat"


@root_only
def test_a_group_alone_takes_the_other_groups_away(tmp_path: Path) -> None:
    told = run(tmp_path, gid=65533, groups=[]).told()
    assert told["user"] == [[0] * 3, [65533] * 3, []]


def test_signals_that_python_ignores_are_not_ignored_by_the_program(tmp_path: Path) -> None:
    """A program that relies on SIGPIPE would write into a closed pipe for ever."""
    lines = status(run(tmp_path, STATUS))
    of_libc = 0b11 << 31  # signals 32 and 33, which posix_spawn itself ignores
    assert int(lines["SigIgn"], 16) & ~of_libc == 0
    assert int(lines["SigBlk"], 16) == 0


def test_it_is_the_program_and_not_its_parent(tmp_path: Path) -> None:
    """A signal to the pid of the row reaches the program itself."""
    made = run(tmp_path, ["/bin/sh", "-c", "kill -TERM $$"])
    assert made.ended() == -signal.SIGTERM


# Programs that cannot be run


def said(made: Shim) -> str:
    return made.err.read_text()


@pytest.mark.parametrize("name", ["./none", "none", "/none"])
def test_a_missing_program_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    made = run(tmp_path, [name, "-x"])
    assert made.ended() == 127
    assert said(made) == f"deployer: cannot run '{name}': No such file or directory (in {tmp_path})\n"


def test_a_program_that_is_not_executable_is_named(tmp_path: Path) -> None:
    (tmp_path / "serve").write_text("#!/bin/sh\n")
    made = run(tmp_path, ["./serve"])
    assert made.ended() == 126
    assert said(made) == f"deployer: cannot run './serve': Permission denied (in {tmp_path})\n"


def test_a_release_that_is_gone_is_named(tmp_path: Path) -> None:
    made = run(tmp_path, cwd=str(tmp_path / "gone"))
    assert made.ended() == 127
    assert f"No such file or directory (in {tmp_path}/gone)" in said(made)


def test_a_program_is_found_in_the_release_and_on_the_orders_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in (tmp_path / "serve", tmp_path / "bin" / "served"):
        program.write_text(f"#!/bin/sh\necho {program.name}\n")
        program.chmod(0o755)
        name = "./serve" if program.name == "serve" else "served"
        made = run(tmp_path, [name], env={"PATH": f"{tmp_path}/bin"})
        assert made.ended() == 0
        assert made.out.read_text() == f"{program.name}\n"


# No order


@pytest.mark.parametrize("data", [b"", b'{"argv": ["/bin/echo", "ran"]', b'{"argv": ["/bin/echo", "ran"]}'])
def test_without_a_whole_order_nothing_runs(tmp_path: Path, data: bytes) -> None:
    """The manager died before it was written to its end. The code tells the next one that no program ran."""
    made = Shim(tmp_path, {})
    made.write(data)
    assert made.ended() == shim.NO_ORDER
    assert made.out.read_text() == made.err.read_text() == ""


def test_it_needs_the_standard_library_alone() -> None:
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('shim', sys.argv[1])\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print([name for name in sys.modules if name.partition('.')[0] not in sys.stdlib_module_names])\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program, shim.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout == "['__main__']\n"
