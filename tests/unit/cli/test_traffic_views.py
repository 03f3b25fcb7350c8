"""Visitors in `status`, drains and what their ends cut in `deploy`, `follow` and `history`."""

from __future__ import annotations

import io
import json
import os
import pty
import time
from typing import Any

import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, event, rollout_info, status, worker

from deployer.cli.output import Output, Style
from deployer.cli.progress import PlainProgress, render
from deployer.cli.traffic import cut_words, fit, latency, rate
from deployer.cli.view import RolloutView
from deployer.client.follow import decode_event
from deployer.wire.schema import Cut

TRAFFIC = {
    "window_s": 5.0,
    "requests_per_s": 123.4,
    "p50_ms": 1.234,
    "p99_ms": 45.6,
    "error_ratio": 0.031,
    "requests": 1000,
    "status_1xx": 0,
    "status_2xx": 988,
    "status_3xx": 0,
    "status_4xx": 0,
    "status_5xx": 12,
    "broken": 0,
    "connections": 12,
    "websockets": 0,
    "in_flight": 3,
    "last_error": None,
    "last_error_at": None,
    "report": None,
}
QUIET = TRAFFIC | {"requests_per_s": 0.0, "p50_ms": None, "p99_ms": None, "error_ratio": None, "status_5xx": 0}
SERVED = """\
  SLOT  PID   RELEASE  STATE  UP      RESTARTS  CPU   MEM    REQ/S  P50    P99   5XX      LAST EXIT
  1     9004  v7       ready  2h 10m  0         0.1%  28 MB  123    1.2ms  46ms  12 3.1%  \u2013
  2     9011  v7       ready  2h 10m  0         0.1%  28 MB  0      \u2013      \u2013     0        \u2013
"""
CUT = {"requests": 2, "connections": 0, "drain_timeout": "30s"}


def serving(**changes: Any) -> dict[str, Any]:
    return status(workers=[worker(1, 9004, traffic=TRAFFIC | changes), worker(2, 9011, traffic=QUIET)])


def test_visitors_have_columns_where_somebody_counts_them(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, serving()
    assert SERVED in shop.run("status").out
    manager.answers["GET /v1/status"] = 200, status()
    assert "REQ/S" not in shop.run("status").out


def test_a_plain_command_beside_served_workers_has_dashes(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["GET /v1/status"] = 200, status(workers=[worker(1, 9004, traffic=QUIET), worker(2, 9011)])
    assert shop.run("status").out.splitlines()[-1].split()[-5:] == ["\u2013"] * 5


def test_a_narrow_terminal_shows_visitors_first(manager: ScriptedManager, shop: Shop) -> None:
    big = TRAFFIC | {"requests_per_s": 123456.0, "p50_ms": 99999.0, "p99_ms": 99999.0, "status_5xx": 123456}
    workers = [worker(512, 4194303, release="v1234", state="unhealthy", uptime_s=86400.0 * 365, traffic=big)]
    manager.answers["GET /v1/status"] = 200, status(workers=workers)
    ours, theirs = pty.openpty()
    with shop.start("status", env={"COLUMNS": "80", "NO_COLOR": "1"}, stdout=theirs) as process:
        os.close(theirs)
        process.wait(timeout=20)
        screen = os.read(ours, 65536).decode()
    os.close(ours)
    assert max(map(len, screen.splitlines())) <= 80
    assert "123k" in screen
    assert "123456 3.1%" in screen
    assert "..." not in screen


def test_columns_are_spared_one_after_another() -> None:
    head, rows = ("SLOT", "UP", "CPU", "REQ/S", "RESTARTS", "LAST EXIT"), [("1", "2", "3", "4", "5", "6")]
    assert fit(head, rows, None)[0] == head
    assert fit(head, rows, 36)[0] == head[:-1]
    assert fit(head, rows, 24) == (("SLOT", "UP", "CPU", "REQ/S"), [("1", "2", "3", "4")])
    assert fit(head, rows, 5)[0] == ("SLOT", "REQ/S")
    plain = ("SLOT", "RESTARTS")
    assert fit(plain, [("1", "0")], 5)[0] == plain


def test_a_worker_has_its_say_below_the_table(manager: ScriptedManager, shop: Shop) -> None:
    said = {"report": "cache 93 % warm", "last_error": "ValueError: \x1b[31mno", "last_error_at": time.time() - 100}
    manager.answers["GET /v1/status"] = 200, serving(**said)
    lines = shop.run("status").out.splitlines()[5:]
    assert lines[0] == "  slot 1: says: cache 93 % warm"
    assert lines[1].startswith("  slot 1: last error 1m ")
    assert lines[1].endswith(" ago: ValueError: no")


def test_a_draining_worker_says_what_is_left(manager: ScriptedManager, shop: Shop) -> None:
    old = worker(1, 9004, state="draining", traffic=TRAFFIC | {"in_flight": 1})
    manager.answers["GET /v1/status"] = 200, status(workers=[old, worker(1, 9011, traffic=QUIET)])
    out = shop.run("status").out
    assert "  slot 1: pid 9004 draining: 1 request, 12 connections\n" in out
    data = json.loads(shop.run("status", "--json").out)
    assert data["workers"][0]["traffic"] == TRAFFIC | {"in_flight": 1}
    assert data["workers"][1]["traffic"] == QUIET


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.2"), (9.94, "9.9"), (9.96, "10"), (9999.4, "9999"), (12345, "12k")]
)
def test_rates_in_few_digits(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.04, "0.0ms"), (1.26, "1.3ms"), (9.96, "10ms"), (999.4, "999ms"), (999.6, "1.0s"), (30000, "30.0s")],
)
def test_latencies_in_few_digits(ms: float, text: str) -> None:
    assert latency(ms) == text


@pytest.mark.parametrize(
    ("cut", "text"),
    [
        (Cut(requests=2, connections=0, drain_timeout="30s"), "2 requests were cut at the end of drain_timeout = 30s"),
        (Cut(requests=1, connections=0, drain_timeout="1m"), "1 request was cut at the end of drain_timeout = 1m"),
        (Cut(requests=0, connections=3, drain_timeout="5s"), "3 connections were cut at the end of drain_timeout = 5s"),
        (
            Cut(requests=1, connections=1, drain_timeout="5s", estimated=True),
            "1 request and 1 other connection were cut at the end of drain_timeout = 5s "
            "(as last seen: a worker was killed before it could count)",
        ),
    ],
)
def test_what_was_cut_in_words(cut: Cut, text: str) -> None:
    assert cut_words(cut) == text


# A rollout


def drain(seq: int, pid: int, requests: int, connections: int, slot: int = 1) -> dict[str, Any]:
    fields = {"slot": slot, "pid": pid, "release": "v6", "requests": requests, "connections": connections}
    return event(seq, "worker.drain", **fields)


def slow_drain(**end: Any) -> list[dict[str, Any]]:
    """The first slot's old worker takes its time; `end` is told with the end of the rollout."""
    events = stories.promoted()
    at = next(n for n, e in enumerate(events) if e["event"] == "worker.exited")
    exited = {**events[at], "cut_requests": 2, "cut_connections": 1}
    told = [*events[:at], drain(0, 8121, 3, 12), drain(0, 8121, 2, 1), exited, *events[at + 1 : -1]]
    return [{**e, "seq": number} for number, e in enumerate([*told, {**events[-1], **end}], start=1)]


def view_of(events: list[dict[str, Any]]) -> RolloutView:
    view = RolloutView()
    for fields in events:
        view.apply(decode_event(json.dumps(fields).encode()))
    return view


def output(**style: bool) -> Output:
    return Output(io.StringIO(), io.StringIO(), {"LANG": "C.UTF-8"}, Style(**style))


def test_the_live_view_has_a_line_for_who_drains() -> None:
    events, out = slow_drain(), output()
    last = max(number for number, e in enumerate(events) if e["event"] == "worker.drain")
    lines = render(view_of(events[: last + 1]), out, "shop", events[last]["ts"])
    at = next(number for number, line in enumerate(lines) if "slot 1 " in line)
    assert lines[at + 1].split(maxsplit=1)[1] == "pid 8121 draining: 2 requests, 1 connection"
    after = render(view_of(events[: last + 2]), out, "shop", events[last]["ts"])
    assert not any("draining:" in line for line in after)


def test_who_still_drains_at_the_end_is_in_the_last_words_only() -> None:
    events = [e for e in slow_drain() if e["event"] != "worker.exited"]
    assert not any("draining:" in line for line in render(view_of(events), output(), "shop", events[-1]["ts"]))


def test_plain_lines_tell_a_drain_begin_and_end_only() -> None:
    def lines(**style: bool) -> list[str]:
        out = output(**style)
        progress = PlainProgress(out)
        for fields in slow_drain():
            progress.show(decode_event(json.dumps(fields).encode()))
        return [line for line in out.stderr.getvalue().splitlines() if "8121" in line]  # type: ignore[attr-defined]

    begin, end, _ = lines()
    assert begin.endswith("slot 1: v6 pid 8121 draining")
    assert end.endswith("slot 1: v6 pid 8121 stopped (exit code 0) 0.1s, cut 2 requests and 1 connection")
    assert [line.partition("draining: ")[2] for line in lines(verbose=True)[1:3]] == [
        "3 requests, 12 connections",
        "2 requests, 1 connection",
    ]


def test_the_summary_tells_what_was_cut_and_who_still_drains(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    manager.events = slow_drain(cut=CUT, draining=1)
    result = shop.run("deploy")
    assert result.code == 0
    assert result.err.splitlines()[-2:] == [
        "warning: 2 requests were cut at the end of drain_timeout = 30s",
        "1 old worker still drains (deployer status)",
    ]


def test_nothing_is_said_where_nothing_was_cut(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    for end in ({}, {"cut": None, "draining": 0}):
        manager.events = [*stories.promoted()[:-1], {**stories.promoted()[-1], **end}]
        result = shop.run("deploy")
        assert "cut" not in result.err
        assert "drains" not in result.err
    manager.answers["GET /v1/rollouts"] = 200, [rollout_info(outcome="promoted", exit_code=0)]
    assert len(shop.run("history").out.splitlines()) == 2


def test_history_and_follow_tell_what_came_after_the_end(manager: ScriptedManager, shop: Shop) -> None:
    over = rollout_info(
        release="v7", outcome="promoted", phase="promoted", exit_code=0, finished_at=1700000003.4, cut=CUT
    )
    manager.answers["GET /v1/rollouts"] = 200, [over | {"draining": 2}]
    assert shop.run("history").out.splitlines()[2:] == [
        "12: 2 requests were cut at the end of drain_timeout = 30s",
        "12: 2 old workers still drain (deployer status)",
    ]
    manager.answers["GET /v1/rollouts/12"] = 200, over
    manager.events = [*stories.promoted()[:-1], {**stories.promoted()[-1], "cut": None, "draining": 2}]
    followed = shop.run("follow", "12")
    assert "warning: 2 requests were cut at the end of drain_timeout = 30s" in followed.err
    assert "still drain" not in followed.err


def test_a_build_system_is_told_too(manager: ScriptedManager, shop: Shop) -> None:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    manager.events = slow_drain(cut=CUT)
    page = shop.directory / "summary.md"
    result = shop.run("deploy", env={"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page)})
    words = "2 requests were cut at the end of drain_timeout = 30s"
    assert f"::warning title=deployer::{words}" in result.err
    assert words in page.read_text()
