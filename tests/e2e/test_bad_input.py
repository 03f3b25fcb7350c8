"""Mistakes of people and machines: one clear message with the next step, its exit code, and nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import apps
from tests.cluster import Done, wait_until
from tests.e2e.shop import LIGHT, Shop, assert_clear, git, own_traceback, python_for_nobody
from tests.load import LoadThread

USAGE, NOT_STARTED, UNAVAILABLE, BUSY, DENIED, CONFIG = 2, 6, 69, 75, 77, 78
WRONG_CONFIGS = {
    "unknown key": ("count = 2", "cuont = 2", ["deployer.toml:", "cuont", "`count`"]),
    "unknown table": ("[health]", "[healht]", ["deployer.toml:", "healht", "health"]),
    "wrong type": ("count = 2", 'count = "two"', ["deployer.toml:", "count"]),
    "wrong duration": ('soak = "300ms"', 'soak = "3 parsecs"', ["deployer.toml:", "soak", "3 parsecs"]),
    "out of range": ("count = 2", "count = 0", ["deployer.toml:", "count"]),
    "not TOML": ("[worker]", "[worker", ["deployer.toml:"]),
    "no such placeholder": ("server.py", "server.py {port}", ["deployer.toml:", "{port}"]),
}


def test_wrong_configuration(shop: Callable[..., Shop]) -> None:
    """At `up`: nothing is started. At `deploy`: nothing is changed, and the cluster goes on with what it has. Each
    names file, line and the nearest known key."""
    cluster = shop(count=2)
    for old, new, words in WRONG_CONFIGS.values():
        cluster.write()
        cluster.edit("deployer.toml", old, new)
        assert_clear(cluster.run("up"), CONFIG, *words)
        assert_clear(cluster.run("check"), CONFIG, *words)
    assert not cluster.processes()
    assert not (cluster.root / "run" / "keeper.pid").exists()
    cluster.up()
    slots = cluster.assert_serves("v1")
    for old, new, words in WRONG_CONFIGS.values():
        cluster.write(label="next")
        cluster.edit("deployer.toml", old, new)
        assert_clear(cluster.run("deploy"), CONFIG, *words)
    cluster.write(label="next")
    cluster.edit("deployer.toml", cluster.address, "tcp://127.0.0.1:1")
    assert_clear(cluster.run("deploy"), CONFIG, "[[listen]]", "deployer down")
    cluster.write(label="next")
    cluster.edit("deployer.toml", 'name = "app"', 'name = "other"')
    assert_clear(cluster.run("deploy"), CONFIG, "name")
    assert_clear(cluster.run("status", "--config", "/nowhere/deployer.toml"), CONFIG, "/nowhere/deployer.toml")
    cluster.assert_serves("v1", slots)
    assert list(cluster.releases()) == ["v1"]
    cluster.deploy(label="next", code=0)


def test_a_missing_file_and_words_that_mean_nothing(shop: Callable[..., Shop]) -> None:
    """No deployer.toml, an env_file that is not there, a command and an option that do not exist."""
    cluster = shop(count=1)
    cluster.directory.mkdir(parents=True)
    assert_clear(cluster.run("up"), CONFIG, "deployer.toml", "deployer init")
    assert_clear(cluster.run("status"), CONFIG, "deployer.toml")
    for words in (["deplyo"], ["deploy", "--frce"], ["scale"], ["deploy", "--timeout", "soon"]):
        done = cluster.run(*words)
        assert done.code == USAGE, done.text
        assert not own_traceback(done.text)
        assert done.text.count("error:") == 1, done.text
    assert "deploy" in cluster.run("deplyo").err
    cluster.write()
    cluster.edit("deployer.toml", "count = 1", 'count = 1\nenv_file = ["not-there.env"]')
    done = cluster.run("up")
    assert done.code in (NOT_STARTED, CONFIG), done.text
    assert "not-there.env" in done.text
    assert not own_traceback(done.text)
    assert cluster.run("down", code=0)


def test_an_address_in_use(shop: Callable[..., Shop]) -> None:
    """Says by which process; nothing of ours is left running, and `up` works once the address is free."""
    cluster = shop(count=1)
    cluster.write()
    port = int(cluster.address.rpartition(":")[2])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        assert_clear(cluster.run("up"), CONFIG, "in use", f"pid {os.getpid()}")
        wait_until(lambda: not cluster.processes(), "nothing is left running")
    cluster.run("up", code=0)
    cluster.assert_serves("v1")


def test_a_unix_socket_in_use_and_a_file_in_its_place(shop: Callable[..., Shop]) -> None:
    """A socket that somebody serves is not taken, nor a file removed; one that nobody serves is replaced."""
    cluster = shop(count=1, unix=True)
    cluster.write()
    path = Path(cluster.address.removeprefix("unix:"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert_clear(cluster.run("up"), CONFIG, "in use")
        assert path.exists()
    path.unlink()
    path.write_text("precious")
    assert cluster.run("up").code == CONFIG
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    cluster.run("up", code=0)
    cluster.assert_serves("v1")


ENDING = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)
lock = open(sys.argv[1] + "/keeper.pid", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print(os.getpid(), "token", sep="\\n", file=lock, flush=True)
with open(sys.argv[1] + "/manager.json", "w") as file:
    file.write('{"pid": 1, "state": "failed", "token": "token"}')
print("holds", flush=True)
time.sleep(60)  # SIGHUP ends it, as any signal finds a keeper that is past its last look
"""


def test_up_while_a_keeper_that_refused_is_still_ending(shop: Callable[..., Shop]) -> None:
    """It has the lock and starts no manager any more: `up` does not wait for its word, but starts another."""
    cluster = shop(count=1)
    cluster.write()
    cluster.run("up", "--no-deploy", code=0)
    cluster.run("down", code=0)
    run = cluster.directory / ".deployer" / "run"
    with subprocess.Popen([sys.executable, "-c", ENDING, run], stdout=subprocess.PIPE, text=True) as ending:
        assert ending.stdout is not None
        assert ending.stdout.readline() == "holds\n"
        cluster.run("up", code=0)
        assert ending.wait(timeout=60) == -signal.SIGHUP
    cluster.assert_serves("v1")


def test_paths_too_long_for_a_socket(shop: Callable[..., Shop]) -> None:
    """More than 107 bytes: of [[listen]] and of what lies under ROOT."""
    cluster = shop(count=1)
    cluster.write()
    long = str(cluster.base / ("x" * 110))
    cluster.edit("deployer.toml", cluster.address, f"unix:{long}")
    assert_clear(cluster.run("up"), CONFIG, "107")
    cluster.write()
    cluster.edit("deployer.toml", 'name = "app"', f'name = "app"\nroot = "{long}"')
    assert_clear(cluster.run("up"), CONFIG, "107", "root")
    assert not os.path.exists(long)


def test_a_stale_pid_file(shop: Callable[..., Shop]) -> None:
    """It names a process that is not ours (this one), as after a reboot: it means nothing."""
    cluster = shop(count=1)
    cluster.write()
    (cluster.root / "run").mkdir(parents=True)
    (cluster.root / "run" / "keeper.pid").write_text(f"{os.getpid()}\nabc\n")
    (cluster.root / "run" / "control.sock").touch()
    assert_clear(cluster.run("status"), UNAVAILABLE, "deployer up")
    cluster.run("up", code=0)
    cluster.assert_serves("v1")
    assert cluster.keeper_pid() != os.getpid()


def test_two_up_at_once(shop: Callable[..., Shop]) -> None:
    """Both end with 0, and there is one cluster."""
    cluster = shop(count=2)
    cluster.write()
    both = [cluster.start("up") for _ in range(2)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in both]
    assert [code for _, code in ended] == [0, 0], ended
    assert not own_traceback(str(ended))
    cluster.assert_serves("v1")
    keepers = [pid for pid in cluster.processes() if b"keeper/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert keepers == [cluster.keeper_pid()]
    assert len(cluster.history()) == 1


def test_deploy_while_another_runs(shop: Callable[..., Shop]) -> None:
    """75, by whom and since when; nor rollback, restart or scale; the first one is not disturbed."""
    cluster = shop(count=2, soak="300ms")
    cluster.up()
    go = cluster.base / "go"
    cluster.toml["extra"] = f"[hooks]\nafter_canary = 'while [ ! -e {go} ]; do sleep 0.05; done'\n"
    cluster.write(label="first")
    with cluster.begin("deploy", "-m", "mine") as running:
        running.phase("soaking")
        for words in (["deploy"], ["rollback"], ["restart"], ["scale", "3"]):
            assert_clear(cluster.run(*words), BUSY, "started by", " at ", "deployer follow")
        go.touch()
        assert running.finish() == 0
    cluster.assert_serves("v2")
    assert len(cluster.history()) == 2


NOBODY = """
import os, sys
from deployer.cli.app import main
sys.argv = ["deployer", *sys.argv[1:]]
sys.exit(main())
"""


def test_no_permission(shop: Callable[..., Shop]) -> None:
    """Another user may neither talk to the supervisor, nor start a second one, nor write where he may not."""
    python = python_for_nobody() if os.geteuid() == 0 else None
    if python is None:
        pytest.skip("NOT ROOT, or no interpreter that nobody may run: refusals to another user are not tested here")
    cluster = shop(count=1)
    cluster.up()
    cluster.base.chmod(0o755)
    slots = cluster.assert_serves("v1")
    for words in (["status"], ["deploy"], ["down"]):
        assert_clear(as_nobody(python, cluster.directory, *words), DENIED)
    assert_clear(as_nobody(python, cluster.directory, "up"), DENIED)
    cluster.assert_serves("v1", slots)
    other = cluster.base / "other"
    shutil.copytree(cluster.directory, other, ignore=shutil.ignore_patterns(".deployer"))
    assert_clear(as_nobody(python, other, "up"), DENIED, str(other))
    assert not (other / ".deployer").exists()
    (other / ".deployer").mkdir()
    os.chown(other / ".deployer", 65534, 65534)
    text = (other / "deployer.toml").read_text().replace(cluster.address, "tcp://127.0.0.1:80")
    (other / "deployer.toml").write_text(text)
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 80:
        assert_clear(as_nobody(python, other, "up"), DENIED, "1024")
    wait_until(lambda: not [p for p in cluster.processes() if str(other).encode() in cmdline(p)], "nothing is left")


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def as_nobody(python: str, directory: Path, *words: str) -> Done:
    site = next(path for path in sys.path if path.endswith("site-packages"))
    env = {"PYTHONPATH": f"{apps.REPO}:{site}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-c", NOBODY, *words]
    done = subprocess.run(
        command, cwd=directory, env=env, user="nobody", group="nogroup", extra_groups=[],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def tiny_disk(path: Path, size: str) -> Iterator[None]:
    """A tmpfs of that size at `path`; the test is skipped, and says so, where mounting is refused."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"MOUNT IS REFUSED ({done.stderr.strip()}): a full disk is not tested on this machine")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(directory: Path, leave: int = 0) -> Path:
    """Take all room there is, but for `leave` bytes."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    if leave:
        os.truncate(path, max(0, path.stat().st_size - leave))
    return path


def test_the_disk_has_no_room_for_a_release(shop: Callable[..., Shop]) -> None:
    """Refused before a file is copied; where nobody could know, the half-made release is removed. The old one serves,
    and with room again the next deploy works."""
    cluster = shop(count=2)
    with tiny_disk(cluster.root, "16m"):
        cluster.up()
        slots = cluster.assert_serves("v1")
        with LoadThread(cluster.address, **LIGHT) as load:
            cluster.write(label="too big")
            (cluster.directory / "big.bin").write_bytes(b"x" * 20_000_000)
            no_room(cluster, (), "there is no room for release", "nothing was fetched or built")
            repository = cluster.base / "shop.git"  # never deployed before: nobody knows how large it is
            shutil.copytree(cluster.directory, repository, ignore=shutil.ignore_patterns(".deployer"))
            for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "big"]):
                git(repository, *words)
            no_room(cluster, ("--git", str(repository)), "the disk is full", "the old release serves")
            cluster.assert_serves("v1", slots)
            (cluster.directory / "big.bin").unlink()
            cluster.deploy(label="small again", code=0)
            assert cluster.get()[2].startswith(b"small again")
            report = load.stop()
        assert report.lost == 0, str(report)
        cluster.run("down", code=0)


def no_room(cluster: Shop, source: tuple[str, ...], *words: str) -> None:
    done = cluster.run("deploy", *source, "--json")
    assert (done.code, done.last["reason"]) == (NOT_STARTED, "disk"), done.text
    assert words[0] in done.last["problem"]["what"]
    assert_clear(cluster.run("deploy", *source), NOT_STARTED, *words, "df -h")
    wait_until(lambda: not cluster.half_made(), "what was being staged is removed")
    assert {path.name for path in cluster.root.glob("releases/*")} == {"v1", ".v1.index"}


def test_the_disk_is_full_for_everything(shop: Callable[..., Shop]) -> None:
    """Not a byte is left, for state.db neither: a deploy is refused or fails in words, the manager may die and come
    back, the workers serve all the while, and with room again everything works."""
    cluster = shop(count=2)
    with tiny_disk(cluster.root, "16m"):
        cluster.up()
        slots = cluster.assert_serves("v1")
        with LoadThread(cluster.address, **LIGHT) as load:
            filler = fill(cluster.root)
            for label in ("second", "third"):
                cluster.write(label=label)
                done = cluster.run("deploy")
                assert done.code == NOT_STARTED, done.text
                assert not own_traceback(done.text), done.text
                assert "full" in done.text or "there is no room" in done.text, done.text
                assert "hint:" in done.text
            assert cluster.release_served() == "v1"
            killed = cluster.manager_pid()
            os.kill(killed, 9)
            time.sleep(1.5)  # long enough for the next one to have tried
            assert cluster.release_served() == "v1"
            status = cluster.run("status")
            print(f"status after kill -9 on a full disk: exit {status.code}")
            assert not own_traceback(status.text), status.text
            filler.unlink()
            cluster.run("up", code=0)
            cluster.assert_serves("v1", slots)
            cluster.deploy(label="with room", code=0)
            assert cluster.get()[2].startswith(b"with room")
            report = load.stop()
        assert report.lost == 0, str(report)
        cluster.run("down", code=0)


def test_current_cannot_be_moved(shop: Callable[..., Shop]) -> None:
    """At the very end of a rollout: the new release serves already, and promotion is tried until it works."""
    cluster = shop(count=1, soak="2s")  # time to put something in the way
    cluster.up()
    link, aside = cluster.root / "current", cluster.root / "aside"
    manager = cluster.manager_pid()
    cluster.write(label="second")
    with cluster.begin("deploy") as running:
        running.phase("canary")
        link.rename(aside)
        (link / "in the way").mkdir(parents=True)
        running.phase("promoting")
        assert json.loads(cluster.run("status", "--json", code=0).out)["rollout"]["phase"] == "promoting"
        shutil.rmtree(link)
        aside.rename(link)
        assert running.finish() == 0
    cluster.assert_serves("v2")
    assert cluster.manager_pid() == manager, "it waits; it does not die of it"
