"""`kill -9` of the manager and of the keeper at any moment: visitors and running commands do not notice."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import wait_until
from tests.e2e.shop import LIGHT, Edit, Running, Shop, alive, assert_clear
from tests.load import LoadThread

# A worker that ends with a code of its own when told to, and prints what it is asked.
TALKS: list[Edit] = [
    (
        "server.py",
        "    loop.add_signal_handler(signal.SIGTERM, server.stop)\n",
        "    loop.add_signal_handler(signal.SIGTERM, server.stop)\n"
        "    loop.add_signal_handler(signal.SIGUSR1, lambda: (print('last words', flush=True), os._exit(42)))\n",
    ),
    ("server.py", '    if path == "/echo":\n', '    print(f"asked for {path}", flush=True)\n    if path == "/echo":\n'),
]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP for the while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_idle(shop: Callable[..., Shop]) -> None:
    """No worker is restarted, a new manager answers within a second, and status goes on as if nothing had been."""
    cluster = shop(count=3)
    cluster.up()
    pids = cluster.assert_serves("v1")
    with LoadThread(cluster.address, **LIGHT) as load:
        for _ in range(3):
            began = time.monotonic()
            cluster.kill_manager()
            seconds = time.monotonic() - began
            print(f"a new manager was ready {seconds * 1000:.0f} ms after kill -9")
            assert seconds < 20
            cluster.assert_serves("v1", pids)
        report = load.stop()
    assert report.lost == 0, str(report)
    assert cluster.events("manager.started")[-1]["adopted"] == 3
    twice = [inode for inode, count in Counter(open_sockets(cluster.manager_pid())).items() if count > 1]
    assert not twice, "each was handed over by the keeper, none was inherited besides"


def open_sockets(pid: int) -> list[str]:
    """The sockets and pipes behind each descriptor of a process; one that is closed meanwhile is none."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return [name for name in names if name.startswith(("socket:", "pipe:"))]


def test_ten_times_in_a_row(shop: Callable[..., Shop]) -> None:
    """Killed every 0.2 s, whatever it is about to do then: the keeper does not give up, the workers stay."""
    cluster = shop(count=2)
    cluster.up()
    pids = cluster.assert_serves("v1")
    with LoadThread(cluster.address, **LIGHT) as load:
        for _ in range(10):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
                os.kill(cluster.manager_pid(), signal.SIGKILL)
            time.sleep(0.2)  # the rhythm of the killing, not a wait
        cluster.assert_serves("v1", pids)
        report = load.stop()
    assert report.lost == 0, str(report)
    cluster.deploy(label="after", code=0)
    cluster.assert_serves("v2")


PHASES = ("staging", "preflight", "canary", "soaking", "rolling", "promoting", "finishing", "reverting")
SLOW_HOOK = "[hooks]\nafter_rollout = '[ $DEPLOYER_RELEASE = v1 ] || sleep 60'\n"


@pytest.mark.parametrize("phase", PHASES)
def test_during_a_rollout(phase: str, shop: Callable[..., Shop]) -> None:
    """The command that waits goes on following and ends with the right code; one release serves on all slots."""
    cluster = shop(count=3, soak="500ms", extra="batch = 1\n" + (SLOW_HOOK if phase == "finishing" else ""))
    cluster.write(boot_s=0.25)
    cluster.run("up", code=0)
    before = cluster.assert_serves("v1")
    broken = phase == "reverting"
    boot_s = 1.0 if phase in ("rolling", "reverting") else 0.25  # what is left of the rollout must outlast our kill
    cluster.write("third_worker_crashes" if broken else "good", label="next", boot_s=boot_s)
    if phase == "staging":
        for number in range(1500):
            (cluster.directory / f"file{number}.txt").write_text("a file of a big tree\n")
    with LoadThread(cluster.address, **LIGHT) as load:
        with contextlib.ExitStack() as stack:
            if phase == "promoting":
                stack.enter_context(unmovable_current(cluster))
            running = stack.enter_context(cluster.begin("deploy"))
            running.phase(phase)
            if phase == "staging":
                wait_until(lambda: list(cluster.root.glob("releases/*v2*/*")), "the copy has begun")
            if phase == "rolling":
                running.until("slot.moved", slot=2)
            if phase == "finishing":
                running.until("hook.started", stage="after_rollout")
            killed = cluster.manager_pid()
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: cluster._other_manager(killed), "a new manager")
            if phase == "promoting":
                assert cluster.status()["rollout"]["phase"] == "promoting"
                stack.close()
                running = cluster.begin("follow")
            code = running.finish()
        report = load.stop()
    assert code == {"reverting": 4, "finishing": 9}.get(phase, 0), running.error_text
    assert running.last["event"] == "rollout.finished"
    assert_told_once(running)
    now = cluster.assert_serves("v1" if broken else "v2", {3: before[3]} if broken else {})
    assert len(now) == 3
    assert not cluster.half_made()
    assert report.lost == 0, str(report)
    assert cluster.events("manager.started")[-1]["resumed"] is not None


def assert_told_once(running: Running) -> None:
    numbers = [event["seq"] for event in running.events]
    assert numbers == sorted(set(numbers)), "an event was told twice, or out of order"


@contextlib.contextmanager
def unmovable_current(cluster: Shop) -> Iterator[None]:
    """A directory where `current` is: the kernel refuses the rename, so promoting is tried again until it is gone."""
    link, aside = cluster.root / "current", cluster.root / "current.aside"
    link.rename(aside)
    (link / "in the way").mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(link)
        aside.rename(link)


def test_what_happened_without_a_manager_is_not_lost(shop: Callable[..., Shop]) -> None:
    """With the manager dead and the keeper stopped: lines that a worker prints reach app.log afterwards, and the exit
    code of one that died is in the status and in the events."""
    cluster = shop(count=2, edits=TALKS)
    cluster.up()
    slots = cluster.assert_serves("v1")
    keeper, manager = cluster.keeper_pid(), cluster.manager_pid()
    with stopped(keeper):
        os.kill(manager, signal.SIGKILL)
        wait_until(lambda: not alive(manager), "the manager is dead")
        cluster.get("/nobody-listens")
        os.kill(slots[1], signal.SIGUSR1)
        wait_until(lambda: not alive(slots[1]), "worker 1 is dead")
    wait_until(lambda: cluster._other_manager(manager), "a new manager")
    wait_until(lambda: slots[1] not in cluster.pids(), "it knows that worker 1 is dead")
    now = cluster.assert_serves("v1", {2: slots[2]})
    assert now[1] != slots[1]
    last = next(w["last_exit"] for w in cluster.status()["workers"] if w["slot"] == 1)
    assert (last["pid"], last["code"]) == (slots[1], 42)
    assert "last words" in last["tail"]
    ended = next(event for event in cluster.events("worker.exited") if event["pid"] == slots[1])
    assert (ended["code"], ended["expected"]) == (42, False)
    assert "asked for /nobody-listens" in cluster.run("logs", code=0).out


def test_both_die_at_once_with_a_worker(shop: Callable[..., Shop]) -> None:
    """Manager and worker killed together, the keeper runs: it reaps the worker, the next manager has its signal."""
    cluster = shop(count=2)
    cluster.up()
    slots = cluster.assert_serves("v1")
    manager = cluster.manager_pid()
    for pid, number in ((manager, signal.SIGKILL), (slots[2], signal.SIGXCPU)):
        os.kill(pid, number)
    wait_until(lambda: cluster._other_manager(manager), "a new manager")
    wait_until(lambda: slots[2] not in cluster.pids(), "it knows that worker 2 is dead")
    cluster.assert_serves("v1", {1: slots[1]})
    ended = next(event for event in cluster.events("worker.exited") if event["pid"] == slots[2])
    assert ended["signal"] == "SIGXCPU"


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("manager_too", [False, True], ids=["keeper", "keeper_and_manager"])
def test_the_keeper_dies(manager_too: bool, unix: bool, shop: Callable[..., Shop]) -> None:
    """Workers serve; `up` adopts them and the listening socket. A request that waited in the socket's queue all the
    time is answered."""
    cluster = shop(count=2, unix=unix, interval="5s")
    cluster.up()
    slots = cluster.assert_serves("v1")
    if manager_too:
        cluster.kill_all_but_workers()
        assert_clear(cluster.run("status"), 69)
        assert_clear(cluster.run("down"), 69, "still serve")
    else:
        keeper = cluster.keeper_pid()
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not alive(keeper), "the keeper is dead")
        wait_until(lambda: cluster.status()["keeper"]["pid"] is None, "the manager knows")
    assert cluster.release_served() == "v1"
    with contextlib.ExitStack() as stack:
        for pid in slots.values():
            stack.enter_context(stopped(pid))
        waiting = cluster.connect(15)
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        cluster.run("up", code=0)
    assert answered(waiting).startswith(b"HTTP/1.1 200")
    cluster.assert_serves("v1", slots)
    assert cluster.status()["keeper"]["pid"] == cluster.keeper_pid()
    with LoadThread(cluster.address, **LIGHT) as load:
        cluster.deploy(label="after", code=0)
        cluster.assert_serves("v2")
        cluster.kill_manager()
        cluster.assert_serves("v2")
        report = load.stop()
    assert report.lost == 0, str(report)


def answered(sock: socket.socket) -> bytes:
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_everything_dies(shop: Callable[..., Shop]) -> None:
    """`up` starts the promoted release again, not what lies in the directory; a unix socket's file is no obstacle."""
    cluster = shop(count=2, unix=True)
    cluster.up()
    cluster.deploy(label="second", code=0)
    slots = cluster.assert_serves("v2")
    cluster.write("raises_at_import", label="an edit under way")
    cluster.kill_all_but_workers()
    for pid in slots.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not cluster.processes(), "everything is dead")
    cluster.run("up", code=0)
    cluster.assert_serves("v2")
    assert b"second" in cluster.get()[2]


@pytest.mark.parametrize("damage", ["corrupt", "newer"])
def test_state_that_cannot_be_used(damage: str, shop: Callable[..., Shop]) -> None:
    """Refused, with a message that says what to do; workers keep serving. After doing it, `up` adopts them."""
    cluster = shop(count=2)
    cluster.up()
    cluster.deploy(label="second", code=0)
    slots = cluster.assert_serves("v2")
    with LoadThread(cluster.address, **LIGHT) as load:
        cluster.kill_all_but_workers()
        database = cluster.root / "state.db"
        if damage == "corrupt":
            database.write_bytes(b"this is no database" * 1000)
            done = cluster.run("up")
            assert_clear(done, 78, "damaged", str(database) + ".bak", "keep serving")
        else:
            version = add_to_version(database, 1)
            done = cluster.run("up")
            assert_clear(done, 78, "newer deployer", "keep serving")
        assert all(alive(pid) for pid in slots.values())
        assert cluster.release_served() == "v2"
        if damage == "corrupt":
            hint = next(line for line in done.err.splitlines() if "hint:" in line).partition("hint:")[2]
            assert " && deployer up" in hint
            assert os.system(hint.replace(" && deployer up", "")) == 0
        else:
            assert add_to_version(database, -1) == version - 1
        cluster.run("up", code=0)
        cluster.assert_serves("v2", slots)
        report = load.stop()
    assert report.lost == 0, str(report)
    cluster.deploy(label="third", code=0)
    assert cluster.release_served() == cluster.current()


def add_to_version(database: Path, number: int) -> int:
    """The schema version that the database then says it has."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0]) + number
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
    return version
