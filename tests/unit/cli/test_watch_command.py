"""`deployer watch` against a manager that is made up: what it asks for, shows, does when typed at, and leaves."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
from cli_shop import ENV, Shop
from save_stories import Story, a_day
from scripted_manager import ScriptedManager, rollout_info, status
from test_saves import A_DAY

from deployer.config.load import load
from deployer.wire.schema import WatchBack, WatchRequest, WatchStop

LIMIT_S = 60
LAUNCH = """\
import sys, types
launch = types.ModuleType("deployer.launch")
launch.launch = lambda loaded: "t1"
launch.keeper_runs = lambda layout: True
launch.foreground = launch.keeper_pid = None
sys.modules["deployer.launch"] = launch
from deployer.cli.app import main
sys.exit(main(sys.argv[1:]))
"""
INFO = {
    "id": 3,
    "kind": "dev",
    "path": "/srv/shop",
    "mode": None,
    "directories": 0,
    "who": "ana",
    "since": 1700000000.0,
    "saves": 0,
    "rollout": None,
}
KEYS = "rs deploys again, r goes back to the save before, q quits; each with Enter\n"
BUSY = {"what": "/srv/shop is watched already, by bob since 12:00:01", "exit": 75, "reason": "busy"}


class Watch:
    """The command as it runs; its two streams are one, as on a terminal."""

    def __init__(self, directory: Path, *words: str, stdout: int = subprocess.STDOUT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, "watch", *words],
            cwd=directory,
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stdout,
            text=True,
            encoding="utf-8",
        )
        assert self.process.stdout is not None
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()
        self.text = ""

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)

    def until(self, text: str) -> str:
        """All that was printed, once `text` has been."""
        while text not in self.text:
            self.text += self._lines.get(timeout=LIMIT_S)
        return self.text

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        while not self._lines.empty():
            self.text += self._lines.get()
        return self.process.returncode, self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(LIMIT_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Watch]


@pytest.fixture
def watch(shop: Shop) -> Iterator[Start]:
    started: list[Watch] = []

    def start(*words: str, directory: Path | None = None, **more: Any) -> Watch:
        started.append(Watch(directory or shop.directory, *words, **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def manager(manager: ScriptedManager, shop: Shop) -> ScriptedManager:
    """The cluster runs, and dev-4 is live."""
    shop.layout.manager_state.write_text(json.dumps({"pid": 10, "state": "ready", "problem": None, "token": "t1"}))
    manager.answers["GET /v1/status"] = 200, status(release="dev-4", root="/srv/shop/.deployer")
    manager.answers["GET /v1/rollouts"] = 200, []
    manager.answers["POST /v1/watch"] = 202, INFO
    for verb in ("stop", "again", "back"):
        manager.answers[f"POST /v1/watch/{verb}"] = 202, {} if verb == "stop" else _rollout()
    manager.streams["/v1/logs"] = lambda query: _silence(manager)
    return manager


def _rollout() -> dict[str, Any]:
    return rollout_info(watch=3)


def _silence(manager: ScriptedManager) -> Iterator[bytes]:
    while not manager.hold.wait(0.05):
        yield b"\n"


def test_a_day_of_saves_until_q(manager: ScriptedManager, watch: Start) -> None:
    manager.events = a_day().events

    command = watch()
    command.until("the same as dev-4\n")
    command.type("q\n")

    assert command.end() == (0, f"{KEYS}{A_DAY}stopped watching; dev-4 serves on\nhint: deployer deploy\n")
    [asked] = manager.bodies("POST /v1/watch")
    assert asked == msgspec.to_builtins(WatchRequest(who="ana", holder=command.process.pid))
    assert manager.bodies("POST /v1/watch/stop") == [msgspec.to_builtins(WatchStop(who="ana"))]


def test_every_option_is_asked_for(manager: ScriptedManager, watch: Start, shop: Shop) -> None:
    manager.events = a_day().events
    (shop.directory / "src").mkdir()
    filters = ["--watch", "app", "--watch", "*.py", "-i", "*.log", "--ext", "py,.html"]
    words = ["src", *filters, "-d", "2.5", "-s", "usr2", "--poll", "--workers", "-q"]

    command = watch(*words)
    command.until("the same as dev-4\n")
    command.type("q\n")

    assert command.end() == (0, A_DAY)
    [asked] = manager.bodies("POST /v1/watch")
    assert asked == msgspec.to_builtins(
        WatchRequest(
            who="ana",
            holder=command.process.pid,
            path=str(shop.directory / "src"),
            paths=["app", "*.py"],
            ignore=["*.log"],
            extensions=["py", "html"],
            settle="2.5s",
            poll="1s",
            signal="SIGUSR2",
        )
    )


def test_a_cluster_that_was_started_for_it_has_one_worker_and_stops_with_it(
    manager: ScriptedManager, watch: Start
) -> None:
    with subprocess.Popen(["sleep", "1000"]) as cluster:
        pid = {"pid": cluster.pid, "uptime_s": 1.0, "version": "0"}
        ready = 200, status(manager=pid, keeper={"pid": None}, workers=[], root="/srv/shop/.deployer")
        answers = [(503, {"error": {"what": "starting", "exit": 69}}), ready]
        manager.answers["GET /v1/status"] = lambda query, body: answers.pop(0) if len(answers) > 1 else answers[0]

        def stop(query: dict[str, str], body: Any) -> tuple[int, Any]:
            cluster.kill()
            cluster.wait()
            return 202, {}

        manager.answers["POST /v1/watch/stop"] = stop
        manager.events = a_day().events

        command = watch()
        command.until("the same as dev-4\n")
        command.process.send_signal(signal.SIGINT)
        code, text = command.end()

    assert (code, text) == (130, f"{KEYS}{A_DAY}manager pid {cluster.pid} ended\nstopped watching; shop is down\n")
    [asked] = manager.bodies("POST /v1/watch")
    assert (asked["own"], asked["workers"]) == (True, 1)


def test_what_was_started_for_a_watch_that_is_refused_is_stopped(manager: ScriptedManager, watch: Start) -> None:
    answers = [(503, {"error": {"what": "starting", "exit": 69}}), (200, status())]
    manager.answers["GET /v1/status"] = lambda query, body: answers.pop(0) if len(answers) > 1 else answers[0]
    manager.answers["POST /v1/watch"] = 409, {"error": BUSY}
    manager.answers["POST /v1/stop"] = 202, {}

    assert watch().end() == (75, f"error: {BUSY['what']}\n")
    assert len(manager.bodies("POST /v1/stop")) == 1


def test_a_watch_that_is_refused_leaves_a_cluster_that_ran_alone(manager: ScriptedManager, watch: Start) -> None:
    manager.answers["POST /v1/watch"] = 409, {"error": BUSY}

    assert watch().end()[0] == 75
    assert manager.bodies("POST /v1/stop") == []


def test_what_is_typed_is_done_and_the_end_of_a_pipe_is_no_q(manager: ScriptedManager, watch: Start) -> None:
    manager.events = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1).events
    refused = {"what": "there is no save before this one", "exit": 0, "reason": "nothing_before"}
    manager.answers["POST /v1/watch/back"] = 409, {"error": refused}
    ended = threading.Event()
    manager.answers["POST /v1/watch/again"] = lambda query, body: (ended.set(), (202, _rollout()))[1]

    command = watch()
    command.until("dev-1 live")
    command.type("r\n\nwhat\n?\n")
    text = command.until(KEYS * 2)
    command.type("rs\n")
    assert ended.wait(LIMIT_S)
    assert command.process.stdin is not None
    command.process.stdin.close()
    command.process.stdin = None
    manager.events += Story().watch_started().begin(2, 9.0, "a.py").promoted(2, "dev-2", 9.5).events[1:]
    for number, event in enumerate(manager.events, 1):
        event["seq"] = number
    command.until("a.py → dev-2 live in 500 ms\n")
    command.process.send_signal(signal.SIGTERM)

    assert command.end()[0] == 143
    assert f"error: {refused['what']}\n{KEYS}{KEYS}" in text
    assert manager.bodies("POST /v1/watch/back") == [msgspec.to_builtins(WatchBack(who="ana"))]


def test_json_is_the_events_of_the_watch_one_a_line_and_nothing_else(
    manager: ScriptedManager, watch: Start, shop: Shop
) -> None:
    before = {"seq": 1, "ts": 1.0, "event": "worker.exited", "rollout": None, "slot": 1, "expected": True}
    events = a_day().events
    for number, event in enumerate(events, 2):
        event["seq"] = number
    manager.events = [before, *events]

    command = watch("--json", stdout=subprocess.PIPE)
    command.until(json.dumps(events[-1]["event"]).strip('"') + '","rollout":5')
    command.type("q\n")
    code, text = command.end()

    assert code == 0
    assert [json.loads(line) for line in text.splitlines()] == events
    assert not manager.queries("GET /v1/logs")


def test_what_workers_print_is_shown_behind_their_release(manager: ScriptedManager, watch: Start) -> None:
    manager.events = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1).events
    line = {"ts": 4e9, "slot": 1, "pid": 900, "release": "dev-1", "stream": "stdout", "line": "hello"}
    old = {**line, "ts": 1.0, "line": "from before"}
    lines = [json.dumps(one).encode() + b"\n" for one in (old, line)]

    def stream(query: dict[str, str]) -> Iterator[bytes]:
        yield from lines
        yield from _silence(manager)

    manager.streams["/v1/logs"] = stream
    command = watch()
    text = command.until("dev-1/1 900 │ hello\n")
    command.until("dev-1 live")
    command.type("q\n")

    assert command.end()[0] == 0
    assert "from before" not in text


def test_a_manager_that_is_killed_is_waited_for_and_no_save_is_told_twice(
    manager: ScriptedManager, watch: Start
) -> None:
    manager.events, manager.cut_after = a_day().events, [4, 12]

    command = watch("-q")
    command.until("the same as dev-4\n")
    command.type("q\n")
    code, text = command.end()

    lost = "connection to the supervisor lost; the workers serve on, waiting ...\n"
    assert (code, text.count(lost), text.count("connected again\n")) == (0, 2, 2)
    assert text.replace(lost, "").replace("connected again\n", "") == A_DAY


def test_a_watch_that_somebody_else_ends_says_who(manager: ScriptedManager, watch: Start) -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.add("watch.ended", 9.0, watch=3, why="bob ended it")
    manager.events = story.events

    code, text = watch("-q").end()

    assert code == 69
    assert text.endswith("error: the watch ended: bob ended it\nhint: deployer status\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "/nowhere: no such directory"),
        (["--delay", "soon"], "--delay: 'soon' is not a duration"),
        (["--poll-interval", "0s"], "--poll-interval: looking without a pause"),
        (["--signal", "WINK"], '--signal: "SIGWINK" is not a signal'),
        (["--signal", "9"], "--signal: SIGKILL cannot be caught"),
        (["--ext", ","], "--ext: ',' names no extension"),
        (["--watch", ""], "--watch: an empty pattern matches nothing"),
        (["--listen", "8000"], "--listen goes with --exec"),
        (["--exec", "true"], "--exec is for a directory without a deployer.toml"),
        (["--exec", "true", "--config", "deployer.toml"], "--exec and --config exclude each other"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_explained_before_anything_starts(
    manager: ScriptedManager, watch: Start, words: list[str], said: str
) -> None:
    code, text = watch(*words).end()

    assert code == 2
    assert text.startswith("error: ")
    assert said in text
    assert "\nhint: " in text
    assert "Traceback" not in text
    assert manager.requests == []


def test_without_a_configuration_it_says_how_to_do_with_one_or_without(watch: Start, tmp_path: Path) -> None:
    (tmp_path / "deployer.toml").unlink()

    code, text = watch().end()

    assert code == 78
    assert text.startswith(f"error: no deployer.toml in {tmp_path}")
    assert text.endswith('hint: deployer init, or: deployer watch --exec "python app.py"\n')


def test_a_directory_is_watched_from_elsewhere_by_its_own_configuration(
    manager: ScriptedManager, watch: Start, shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manager.events = a_day().events

    command = watch(str(shop.directory), "-q", directory=tmp_path_factory.mktemp("elsewhere"))
    command.until("the same as dev-4\n")
    command.type("q\n")

    assert command.end() == (0, A_DAY)


def test_exec_runs_a_program_without_a_configuration(
    manager: ScriptedManager, watch: Start, shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "deployer.toml").unlink()
    manager.events = (
        Story().watch_started().begin(1, 0.0).failed(1, "dev-1", 0.1, None, tail=["Error: listen EADDRINUSE"]).events
    )
    script = "node -e 'f({a: 1})' {fd}"

    command = watch("--exec", script, "--listen", ":8123", "-q")
    text = command.until("fix and save\n")
    command.type("q\n")

    assert command.end()[0] == 0
    assert 'hint: deployer watch --listen tcp://127.0.0.1:8000 --exec "..."' in text
    [asked] = manager.bodies("POST /v1/watch")
    assert asked["path"] is None
    loaded = load(shop.layout.root / "watch.toml")
    assert (loaded.root, loaded.source_dir) == (shop.layout.root, tmp_path)
    assert loaded.config.listen[0].address == "tcp://127.0.0.1:8123"
    assert loaded.config.worker.command == "sh -c 'node -e '\"'\"'f({{a: 1}})'\"'\"' {fd}'"


def test_a_program_without_a_socket_is_ready_when_it_has_lived_for_a_moment(
    manager: ScriptedManager, watch: Start, shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "deployer.toml").unlink()
    manager.events = a_day().events

    command = watch("-q", "-x", "python worker.py --rate 5")
    command.until("the same as dev-4\n")
    command.type("q\n")

    assert command.end()[0] == 0
    config = load(shop.layout.root / "watch.toml").config
    assert (config.worker.command, config.worker.ready, config.listen) == ("python worker.py --rate 5", "delay", [])
    assert not config.rollout.preflight
    refused = watch("-x", "serve {fd}").end()
    assert refused[0] == 2
    assert "--exec: {fd} is the socket of --listen, and there is none" in refused[1]
    assert os.listdir(tmp_path) == [".deployer"]
