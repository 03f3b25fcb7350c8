"""The keeper: the process that is never restarted, so that the manager may be.

It holds descriptors for the manager (listening sockets, log pipes, notify sockets), starts the manager again when
it dies, hands the descriptors back, and reaps the workers that the manager left behind, reporting how they ended.
Standard library only and alone in its file, run isolated by __main__.py: it must hardly ever need an upgrade,
and it will be older than the manager it serves. Hence the protocol below has a version and ignores what it does
not know.

Messages are JSON objects over a SOCK_SEQPACKET pair, at most one descriptor each (SCM_RIGHTS, unix(7)):

    keeper to manager   hello {v, pid, starts} | fd {name} + descriptor | exited {pid, status, at} | go {}
    manager to keeper   keep {name} + descriptor | drop {name} | seen {pid} | ready {} | stopping {}
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # typing itself would cost a megabyte here
if TYPE_CHECKING:
    from typing import Any, NoReturn

PROTOCOL = 1
MESSAGE_MAX = 16384
SEND_TIMEOUT_S = 5.0  # a manager that does not read for this long is hung, and is killed
START_PAUSE_S = 0.3  # at the least between two starts: a manager that dies at once must not take a whole CPU
RETRY_FIRST_S = 0.5  # pause before another try at a manager that never became ready, or failed soon after
STABLE_S = 5.0
RETRY_MAX_S = 30.0
UNREAD_AFTER_S = 3.0  # without a manager for this long, log pipes are emptied so that no worker blocks on a full one
UNREAD_LOG_MAX = 16 * 1024 * 1024
LOCK_S = 0.5  # who looks whether a keeper runs holds the lock for an instant: that is no other keeper
LEFTOVERS_S = 5.0  # how long to wait for killed processes at the end
OPEN_FILES = 65536
EXIT_BUSY = 75
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Keeper:
    """One loop: signals, the manager's messages, dead children."""

    def __init__(self, root: str, token: str, command: list[str]) -> None:
        self.root = root
        self.token = token  # names this start, so that `up` knows whose answer it reads
        self.command = command
        self.kept: dict[str, int] = {}  # name -> descriptor
        self.exits: dict[int, dict[str, float]] = {}  # pid -> {"status", "at"} that the manager has not seen yet
        self.manager_pid = 0
        self.channel: socket.socket | None = None
        self.ready = False  # the manager that runs has said so
        self.stopping = False
        self.term_asked = False  # SIGTERM came; passed on when the manager can obey it
        self.starts = 0
        self.retry_s = RETRY_FIRST_S
        self.start_at = 0.0  # monotonic time of the next start
        self.started_at = 0.0
        self.alone_since = time.monotonic()
        self.exit_code = 0
        self.wake_r, self.wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """Serve until a planned stop, or until there is nothing left to keep."""
        self._take_lock()
        self.open_files = raise_open_files()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._catch_signals()
        while True:
            self._reap()
            if self.manager_pid == 0:
                if self._is_over():
                    break
                if time.monotonic() >= self.start_at:
                    self._start_manager()
            self._wait()
        self._end_leftovers()
        return self.exit_code

    # The one instance

    def _take_lock(self) -> None:
        """The lock is a flock(2) held for life: the kernel frees it, whatever ends us."""
        fd = os.open(os.path.join(self.root, "run", "keeper.pid"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        give_up = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    sys.exit(EXIT_BUSY)
                time.sleep(0.02)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n{self.token}\n".encode(), 0)
        self.lock = fd

    # Signals only wake the loop

    def _catch_signals(self) -> None:
        signal.set_wakeup_fd(self.wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, self._on_hup)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_term)

    def _on_hup(self, *_: object) -> None:
        """`deployer up` asks to try the manager again now."""
        self.start_at = 0.0

    def _on_term(self, *_: object) -> None:
        """The manager knows how to stop the workers; without one they are left to serve."""
        self.term_asked = True
        if self.manager_pid and self.ready:
            os.kill(self.manager_pid, signal.SIGTERM)

    # The manager

    def _start_manager(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(SEND_TIMEOUT_S)
        pid = os.fork()
        if pid == 0:
            self._become_manager(theirs)
        theirs.close()
        self.manager_pid, self.channel, self.ready = pid, ours, False
        self.starts += 1
        self.started_at = time.monotonic()
        self._send({"op": "hello", "v": PROTOCOL, "pid": os.getpid(), "starts": self.starts})
        for name, fd in self.kept.items():
            self._send({"op": "fd", "name": name}, fd)
        for dead, record in self.exits.items():
            self._send({"op": "exited", "pid": dead, **record})
        self._send({"op": "go"})

    def _become_manager(self, theirs: socket.socket) -> NoReturn:
        """In the child: never returns."""
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)  # a Ctrl-C in the foreground reaches the keeper alone, which passes it on once
            os.set_inheritable(theirs.fileno(), True)
            environment = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "LISTEN_PID")}
            environment["DEPLOYER_KEEPER_FD"] = str(theirs.fileno())
            environment["DEPLOYER_OPEN_FILES"] = str(self.open_files)
            os.execve(self.command[0], self.command, environment)
        except BaseException as error:
            log(f"cannot start the manager: {error}")
        os._exit(127)

    def _send(self, message: dict[str, Any], fd: int | None = None) -> None:
        if self.channel is None:
            return
        try:
            socket.send_fds(self.channel, [json.dumps(message).encode()], [] if fd is None else [fd])
        except TimeoutError:
            log("the manager does not read: killing it")
            os.kill(self.manager_pid, signal.SIGKILL)
            self._close_channel()
        except OSError:
            self._close_channel()  # it is dying; its SIGCHLD follows

    def _receive(self) -> None:
        if self.channel is None:
            return
        try:
            data, fds = receive_fds(self.channel, MESSAGE_MAX, 4, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._close_channel()
            return
        message = json.loads(data)
        if not self._obey(message, fds):
            for fd in fds:
                os.close(fd)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> bool:
        """Do what one message says; True when the descriptor was kept."""
        op = message.get("op")
        if op == "keep" and fds:
            self._drop(message["name"])
            self.kept[message["name"]] = fds[0]
            return True
        if op == "drop":
            self._drop(message["name"])
        elif op == "seen":
            self.exits.pop(message["pid"], None)
        elif op == "ready":
            self.ready = True
            notify_systemd(f"READY=1\nMAINPID={os.getpid()}")
            if self.term_asked:
                os.kill(self.manager_pid, signal.SIGTERM)
        elif op == "stopping":
            self.stopping = True
            notify_systemd("STOPPING=1")
        return False

    def _drop(self, name: str) -> None:
        fd = self.kept.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _close_channel(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def _manager_ended(self, status: int) -> None:
        while self.channel is not None:  # what it sent last counts
            before = self.channel
            self._receive()
            if self.channel is before and not readable(before):
                self._close_channel()
        self.manager_pid = 0
        self.alone_since = time.monotonic()
        self.exit_code = os.waitstatus_to_exitcode(status)
        self.start_at = self._next_start()
        if not self.stopping:
            log(f"the manager ended ({describe(status)}); keeping {len(self.kept)} descriptors")

    def _next_start(self) -> float:
        """At once, or nearly, for a manager that was killed while it worked; one that fails by itself must wait."""
        lived = time.monotonic() - self.started_at
        if self.ready and (self.exit_code < 0 or lived > STABLE_S):
            self.retry_s = RETRY_FIRST_S
            return self.started_at + START_PAUSE_S
        pause, self.retry_s = self.retry_s, min(self.retry_s * 2, RETRY_MAX_S)
        return time.monotonic() + pause

    def _is_over(self) -> bool:
        """A planned stop was carried to its end; or the first manager refused to start and left nothing running."""
        if self.starts == 0:
            return False
        if self.stopping and self.exit_code == 0:
            return True
        return not self.ready and not self.kept and not children()

    # Children

    def _reap(self) -> None:
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            pid = dead.si_pid
            if pid != self.manager_pid:
                # The pid still names the group while its leader is a zombie: end what it left, then reap it.
                kill_group(pid)
            _, status = os.waitpid(pid, 0)
            if pid == self.manager_pid:
                self._manager_ended(status)
            else:
                self.exits[pid] = {"status": status, "at": time.time()}
                self._send({"op": "exited", "pid": pid, **self.exits[pid]})

    def _end_leftovers(self) -> None:
        """After a planned stop: whatever a worker left behind that moved to another process group."""
        deadline = time.monotonic() + LEFTOVERS_S
        while time.monotonic() < deadline and (left := children()):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._reap()
            time.sleep(0.01)

    # Waiting

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.wake_r, select.POLLIN)
        if self.channel is not None:
            poll.register(self.channel, select.POLLIN)
        timeout, pipes = self._timeout_ms(), {}
        if self.manager_pid == 0 and time.monotonic() - self.alone_since > UNREAD_AFTER_S:
            pipes = {fd: name for name, fd in self.kept.items() if name.startswith("log:")}
            for fd in pipes:
                poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(timeout):
            if fd == self.wake_r:
                drain(self.wake_r)
            elif fd in pipes:
                self._empty(fd, pipes[fd])
            elif self.channel is not None and fd == self.channel.fileno():
                self._receive()

    def _timeout_ms(self) -> int | None:
        """Wait for ever while the manager runs; else until its next start or the emptying of pipes."""
        if self.manager_pid:
            return None
        now = time.monotonic()
        times = [self.start_at - now, self.alone_since + UNREAD_AFTER_S - now]
        ahead = [t for t in times if t > 0]
        return max(1, int(min(ahead) * 1000) + 1) if ahead else (0 if self.start_at <= now else None)

    def _empty(self, fd: int, name: str) -> None:
        data = os.read(fd, MESSAGE_MAX)
        if not data:
            self._drop(name)
            return
        path = os.path.join(self.root, "logs", "unread.log")
        out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(out).st_size < UNREAD_LOG_MAX:
                os.write(out, data)
        except OSError:
            pass  # a full disk must not stop the workers
        finally:
            os.close(out)


def receive_fds(sock: socket.socket, size: int, count: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A message and its descriptors, close-on-exec. socket.recv_fds loses its flags (cpython, to 3.11 at least)."""
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_LEN(count * 4), flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def raise_open_files() -> int:
    """Each worker costs descriptors here and in the manager. The limit there was is for the workers to have again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > OPEN_FILES:
        hard = OPEN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return soft


def children() -> list[int]:
    """Our live children, zombies included (proc(5), `children`)."""
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children") as file:
        return [int(pid) for pid in file.read().split()]


def kill_group(pid: int) -> None:
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # only the zombie is left in it


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


def describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def notify_systemd(text: str) -> None:
    """sd_notify(3), when systemd started us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(text.encode(), address)
        except OSError as error:
            log(f"cannot notify systemd: {error}")


def log(text: str) -> None:
    """One line in deployer.log, in the form of the manager's own."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"timestamp": stamp, "event": "keeper", "text": text})
    try:
        os.write(2, line.encode() + b"\n")
    except OSError:
        pass  # a full disk must not end the keeper
