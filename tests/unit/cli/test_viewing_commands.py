"""status, releases, history, events, logs, follow, and the smaller verbs that start a rollout."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import Any

import msgspec
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import Cut, ScriptedManager, event, rollout_info, status, worker

from deployer.wire.schema import RollbackRequest, Status

LAST_EXIT = {
    "at": 1700000000.0,
    "pid": 88,
    "release": "v7",
    "code": None,
    "signal": "SIGSEGV",
    "text": "killed by SIGSEGV",
    "tail": ["\x1b[31mFatal Python error:\x1b[0m Segmentation fault"],
}
STATUS = """\
● shop healthy  v7  2/2 ready  tcp://127.0.0.1:8000
  manager pid 10 up 2h 10m, keeper pid 9
  SLOT  PID   RELEASE  STATE  UP      RESTARTS  CPU   MEM    LAST EXIT
  1     9004  v7       ready  2h 10m  0         0.1%  28 MB  \u2013
  2     9011  v7       ready  2h 10m  0         0.1%  28 MB  \u2013
"""
DEGRADED = """\
▲ shop degraded  v7  1/2 ready  tcp://127.0.0.1:8000
  manager pid 10 up 2h 10m, no keeper
  SLOT  PID   RELEASE  STATE    UP      RESTARTS  CPU   MEM    LAST EXIT
  1     9004  v7       ready    2h 10m  0         0.1%  28 MB  \u2013
  2     \u2013     v7       backoff  \u2013       6         \u2013     \u2013      SIGSEGV
"""


def degraded(**changes: Any) -> dict[str, Any]:
    second = worker(2, None, state="backoff", restarts=6, last_exit=LAST_EXIT)
    return status(workers=[worker(1, 9004), second], keeper={"pid": None}, **changes)


def test_status_fits_a_screen(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status()

    result = shop.run("status")

    assert (result.code, result.out, result.err) == (0, STATUS, "")


def test_status_shows_who_is_replaced_and_why(manager: ScriptedManager, shop: Shop) -> None:
    """One that is recycled serves well until it goes; a hung one does not. What was long ago is for --verbose."""
    past = {"at": time.time() - 60, "pid": 80, "release": "v7", "reason": "memory", "text": "it uses 700 MB"}
    workers = [
        worker(1, 9004, state="recycling", why="it uses 600 MB, memory_limit is 512 MB"),
        worker(2, 9011, state="hung", why="its event loop has been stuck for 1m 1s", recycled=past),
        worker(3, 9012, recycled={**past, "at": 0.0, "pid": 81}),
    ]
    manager.answers["GET /v1/status"] = 200, status(workers=workers, count=3)

    text = shop.run("status").out

    assert text.startswith("▲ shop degraded  v7  2/3 ready")
    assert "  slot 1: pid 9004: it uses 600 MB, memory_limit is 512 MB\n" in text
    assert "  slot 2: pid 9011: its event loop has been stuck for 1m 1s\n" in text
    assert "  slot 2: v7 pid 80 replaced (memory) 1m 0s ago: it uses 700 MB\n" in text
    assert "pid 81" not in text
    assert "pid 81 replaced (memory)" in shop.run("status", "--verbose").out


def test_events_tell_why_a_worker_was_recycled(manager: ScriptedManager, shop: Shop) -> None:
    said = {"slot": 2, "pid": 80, "release": "v7"}
    manager.events = [
        event(
            1, "worker.recycled", rollout=None, **said, reason="hung", text="its event loop has been stuck for 1m 1s"
        ),
        event(2, "worker.over_limit", rollout=None, **said, text="it uses 600 MB: replaced in 20s"),
    ]

    first, second = shop.run("events").out.splitlines()

    assert first.endswith("slot 2: v7 pid 80 is replaced (hung): its event loop has been stuck for 1m 1s")
    assert second.endswith("slot 2: warning: v7 pid 80: it uses 600 MB: replaced in 20s")


def test_status_of_a_degraded_cluster_shows_the_last_words_and_warns(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, degraded()

    result = shop.run("status")

    assert result.code == 0
    assert result.out.startswith(DEGRADED)
    assert result.out.splitlines()[-1] == "  │ Fatal Python error: Segmentation fault"
    assert result.err == ("warning: the keeper is gone: nothing restarts the manager if it dies\nhint: deployer up\n")


def test_status_is_no_wider_than_80_columns_with_big_numbers(manager: ScriptedManager, shop: Shop) -> None:
    big = {"release": "v1234", "state": "unhealthy", "uptime_s": 86400 * 365, "restarts": 12345}
    big |= {"cpu_percent": 100.0, "rss_bytes": 999 * 1024**2, "last_exit": LAST_EXIT}
    manager.answers["GET /v1/status"] = 200, status(workers=[worker(512, 4194303, **big)])

    result = shop.run("status")

    assert max(map(len, result.out.splitlines())) <= 80


def test_status_shows_the_watch(manager: ScriptedManager, shop: Shop) -> None:
    watch = {"id": 3, "kind": "dev", "path": "/srv/shop", "mode": "poll", "directories": 9, "who": "ana", "saves": 12}
    watch |= {"since": time.time() - 3600, "rollout": None}
    heals = watch | {"kind": "heal", "mode": "kernel", "rollout": 12}
    manager.answers["GET /v1/status"] = 200, status(watch=watch)
    assert re.search(r"\n  watch: /srv/shop, 12 saves, polling, by ana, for 1h 0m\n", shop.run("status").out)
    assert json.loads(shop.run("status", "--json").out)["watch"] == watch

    manager.answers["GET /v1/status"] = 200, status(watch=heals)
    text = shop.run("status").out
    assert re.search(r"\n  watch: waits for a fix of rollout 12 in /srv/shop, by ana, for 1h 0m\n", text)


def test_history_has_no_saves_unless_they_are_asked_for(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/rollouts"] = 200, []
    shop.run("history")
    shop.run("history", "--all", "-n", "5")

    assert manager.queries("GET /v1/rollouts") == [{"limit": "20"}, {"limit": "5", "saves": "1"}]


def test_events_tell_of_a_watch(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = [
        event(1, "watch.started", rollout=None, watch=3, kind="heal", path="/srv", mode="poll", directories=1),
        event(2, "watch.saved", rollout=None, watch=3, files=["a.py", "b.py"], count=9, at=1.0),
        event(3, "watch.fault", rollout=None, watch=3, what="no more watches", cause="limit 8192", hint=None),
        event(4, "watch.ended", rollout=None, watch=3, why="v7 is live"),
    ]

    said = [line.partition(" 22:13:20.")[2][4:] for line in shop.run("events").out.splitlines()]

    assert said == [
        "watching /srv for a fix (1 directory, polling)",
        "saved a.py and 8 more",
        "watch: warning: no more watches: limit 8192",
        "the watch ended: v7 is live",
    ]


def test_status_names_the_rollout_that_runs(manager: ScriptedManager, shop: Shop) -> None:
    running = rollout_info(release="v8", previous="v7", phase="soaking")
    manager.answers["GET /v1/status"] = 200, status(rollout=running)

    result = shop.run("status")

    assert "  rollout 12: deploying v7 → v8, soaking, by ana, for " in result.out
    assert result.err == "hint: deployer follow\n"


def test_status_json_is_the_stable_form_and_more(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, degraded()

    result = shop.run("status", "--json")

    data = json.loads(result.out)
    stable = {"app", "release", "rollout", "listen", "manager", "keeper", "workers"}
    slot = {"slot", "pid", "release", "state", "uptime_s", "restarts", "rss_bytes", "cpu_percent"}
    assert stable <= data.keys()
    assert slot <= data["workers"][0].keys()
    assert msgspec.json.decode(result.out, type=Status).workers[1].restarts == 6
    assert result.err == ""


def test_releases_and_history_as_tables_and_as_json(manager: ScriptedManager, shop: Shop) -> None:
    release = {
        "name": "v7",
        "state": "live",
        "source": "/srv/shop",
        "commit": "41d09e7c0ffee",
        "subject": "Fix cart rounding",
        "author": "ana",
        "staged_at": 1700000000.0,
        "promoted_at": None,
        "size_bytes": 91234,
        "who": "ana",
        "message": None,
    }
    manager.answers["GET /v1/releases"] = 200, [release]
    done = rollout_info(release="v7", outcome="failed", exit_code=3, reason="worker_exit", finished_at=1700000003.4)
    manager.answers["GET /v1/rollouts"] = 200, [done]

    releases, history = shop.run("releases"), shop.run("history", "-n", "5")

    head = ["RELEASE", "STATE", "COMMIT", "SUBJECT", "AUTHOR", "AGE", "SIZE", "BY", "SOURCE"]
    assert releases.out.splitlines()[0].split() == head
    assert "v7       live   41d09e7  Fix cart rounding  ana" in releases.out
    assert "89 KB  ana  /srv/shop" in releases.out
    assert history.out.splitlines()[1] == (
        "12  2023-11-14 22:13:20  deploy  v6 → v7  failed (worker_exit)  3     3.4s  ana"
    )
    assert manager.queries("GET /v1/rollouts") == [{"limit": "5"}]
    assert json.loads(shop.run("releases", "--json").out)[0]["name"] == "v7"
    assert json.loads(shop.run("history", "--json").out)[0]["exit_code"] == 3
    assert shop.run("releases", "-q").out == "v7\n"


def log_line(number: int, **changes: Any) -> bytes:
    line = {"ts": 1700000000.0 + number, "slot": 1, "pid": 9004, "release": "v7", "stream": "stdout"}
    return json.dumps({**line, "line": f"line {number}", **changes}).encode() + b"\n"


def test_logs_strip_what_would_drive_the_terminal(manager: ScriptedManager, shop: Shop) -> None:
    evil = "\x1b[2Jcleared \x1b]0;title\x07\u202etxet \x9b31m\rback"
    manager.streams["/v1/logs"] = lambda query: iter(
        [log_line(1), b"\n", log_line(2, stream="stderr", slot=2), log_line(3, line=evil)]
    )

    result = shop.run("logs", "-n", "5", "--slot", "1", "--release", "v7")

    assert result.out == (
        "22:13:21.000 v7/1 9004 │ line 1\n22:13:22.000 v7/2 9004 ! line 2\n"
        "22:13:23.000 v7/1 9004 │ cleared txet 31m back\n"
    )
    assert manager.queries("GET /v1/logs") == [{"lines": "5", "slot": "1", "release": "v7"}]


def test_logs_name_the_template(manager: ScriptedManager, shop: Shop) -> None:
    manager.streams["/v1/logs"] = lambda query: iter([log_line(1, slot=-1), log_line(2, slot=0)])
    assert shop.run("logs").out == "22:13:21.000 v7/template 9004 │ line 1\n22:13:22.000 v7/0 9004 │ line 2\n"


def test_logs_as_json_are_the_lines_as_they_came(manager: ScriptedManager, shop: Shop) -> None:
    manager.streams["/v1/logs"] = lambda query: iter([log_line(1)])

    assert shop.run("logs", "--json").out.encode() == log_line(1)


def test_following_logs_ends_with_ctrl_c(manager: ScriptedManager, shop: Shop) -> None:
    def stream(query: dict[str, str]) -> Any:
        yield log_line(1)
        while not manager.hold.wait(0.05):
            yield b"\n"

    manager.streams["/v1/logs"] = stream

    with shop.start("logs", "-f") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "22:13:21.000 v7/1 9004 │ line 1\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == "interrupted\n"


def test_followed_logs_go_on_after_a_new_manager_took_over(manager: ScriptedManager, shop: Shop) -> None:
    connections: list[dict[str, str]] = []

    def stream(query: dict[str, str]) -> Any:
        connections.append(query)
        yield from map(log_line, range(1, 3 if len(connections) == 1 else 5))
        if len(connections) == 1:
            yield b'{"ts":17000'
            raise Cut
        while not manager.hold.wait(0.05):
            yield b"\n"

    manager.streams["/v1/logs"] = stream

    with shop.start("logs", "-f", "-q", "-n", "2") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.terminate()
        assert process.wait(timeout=20) == 143

    assert lines == [f"line {number}\n" for number in range(1, 5)]
    assert [query["lines"] for query in connections] == ["2", "1000"]


def test_a_reader_that_leaves_ends_logs_quietly(manager: ScriptedManager, shop: Shop) -> None:
    manager.streams["/v1/logs"] = lambda query: iter([log_line(number) for number in range(5000)])
    reader, writer = os.pipe()
    os.close(reader)
    with shop.start("logs", stdout=writer) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == ""

    assert process.returncode == 141


def test_events_are_listed_and_continued(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = [
        event(1, "manager.started", rollout=None, pid=10, adopted=2, resumed=None),
        *stories.promoted()[1:3],
    ]

    result = shop.run("events")
    unknown = event(9, "moon.rose", rollout=None, colour="red")
    manager.events = [unknown]

    assert result.out.splitlines()[:2] == [
        "     1     \u2013 22:13:20.100 manager pid 10 started, 2 workers adopted",
        "     2   #12 22:13:20.200 phase: staging",
    ]
    assert shop.run("events", "--after", "8").out.endswith("moon.rose colour=red\n")
    assert shop.run("events", "--json").lines == [unknown]


def test_follow_finds_the_rollout_that_runs(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status(rollout=rollout_info())
    manager.events = stories.canary_halt()

    result = shop.run("follow", "-q")

    assert result.code == 3
    assert "HALTED at slot 1 of 2" in result.err


def test_follow_without_one_tells_how_the_last_one_went(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status()
    ended = rollout_info(phase="done", outcome="promoted", exit_code=0, release="v7", finished_at=1700000003.4)
    manager.answers["GET /v1/rollouts"] = 200, [ended]
    manager.events = stories.promoted()

    kept = shop.run("follow")
    manager.events = []
    pruned = shop.run("follow", "--json")

    assert (kept.code, kept.out.splitlines()[0]) == (0, "Deployed shop v7 (41d09e7) in 3.4s.")
    assert pruned.code == 0
    [end] = pruned.lines
    assert (end["event"], end["outcome"], end["release"], end["serving"]) == (
        "rollout.finished",
        "promoted",
        "v7",
        "v7",
    )


def test_follow_takes_a_number(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/rollouts/12"] = 200, rollout_info()
    manager.events = stories.later_halt()

    assert shop.run("follow", "12", "-q").code == 4


def finished(**changes: Any) -> dict[str, Any]:
    return {**stories.promoted()[-1], "seq": 2, **changes}


def started(kind: str) -> dict[str, Any]:
    return event(1, "rollout.started", kind=kind, release="v6", previous="v7", slots=[1, 2], who="ana", message=None)


def test_rollback_restart_and_scale_follow_like_deploy(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["POST /v1/rollback"] = 202, rollout_info(kind="rollback")
    manager.events = [started("rollback"), finished(release="v6", serving="v6")]

    rollback = shop.run("rollback", "v6", "--reason", "checkout errors")

    assert rollback.out == ("Rolled back shop to v6 in 3.4s.\nUndo: deployer rollback v7      Logs: deployer logs -f\n")
    assert manager.bodies("POST /v1/rollback") == [
        msgspec.to_builtins(RollbackRequest(who="ana", release="v6", message="checkout errors"))
    ]

    manager.answers["POST /v1/restart"] = 202, rollout_info(kind="restart")
    manager.events = [started("restart"), finished()]
    assert shop.run("restart").out.startswith("Restarted shop v7, 2 workers in 3.4s.\n")

    manager.answers["POST /v1/scale"] = 202, rollout_info(kind="scale")
    manager.events = [started("scale"), finished()]
    assert shop.run("scale", "3").out.startswith("Scaled shop to 3 workers in 3.4s.\n")
    assert manager.bodies("POST /v1/scale") == [{"who": "ana", "key": None, "count": 3}]


def test_scale_to_the_same_number_is_no_error(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["POST /v1/scale"] = 202, rollout_info(kind="scale", phase="done", outcome="unchanged", exit_code=0)

    result = shop.run("scale", "2")

    assert (result.code, result.out) == (0, "shop has 2 workers: nothing to do.\n")


def test_a_broken_configuration_does_not_stand_between_a_person_and_rollback(
    manager: ScriptedManager, shop: Shop
) -> None:
    (shop.directory / "deployer.toml").write_text("name = \n[worker\n")
    manager.answers["POST /v1/rollback"] = 202, rollout_info(kind="rollback")
    manager.events = [started("rollback"), finished(release="v6", serving="v6")]

    assert shop.run("rollback", "-q").out == "v6\n"
