"""The real keeper process, with a manager that does what each test tells it.

A fake manager connects to the test and runs the lines of Python that it is sent; everything that the keeper says to
it is passed on. Each start of a manager is a `Life`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployer.keeper import keeper as module
from tests.cluster import wait_until

MAIN = Path(module.__file__).with_name("__main__.py")
LIMIT_S = 60.0

MANAGER = """
import json, os, select, signal, socket, subprocess, sys, time
keeper = socket.socket(fileno=int(os.environ["DEPLOYER_KEEPER_FD"]))
test = socket.socket(socket.AF_UNIX)
test.connect(sys.argv[1])
held, made = {}, {}
def say(**message):
    test.sendall(json.dumps(message).encode() + b"\\n")
def tell(fd=None, **message):
    socket.send_fds(keeper, [json.dumps(message).encode()], [] if fd is None else [fd])
say(pid=os.getpid(), pgid=os.getpgid(0), environment=dict(os.environ))
lines = test.makefile("r")
while True:
    readable = select.select([keeper, test], [], [])[0]
    if keeper in readable:
        data, fds, _, _ = socket.recv_fds(keeper, 65536, 4)
        if not data:
            sys.exit("the keeper is gone")
        message = json.loads(data)
        if fds:
            held[message["name"]] = fds[0]
            message["inode"] = os.fstat(fds[0]).st_ino
        say(**message)
    if test in readable:
        line = lines.readline()
        if not line:
            sys.exit("the test is gone")
        exec(line)
        say(done=line)
"""

WITH_CONSTANTS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import json, keeper
vars(keeper).update(json.loads(sys.argv.pop(1)))
sys.exit(keeper.Keeper(sys.argv[1], sys.argv[2], sys.argv[3:]).run())
"""


class Life:
    """One manager, as the test sees it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT_S)
        self._sock, self._lines = sock, sock.makefile("r")
        self.at = time.monotonic()
        self.messages: list[dict[str, Any]] = []
        born = self._next()
        self.pid, self.pgid, self.environment = born["pid"], born["pgid"], born["environment"]

    def do(self, code: str) -> None:
        """Run a line of Python in the manager, and wait until it has."""
        self._sock.sendall(code.encode() + b"\n")
        while self._next().get("done", "").strip() != code:
            pass

    def send(self, code: str) -> None:
        """The same for a line that it does not survive."""
        self._sock.sendall(code.encode() + b"\n")

    def until(self, op: str, **fields: Any) -> dict[str, Any]:
        """The next message of the keeper of that kind; it may have come already."""
        wanted = {"op": op, **fields}
        while True:
            for message in self.messages:
                if wanted.items() <= message.items():
                    self.messages.remove(message)
                    return message
            self._next()

    def inheritance(self) -> list[dict[str, Any]]:
        """Everything the keeper said up to `go`, after its hello."""
        self.until("hello")
        found = []
        while True:
            message = self._next() if not self.messages else self.messages[0]
            if message in self.messages:
                self.messages.remove(message)
            if message.get("op") == "go":
                return found
            found.append(message)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._lines.close()
        self._sock.close()

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "the manager has ended"
        message: dict[str, Any] = json.loads(line)
        if "op" in message:
            self.messages.append(message)
        return message


class Kept:
    """A keeper of its own, with ROOT, and the place where its managers call."""

    def __init__(self, environment: dict[str, str], constants: dict[str, float]) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="keep-", dir="/tmp"))
        for name in ("run", "logs"):
            (self.root / name).mkdir()
        (self.root / "manager.py").write_text(MANAGER)
        self.calls = socket.socket(socket.AF_UNIX)
        self.calls.bind(str(self.root / "calls"))
        self.calls.listen()
        self.calls.settimeout(LIMIT_S)
        self.lives: list[Life] = []
        base = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET",)}
        self.environment = base | environment
        self.process = self.start(constants)

    def start(self, constants: dict[str, float] | None = None) -> subprocess.Popen[bytes]:
        way = [str(MAIN)]
        if constants:
            way = ["-c", WITH_CONSTANTS, str(MAIN.parent), json.dumps(constants)]
        manager = [sys.executable, "-I", "-S", str(self.root / "manager.py"), str(self.root / "calls")]
        with (self.root / "logs" / "deployer.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", *way, str(self.root), "token", *manager],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                start_new_session=True,
            )

    def life(self) -> Life:
        """The next manager."""
        sock, _ = self.calls.accept()
        self.lives.append(Life(sock))
        return self.lives[-1]

    def ended(self) -> int:
        return self.process.wait(LIMIT_S)

    def log(self) -> str:
        return (self.root / "logs" / "deployer.log").read_text()

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            us = psutil.Process(self.process.pid)
            for process in (us, *us.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        for life in self.lives:
            life.close()
        self.calls.close()
        shutil.rmtree(self.root)


@pytest.fixture
def keeper(request: pytest.FixtureRequest) -> Iterator[Kept]:
    marker = request.node.get_closest_marker("parametrize")
    assert marker is None or "keeper" not in marker.args[0]
    kept = Kept({}, {})
    yield kept
    kept.close()


@contextlib.contextmanager
def kept(environment: dict[str, str] | None = None, **constants: float) -> Iterator[Kept]:
    there = Kept(environment or {}, constants)
    try:
        yield there
    finally:
        there.close()


def ready(life: Life, *keep: str) -> None:
    """The manager hands over the reading ends of pipes with these names, and says that it works."""
    for name in keep:
        life.do(f"made[{name!r}] = os.pipe(); tell(made[{name!r}][0], op='keep', name={name!r})")
    life.do("tell(op='ready')")


# Descriptors


def test_descriptors_are_handed_to_the_next_manager(keeper: Kept) -> None:
    """The same open sockets, under their names; a connection made while nobody was there is still in the queue."""
    life = keeper.life()
    assert life.until("hello")["starts"] == 1
    life.do("made['l'] = socket.create_server(('127.0.0.1', 0)); tell(made['l'].fileno(), op='keep', name='listen:a')")
    life.do("say(op='port', port=made['l'].getsockname()[1], inode=os.fstat(made['l'].fileno()).st_ino)")
    made = life.until("port")
    ready(life, "log:1:stdout")
    life.kill()
    wait_until(lambda: not psutil.pid_exists(life.pid), "the manager is gone")
    with socket.create_connection(("127.0.0.1", made["port"]), LIMIT_S) as visitor:
        second = keeper.life()
        assert second.until("hello") == {"op": "hello", "v": module.PROTOCOL, "pid": keeper.process.pid, "starts": 2}
        assert second.until("fd", name="listen:a")["inode"] == made["inode"]
        second.until("fd", name="log:1:stdout")
        second.until("go")
        second.do("made['l'] = socket.socket(fileno=held['listen:a']); made['l'].accept()[0].sendall(b'served')")
        visitor.settimeout(LIMIT_S)
        assert visitor.recv(100) == b"served"


def test_a_name_kept_twice_means_the_newer_and_a_dropped_one_is_closed(keeper: Kept) -> None:
    life = keeper.life()
    before = keeper.open_files()
    ready(life, "a")
    ready(life, "a", "b")
    wait_until(lambda: keeper.open_files() == before + 2, "one descriptor for each name")
    life.do("tell(op='drop', name='a'); tell(op='drop', name='never-there'); tell(op='of the future', x=1)")
    wait_until(lambda: keeper.open_files() == before + 1, "the descriptor is closed")
    life.kill()
    assert [message["name"] for message in keeper.life().inheritance()] == ["b"]


def test_what_a_manager_said_right_before_it_died_counts(keeper: Kept) -> None:
    life = keeper.life()
    life.do("tell(op='ready')")
    life.send("[tell(os.pipe()[0], op='keep', name=f'n{i}') for i in range(20)]; os.kill(os.getpid(), 9)")
    assert [message["name"] for message in keeper.life().inheritance()] == [f"n{i}" for i in range(20)]


# Restarts


def test_a_manager_that_was_killed_is_replaced(keeper: Kept) -> None:
    life = keeper.life()
    ready(life, "a")
    for starts in (2, 3, 4):
        life.kill()
        killed = time.monotonic()
        life = keeper.life()
        print(f"replaced {(life.at - killed) * 1000:.0f} ms after kill -9")
        assert life.at - killed < 30
        assert life.until("hello")["starts"] == starts
        life.do("tell(op='ready')")


def test_a_manager_that_is_never_ready_is_tried_less_and_less_often(keeper: Kept) -> None:
    """After 0.5 s, then 1 s, 2 s; once one is ready and was killed, the next comes at once, not after 4 s."""
    life = keeper.life()
    life.do("tell(os.pipe()[0], op='keep', name='a')")
    for pause in (0.5, 1.0, 2.0):
        life.send("os._exit(1)")
        failed = time.monotonic()
        life = keeper.life()
        assert life.at - failed >= pause
    life.do("tell(op='ready')")
    life.kill()
    killed = time.monotonic()
    assert keeper.life().at - killed < 3.5


def test_sighup_tries_again_at_once() -> None:
    """`deployer up` after the cause was removed."""
    with kept(RETRY_FIRST_S=30.0) as keeper:
        life = keeper.life()
        life.do("tell(os.pipe()[0], op='keep', name='a')")
        life.send("os._exit(1)")
        wait_until(lambda: "the manager ended" in keeper.log(), "it waits")
        os.kill(keeper.process.pid, signal.SIGHUP)
        asked = time.monotonic()
        assert keeper.life().at - asked < 25, "the pause was to be 30 s"


def test_a_first_manager_that_refuses_ends_the_keeper_with_its_exit_code(keeper: Kept) -> None:
    """There is nothing to keep: `up` reads why."""
    keeper.life().send("os._exit(78)")
    assert keeper.ended() == 78


def test_a_command_that_cannot_be_run_ends_the_keeper_too() -> None:
    root = Path(tempfile.mkdtemp(prefix="keep-", dir="/tmp"))
    (root / "run").mkdir()
    command = [sys.executable, "-I", "-S", str(MAIN), str(root), "token", "/no/such/program"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    shutil.rmtree(root)
    assert done.returncode == 127
    assert "cannot start the manager" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manager_that_does_not_read_is_killed() -> None:
    """It is hung; another one takes over what runs."""
    with kept(SEND_TIMEOUT_S=0.2) as there:
        life = there.life()
        ready(life, "a")
        life.do("made['many'] = [subprocess.Popen(['/bin/sh', '-c', 'read x; exit 3'], stdin=-1) for _ in range(3)]")
        # Each descriptor that is kept is handed over at a start: enough of them fill the channel of one who sleeps.
        life.do("[tell(made['a'][0], op='keep', name=f'{i:03}' + 'x' * 3000) for i in range(200)]")
        script = there.root / "manager.py"
        script.write_text("import signal\nsignal.pause()\n")
        life.kill()
        wait_until(lambda: "does not read: killing it" in there.log(), "the sleeping manager is killed", LIMIT_S)
        script.write_text(MANAGER)
        assert len(there.life().inheritance()) >= 201


# Orphans


def test_exits_of_orphans_are_reported_with_their_codes(keeper: Kept) -> None:
    """Those that ended while no manager was there, and those that end later; until somebody says `seen`."""
    life = keeper.life()
    life.do("made['p'] = subprocess.Popen(['/bin/sh', '-c', 'exec sleep 60'], start_new_session=True)")
    life.do("made['r'], made['w'] = os.pipe(); tell(made['w'], op='keep', name='end-of-wait')")
    life.do("made['q'] = subprocess.Popen(['/bin/sh', '-c', 'read x; exit 7'], stdin=made['r'], pass_fds=[])")
    life.do("say(op='pids', p=made['p'].pid, q=made['q'].pid)")
    pids = life.until("pids")
    life.do("tell(op='ready')")
    life.kill()
    wait_until(lambda: not psutil.pid_exists(life.pid), "the manager is gone")
    os.kill(pids["p"], signal.SIGSEGV)
    second = keeper.life()
    early = second.until("exited", pid=pids["p"])
    assert os.waitstatus_to_exitcode(early["status"]) == -signal.SIGSEGV
    assert abs(early["at"] - time.time()) < 60
    second.do("os.write(held['end-of-wait'], b'\\n')")
    assert os.waitstatus_to_exitcode(second.until("exited", pid=pids["q"])["status"]) == 7
    second.do(f"tell(op='seen', pid={pids['p']}); tell(op='ready')")
    second.kill()
    third = keeper.life().inheritance()
    assert [message["pid"] for message in third if message["op"] == "exited"] == [pids["q"]]
    assert not psutil.pid_exists(pids["p"]), "no zombie"


def test_what_a_dead_worker_left_in_its_group_is_killed(keeper: Kept) -> None:
    """A worker of a manager that is gone; its child ignores SIGTERM and holds the group."""
    life = keeper.life()
    program = "import os, signal, sys, time\\nsignal.signal(15, signal.SIG_IGN)\\nos.fork()\\ntime.sleep(60)"
    life.do(f"made['p'] = subprocess.Popen([sys.executable, '-c', '''{program}'''], start_new_session=True)")
    life.do("say(op='pid', pid=made['p'].pid)")
    leader = psutil.Process(life.until("pid")["pid"])
    (child,) = wait_until(leader.children, "it has a child")
    life.do("tell(op='ready')")
    life.kill()
    second = keeper.life()
    leader.kill()
    second.until("exited", pid=leader.pid)
    wait_until(lambda: not child.is_running(), "its group is gone")


# The end


def test_sigterm_is_passed_on_and_a_stop_that_was_planned_ends_the_keeper(keeper: Kept) -> None:
    life = keeper.life()
    ready(life, "a")
    life.do("signal.signal(signal.SIGTERM, lambda *_: (tell(op='stopping'), os._exit(0)))")
    os.kill(keeper.process.pid, signal.SIGTERM)
    assert keeper.ended() == 0
    assert not psutil.pid_exists(life.pid)


def test_sigterm_waits_for_a_manager_that_is_still_starting(keeper: Kept) -> None:
    """It could not obey yet, and would only die."""
    life = keeper.life()
    os.kill(keeper.process.pid, signal.SIGTERM)
    life.do("time.sleep(0)")
    life.do("signal.signal(signal.SIGTERM, lambda *_: (tell(op='stopping'), os._exit(0)))")
    assert keeper.process.poll() is None
    life.send("tell(op='ready')")
    assert keeper.ended() == 0


def test_a_manager_that_dies_while_it_stops_is_followed_by_one_that_goes_on_stopping(keeper: Kept) -> None:
    """SIGTERM was asked for once, and holds."""
    life = keeper.life()
    ready(life, "a")
    life.do("signal.signal(signal.SIGTERM, lambda *_: (tell(op='stopping'), os.kill(os.getpid(), 9)))")
    os.kill(keeper.process.pid, signal.SIGTERM)
    second = keeper.life()
    second.do("signal.signal(signal.SIGTERM, lambda *_: (tell(op='stopping'), os._exit(0)))")
    second.send("tell(op='ready')")
    assert keeper.ended() == 0


def test_leftovers_of_workers_are_killed_at_a_planned_end(keeper: Kept) -> None:
    """A daemon that a worker started, in a session of its own."""
    life = keeper.life()
    program = "import os, time\\nos.fork() and os._exit(0)\\nos.setsid()\\ntime.sleep(60)"
    life.do(f"subprocess.run([sys.executable, '-c', '''{program}'''])")
    us = psutil.Process(keeper.process.pid)
    orphan = wait_until(lambda: [p for p in us.children() if p.pid != life.pid], "the keeper has the orphan")[0]
    life.do("tell(op='ready')")
    life.send("tell(op='stopping'); os._exit(0)")
    assert keeper.ended() == 0
    assert not orphan.is_running()


def test_a_second_keeper_leaves_at_once(keeper: Kept) -> None:
    life = keeper.life()
    ready(life, "a")
    pid_file = (keeper.root / "run" / "keeper.pid").read_text()
    assert pid_file == f"{keeper.process.pid}\ntoken\n"
    second = keeper.start()
    assert second.wait(LIMIT_S) == module.EXIT_BUSY == 75
    assert (keeper.root / "run" / "keeper.pid").read_text() == pid_file
    life.do("tell(op='ready')")


def test_a_keeper_that_was_killed_frees_its_lock(keeper: Kept) -> None:
    """The file may stay: without the lock it means nothing."""
    life = keeper.life()
    ready(life)
    keeper.process.kill()
    keeper.process.wait()
    keeper.process = keeper.start()
    assert keeper.life().until("hello")["pid"] == keeper.process.pid


# Log pipes


def test_log_pipes_are_emptied_while_no_manager_is_there() -> None:
    """No worker blocks on a full pipe for long. Only theirs: a manager will want to read the others itself."""
    assert module.UNREAD_AFTER_S == 3.0
    with kept(UNREAD_AFTER_S=0.3, RETRY_FIRST_S=30.0) as there:
        life = there.life()
        life.do("tell(os.pipe()[0], op='keep', name='notify:1')")
        life.do("made['r'], made['w'] = os.pipe(); tell(made['r'], op='keep', name='log:1:stdout')")
        writer = "import os, sys, time\\nos.write(1, b'x' * 300000 + b'end')\\ntime.sleep(60)"
        life.do(f"subprocess.Popen([sys.executable, '-c', '''{writer}'''], stdout=made['w'])")
        life.send("os._exit(1)")
        unread = there.root / "logs" / "unread.log"
        wait_until(lambda: unread.exists() and unread.stat().st_size == 300003, "the pipe is emptied", LIMIT_S)
        assert unread.read_bytes().endswith(b"xend")
        assert unread.stat().st_mode & 0o777 == 0o600
        os.kill(there.process.pid, signal.SIGHUP)
        assert {message["name"] for message in there.life().inheritance()} == {"notify:1", "log:1:stdout"}


def test_a_log_pipe_that_ended_is_dropped() -> None:
    with kept(UNREAD_AFTER_S=0.1, RETRY_FIRST_S=30.0) as there:
        life = there.life()
        life.do("tell(os.pipe()[0], op='keep', name='other')")
        life.do("made['r'], made['w'] = os.pipe(); os.write(made['w'], b'last words'); os.close(made['w'])")
        life.do("tell(made['r'], op='keep', name='log:1:stdout')")
        life.send("os._exit(1)")
        unread = there.root / "logs" / "unread.log"
        wait_until(lambda: unread.exists() and unread.read_bytes() == b"last words", "the pipe is emptied", LIMIT_S)
        os.kill(there.process.pid, signal.SIGHUP)
        assert [message["name"] for message in there.life().inheritance()] == ["other"]


def test_unread_logs_never_fill_the_disk() -> None:
    with kept(UNREAD_AFTER_S=0.1, RETRY_FIRST_S=30.0, UNREAD_LOG_MAX=100_000) as there:
        life = there.life()
        life.do("made['r'], made['w'] = os.pipe(); tell(made['r'], op='keep', name='log:1:stdout')")
        writer = "import os, sys\\nos.write(1, b'x' * 900000)\\nopen(sys.argv[1], 'w').close()"
        life.do(f"subprocess.Popen([sys.executable, '-c', '''{writer}''', 'written'], stdout=made['w'])")
        life.send("os._exit(1)")
        wait_until((there.root / "written").exists, "the writer is not held up", LIMIT_S)
        assert (there.root / "logs" / "unread.log").stat().st_size <= 100_000 + module.MESSAGE_MAX


def test_while_a_manager_runs_the_pipes_are_its_own() -> None:
    with kept(UNREAD_AFTER_S=0.1) as there:
        life = there.life()
        ready(life, "log:1:stdout")
        life.do("os.write(made['log:1:stdout'][1], b'for the manager')")
        for _ in range(3):
            life.do("time.sleep(0.1); tell(op='seen', pid=1)")  # each wakes the keeper
        life.do("say(op='read', text=os.read(made['log:1:stdout'][0], 100).decode())")
        assert life.until("read")["text"] == "for the manager"
        assert not (there.root / "logs" / "unread.log").exists()


# What it is made of


def test_it_needs_the_standard_library_alone() -> None:
    """Nothing of ours beside its own file, in an interpreter without site-packages."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import keeper\n"
        "ours = set(sys.modules) - set(sys.stdlib_module_names) - {'keeper', '__main__'}\n"
        "print(sorted(name for name in ours if name.partition('.')[0] not in sys.stdlib_module_names))\n"
        "print([name for name in ('asyncio', 'typing', 'subprocess', 'deployer') if name in sys.modules])"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(MAIN.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout == "[]\n[]\n"


def test_it_stays_small(keeper: Kept) -> None:
    """At most 12 MB of memory, also with a manager and descriptors in its hands."""
    life = keeper.life()
    ready(life, *(f"log:{number}:stdout" for number in range(40)))
    assert psutil.Process(keeper.process.pid).memory_info().rss <= 12 * 1024 * 1024


def test_its_manager_is_a_group_of_its_own_and_hears_nothing_of_systemd() -> None:
    """A Ctrl-C in front reaches the keeper alone; NOTIFY_SOCKET is the keeper's to answer."""
    with kept({"NOTIFY_SOCKET": "/nowhere", "LISTEN_PID": "1", "OTHER": "kept"}) as there:
        life = there.life()
        assert life.pgid == life.pid != there.process.pid
        assert {"NOTIFY_SOCKET", "LISTEN_PID"}.isdisjoint(life.environment)
        assert life.environment["OTHER"] == "kept"
        ready(life, "a")
        life.do("tell(op='ready')")
        assert there.process.poll() is None, "that nobody listens on it is no reason to end"


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_systemd_hears_that_the_manager_is_ready_and_that_it_stops(tmp_path: Path, abstract: bool) -> None:
    name = f"\0deployer-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(LIMIT_S)
        with kept({"NOTIFY_SOCKET": name.replace("\0", "@")}) as there:
            life = there.life()
            life.do("tell(op='ready')")
            assert systemd.recv(1000).decode() == f"READY=1\nMAINPID={there.process.pid}"
            life.send("tell(op='stopping'); os._exit(0)")
            assert systemd.recv(1000) == b"STOPPING=1"
            assert there.ended() == 0
