"""After the rollout: workers that die, sicken or leave children behind; how they are started, told and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.cluster import free_port, wait_until
from tests.e2e.shop import FAST_HEALTH, LIGHT, Edit, Shop, alive, python_for_nobody
from tests.load import LoadThread

ENVIRONMENT: Edit = (
    "server.py",
    '    if path == "/echo":\n',
    '    if path == "/env":\n'
    "        import json\n"
    "        mask = os.umask(0)\n"
    "        os.umask(mask)\n"
    "        names = {n: os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) < 9}\n"
    "        own = {'argv': sys.argv, 'cwd': os.getcwd(), 'umask': mask, 'uid': os.getuid(), 'gid': os.getgid(),\n"
    "               'groups': os.getgroups(), 'fds': names, 'pgid': os.getpgrp(), 'pid': os.getpid()}\n"
    "        return '200 OK', json.dumps({'env': dict(os.environ), **own}).encode()\n"
    '    if path == "/echo":\n',
)
DIES_YOUNG: Edit = (
    "server.py",
    '    notify("READY=1")\n',
    '    notify("READY=1")\n'
    '    if os.path.exists("../../../poison"):\n'
    '        print("poisoned", file=sys.stderr, flush=True)\n'
    "        loop.call_later(0.02, os._exit, 7)\n",
)
SICK: Edit = (
    "server.py",
    '    if path == "/healthz":\n',
    '    if path == "/healthz" and os.path.exists(f"../../../sick-{os.getpid()}"):\n'
    '        return "500 Sick", b"fell ill\\n"\n'
    '    if path == "/healthz":\n',
)
FAMILY: Edit = (
    "server.py",
    "    await server.done.wait()\n",
    "    import subprocess\n"
    "    sleep = ['sleep', '1000']\n"
    "    child = subprocess.Popen(sleep)\n"
    "    away = subprocess.run(['setsid', '-f', 'sleep', '2000']) if behaviour.LABEL == 'runaway' else None\n"
    "    orphan = subprocess.run(['sh', '-c', 'sleep 1500 & '])\n"
    "    await server.done.wait()\n",
)


def spawn_seconds(cluster: Shop, slot: int) -> float:
    """From the last unexpected death in the slot, as it was noted, to the start of the next worker there."""
    events = [e for e in cluster.events() if e.get("slot") == slot and e["event"].startswith("worker.")]
    death = max(n for n, e in enumerate(events) if e["event"] == "worker.exited" and not e["expected"])
    born = next(e for e in events[death:] if e["event"] == "worker.starting")
    return float(born["ts"] - events[death]["ts"])


def named(cluster: Shop, word: str) -> list[int]:
    """The cluster's processes whose command line is this."""
    return [pid for pid in cluster.processes() if Path(f"/proc/{pid}/cmdline").read_bytes().decode() == word]


def test_a_dead_worker_is_replaced_at_once_by_the_promoted_release(shop: Callable[..., Shop]) -> None:
    """Although what lies in the app's directory by then is broken. The time is measured from outside, by the kernel's
    clock: from the SIGKILL to the start of the new process."""
    cluster = shop(count=2)
    cluster.up()
    cluster.write("raises_at_import", label="an edit under way")
    slots = cluster.assert_serves("v1")
    for slot in (1, 2):
        killed_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.kill(slots[slot], signal.SIGKILL)
        wait_until(lambda slot=slot: slots[slot] not in cluster.pids(), "it is noticed")  # type: ignore[misc]
        now = cluster.assert_serves("v1")
        outside, noted = started_at(now[slot]) - killed_at, spawn_seconds(cluster, slot)
        print(f"death to spawn: {outside * 1000:.0f} ms (clock ticks of 10 ms), {noted * 1000:.1f} ms by events")
        assert outside < 5
    status = cluster.status()
    assert [w["restarts"] for w in status["workers"]] == [1, 1]
    assert [w["last_exit"]["signal"] for w in status["workers"]] == ["SIGKILL", "SIGKILL"]
    text = cluster.run("status", code=0).out
    assert "SIGKILL" in text


def started_at(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def test_one_that_dies_young_is_tried_more_and_more_slowly(shop: Callable[..., Shop]) -> None:
    """At once, then after 0.5 s, 1 s, ...: status says so, with the exit code and the last lines; the other slot
    serves. What cured it makes it well."""
    cluster = shop(count=2, edits=[DIES_YOUNG])
    cluster.up()
    slots = cluster.assert_serves("v1")
    (cluster.directory / "poison").touch()
    os.kill(slots[1], signal.SIGKILL)

    def exits() -> list[dict[str, Any]]:
        return [e for e in cluster.events("worker.exited") if e["slot"] == 1 and e["code"] == 7]

    wait_until(lambda: len(exits()) >= 3, "it has died of poison three times", pause=0.1)
    starts = [e["ts"] for e in cluster.events("worker.starting") if e["slot"] == 1][-3:]
    pauses = [round(starts[n + 1] - starts[n], 2) for n in range(2)]
    print(f"pauses between tries: {pauses}")
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1.0
    worker = cluster.status()["workers"][0]
    assert (worker["slot"], worker["restarts"] >= 4) == (1, True)
    assert worker["last_exit"]["code"] == 7
    assert "poisoned" in worker["last_exit"]["tail"]
    assert cluster.release_served() == "v1"
    text = cluster.run("status", code=0).text
    assert "poisoned" in text
    assert "exit code 7" in text
    (cluster.directory / "poison").unlink()
    cluster.assert_serves("v1", {2: slots[2]})


def test_no_child_of_a_worker_is_left(shop: Callable[..., Shop]) -> None:
    """Each has a child, and one it disowned (a double fork). After SIGKILL of a worker, after a deploy and after
    `down` they are gone, and there is no zombie."""
    cluster = shop(count=2, edits=[FAMILY])
    cluster.up()
    slots = cluster.assert_serves("v1")
    children, orphans = "sleep\x001000\x00", "sleep\x001500\x00"
    wait_until(lambda: (len(named(cluster, children)), len(named(cluster, orphans))) == (2, 2), "children run")
    before = set(named(cluster, children) + named(cluster, orphans))
    os.kill(slots[1], signal.SIGKILL)
    wait_until(lambda: sum(alive(pid) for pid in before) == 2, "the children of worker 1 are gone")
    cluster.assert_serves("v1", {2: slots[2]})
    cluster.deploy(label="second", code=0)
    cluster.assert_serves("v2")
    wait_until(lambda: not any(alive(pid) for pid in before), "all children of v1 are gone")
    assert not zombies([cluster.keeper_pid(), cluster.manager_pid()])
    cluster.run("down", code=0)
    wait_until(lambda: not cluster.processes(), "nothing is left")


def test_one_that_left_its_group_is_ended_too(shop: Callable[..., Shop]) -> None:
    """A process that a worker started in a session of its own does not outlive the worker."""
    cluster = shop(count=1, edits=[FAMILY])
    cluster.up(label="runaway")
    runaway = "sleep\x002000\x00"
    wait_until(lambda: len(named(cluster, runaway)) == 1, "that of worker 1 runs, that of the preflight has ended")
    old = named(cluster, runaway)
    cluster.run("restart", code=0)
    wait_until(lambda: not any(alive(pid) for pid in old), "it went with its worker")
    runaways = wait_until(lambda: named(cluster, runaway), "that of the new worker runs")
    cluster.run("down", code=0)
    wait_until(lambda: not any(alive(pid) for pid in runaways), "it has ended")


def zombies(parents: list[int]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" and int(fields[1]) in parents:
                    found.append(int(name))
    return found


def test_sick_workers_are_replaced_one_at_a_time(shop: Callable[..., Shop]) -> None:
    """Both fail their live health check at once: each is replaced start-first, the second only after the first; never
    fewer than two are ready."""
    cluster = shop(count=2, edits=[SICK], interval="100ms")
    cluster.up()
    slots = cluster.assert_serves("v1")
    with LoadThread(cluster.address, **LIGHT) as load:
        for pid in slots.values():
            (cluster.directory / f"sick-{pid}").touch()
        wait_until(lambda: not set(slots.values()) & set(cluster.pids()), "both are replaced", pause=0.1)
        cluster.assert_serves("v1")
        report = load.stop()
    assert report.lost == 0, str(report)
    events = [e for e in cluster.events() if e["event"].startswith("worker.") and e["slot"]]
    since = next(n for n, e in enumerate(events) if e["event"] == "worker.unhealthy")
    order = [e["event"].removeprefix("worker.") for e in events[since:]]
    moves = [word for word in order if word in ("starting", "ready", "draining")]
    assert moves == ["starting", "ready", "draining"] * 2, moves


WAYS: dict[str, tuple[str, str]] = {
    "notify": ('ready = "notify"', 'ready = "notify"'),
    "http": ('ready = "notify"', 'ready = "http"'),
    "listen": ('ready = "notify"', 'ready = "listen"'),
    "delay": ('ready = "notify"', 'ready = "delay"\nready_delay = "700ms"'),
}


def test_the_ways_of_telling_readiness(shop: Callable[..., Shop]) -> None:
    """Each on the same cluster: a good release becomes ready by it; one that accepts nothing is told `never_ready`
    (`delay` cannot know that: there the check that follows finds out)."""
    cluster = shop(count=1, ready_timeout="3s", edits=[FAST_HEALTH])
    cluster.up(boot_s=0.2)
    for way, (old, new) in WAYS.items():
        cluster.edits[1:] = [("deployer.toml", old, new)]
        cluster.write(label=way, boot_s=0.2)
        cluster.run("deploy", "--json", code=0)
        ready = [e["seconds"] for e in cluster.events("worker.ready") if e["slot"] == 1][-1]
        print(f"{way}: ready after {ready} s")
        assert ready >= (0.7 if way == "delay" else 0.2)
        done = cluster.deploy("never_serves" if way != "notify" else "never_ready", label=f"{way} broken", code=3)
        assert done.last["reason"] == ("health" if way == "delay" else "never_ready")
        assert cluster.release_served() == cluster.current()


def test_environment_descriptors_user_and_limits(shop: Callable[..., Shop]) -> None:
    """What a worker is started with is what DESIGN.md says, and nothing else of ours; two sockets by name; a key that
    was removed is gone after the next deploy."""
    port = free_port()
    second: Edit = (
        "deployer.toml",
        "[health]",
        f'[[listen]]\nname = "admin"\naddress = "tcp://127.0.0.1:{port}"\n\n[health]',
    )
    first: Edit = ("deployer.toml", "[[listen]]\naddress", '[[listen]]\nname = "web"\naddress')
    python = python_for_nobody() if os.geteuid() == 0 else None
    extra = 'env = { COLOUR = "blue", EMPTY = "" }\nenv_file = ["secrets.env"]\numask = "027"\n'
    extra += "rlimits = { nofile = 333 }\n"
    extra += 'user = "nobody"\ngroup = "nogroup"\n' if python else ""
    words: Edit = ("deployer.toml", "server.py", "server.py {fd} {fd:admin} {worker} {release}")
    interpreter: Edit = ("deployer.toml", sys.executable, python or sys.executable)
    cluster = shop(count=2, worker_extra=extra, edits=[ENVIRONMENT, first, second, words, interpreter])
    cluster.base.chmod(0o755)  # nobody must be able to reach the release
    cluster.directory.mkdir(parents=True)
    cluster.write()
    (cluster.directory / "secrets.env").write_text("# a comment\nTOKEN=abc=def\nCOLOUR=red\n")
    cluster.run("up", code=0, LEAKED="from the shell", NOTIFY_SOCKET="/nonsense", LISTEN_FDS="7")
    seen = json.loads(cluster.get("/env")[2])
    env, release = seen["env"], cluster.root.resolve() / "releases" / "v1"
    assert (env["DEPLOYER_APP"], env["DEPLOYER_RELEASE"]) == ("app", "v1")
    assert env["DEPLOYER_WORKER"] in ("1", "2")
    assert env["DEPLOYER_ROOT"] == str(cluster.root)
    assert (env["LISTEN_FDS"], env["LISTEN_FDNAMES"]) == ("2", "web:admin")
    assert env["LISTEN_PID"] == str(seen["pid"])
    assert env["NOTIFY_SOCKET"].startswith(str(cluster.root))
    assert (env["TOKEN"], env["EMPTY"]) == ("abc=def", "")
    assert env["COLOUR"] in ("blue", "red")
    print(f"env over env_file: COLOUR={env['COLOUR']}")
    ours = {key for key in env if key.startswith("DEPLOYER_")}
    assert ours == {"DEPLOYER_APP", "DEPLOYER_RELEASE", "DEPLOYER_WORKER", "DEPLOYER_ROOT"}
    fd, admin, *rest = seen["argv"][1:]
    assert rest == [env["DEPLOYER_WORKER"], "v1"]
    assert seen["fds"][fd] == seen["fds"]["3"], "{fd} is the first socket"
    assert seen["fds"][admin] == seen["fds"]["4"], "{fd:admin} is the second"
    assert seen["cwd"] == str(release), "the release's real path, not `current`"
    assert seen["umask"] == 0o027
    assert seen["pgid"] == seen["pid"], "a process group of its own"
    assert seen["fds"]["3"].startswith("socket:")
    assert seen["fds"]["4"].startswith("socket:")
    if python is None:
        print("NOT ROOT, or no interpreter that nobody may run: [worker] user is not tested here")
    else:
        assert (seen["uid"], seen["gid"]) == (65534, 65534)
        assert 0 not in seen["groups"]
    assert limit_of(seen["pid"]) == 333
    assert alike(cluster.address, port)
    (cluster.directory / "secrets.env").write_text("COLOUR=red\n")
    cluster.run("deploy", code=0)
    assert "TOKEN" not in json.loads(cluster.get("/env")[2])["env"]


def limit_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    line = next(line for line in lines if line.startswith("Max open files"))
    return int(line.split()[3])


def established(pid: int) -> int:
    """Connections that the process has accepted and nobody has closed."""
    return sum(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(pid).net_connections())


def alike(address: str, port: int) -> bool:
    """Both sockets take connections (nobody answers on the second: the app has no use for it)."""
    first = int(address.rpartition(":")[2])
    for number in (first, port):
        socket.create_connection(("127.0.0.1", number), 2).close()
    return True


def test_a_drain_waits_and_then_kills_the_whole_group(shop: Callable[..., Shop]) -> None:
    """A request that takes 1.2 s is answered whole by the old worker although it was told to stop; one that takes
    longer than drain_timeout is not waited for, and the worker's children go with it."""
    cluster = shop(count=1, drain_timeout="4s", edits=[FAMILY])
    cluster.up()
    answers: dict[float, int] = {}

    def ask(seconds: float) -> None:
        with contextlib.suppress(OSError, IndexError):
            answers[seconds] = cluster.get(f"/slow?s={seconds}", timeout=60)[0]

    old = cluster.assert_serves("v1")[1]
    askers = [threading.Thread(target=ask, args=(seconds,)) for seconds in (1.2, 30.0)]
    for asker in askers:
        asker.start()
    wait_until(lambda: established(old) == 2, "both requests are with the old worker")
    (child,) = named(cluster, "sleep\x001000\x00")
    cluster.deploy(label="second", code=0)
    assert alive(old), "it still answers"
    for asker in askers:
        asker.join(60)
    assert answers == {1.2: 200}
    wait_until(lambda: not alive(old) and not alive(child), "killed, with its child")
    (ended,) = wait_until(lambda: [e for e in cluster.events("worker.exited") if e["pid"] == old], "it is noted")
    print(f"killed {ended['seconds']} s after SIGTERM (drain_timeout 4 s)")
    assert (ended["signal"], ended["expected"]) == ("SIGKILL", True)
    assert 3.9 < ended["seconds"] < 29
    cluster.assert_serves("v2")
