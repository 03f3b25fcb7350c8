"""What a person sees: the redrawn lines on a terminal, and when there is no redrawing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import rollout_stories as stories
from cli_shop import Shop
from scripted_manager import ScriptedManager, rollout_info

from deployer.cli.output import Output, Style
from deployer.cli.progress import render
from deployer.cli.view import RolloutView
from deployer.client.follow import decode_event

LIVE_SUCCESS = """\
Deploying shop  v6 → v7  "Fix cart rounding"  2 slots
  ✔ stage      v7 213 files                                                0.4s
  ✔ preflight  ready, GET /healthz 200                                     0.5s
  ✔ slot 1     v6 pid 8121 → v7 pid 9004  ready 0.3s                       0.6s
  ✔ soak       3s                                                          0.2s
  ✔ slot 2     v6 pid 8122 → v7 pid 9011  ready 0.3s                       0.6s
"""
LIVE_CANARY_HALT = """\
Deploying shop  v6 → v7  "Fix cart rounding"  2 slots
  ✔ stage      v7 213 files                                                0.4s
  ✖ slot 1     v6 → v7 pid 9310  exit code 1                               0.6s
  · slot 2     v6 serves
"""
LIVE_LATER_HALT = """\
Deploying shop  v6 → v7  "Fix cart rounding"  2 slots
  ✔ stage      v7 213 files                                                0.4s
  ✔ slot 1     v7 pid 9004 → v6 pid 9020  put back                         0.5s
  ✖ slot 2     v6 → v7 pid 9011  killed by SIGSEGV                         1.2s
"""
LIVE_TEMPLATE_HALT = """\
Deploying shop  v6 → v7  "Fix cart rounding"  2 slots
  ✔ stage      v7 213 files                                                0.4s
  ✖ preflight  template pid 9310 exit code 1                               0.5s
  · slot 1     v6 serves
  · slot 2     v6 serves
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def manager(manager: ScriptedManager) -> ScriptedManager:
    manager.answers["POST /v1/deploy"] = 202, rollout_info()
    return manager


def on_terminal(shop: Shop, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout (a pipe) and what the terminal on stderr received."""
    ours, theirs = pty.openpty()
    with shop.start(*words, env={"COLUMNS": "80", "LINES": "24", **(env or {})}, stderr=theirs) as process:
        os.close(theirs)
        screen = _drain(ours)
        assert process.stdout is not None
        out = process.stdout.read()
        process.wait(timeout=20)
    return process.returncode, out, screen


def _drain(fd: int) -> str:
    data = b""
    while True:
        try:
            chunk = os.read(fd, 65536)
        except OSError:  # EIO: the last writer closed the terminal
            chunk = b""
        if not chunk:
            os.close(fd)
            return data.decode().replace("\r\n", "\n")
        data += chunk


def last_drawing(screen: str) -> str:
    drawing = screen.split("\x1b[J")[-2]
    drawing = re.sub(r"^(\x1b\[\d+A)?\r", "", drawing)
    return COLOUR.sub("", drawing).replace("\x1b[K", "")


@pytest.mark.parametrize(
    ("story", "drawing"),
    [
        (stories.promoted, LIVE_SUCCESS),
        (stories.canary_halt, LIVE_CANARY_HALT),
        (stories.later_halt, LIVE_LATER_HALT),
        (stories.template_halt, LIVE_TEMPLATE_HALT),
    ],
)
def test_a_terminal_shows_a_line_for_each_slot_and_keeps_the_last_drawing(
    manager: ScriptedManager, shop: Shop, story: Callable[[], list[dict[str, Any]]], drawing: str
) -> None:
    manager.events = story()

    code, _, screen = on_terminal(shop, "deploy")

    assert code == manager.events[-1]["exit_code"]
    assert last_drawing(screen) == drawing
    assert re.search(r"\x1b\[\d+A", screen), "nothing was redrawn"


def test_a_terminal_is_coloured_unless_no_color_is_set(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    _, _, coloured = on_terminal(shop, "deploy")
    _, _, plain = on_terminal(shop, "deploy", env={"NO_COLOR": "1"})

    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)
    assert last_drawing(plain) == LIVE_SUCCESS


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_dumb_terminal_or_a_build_gets_plain_lines(manager: ScriptedManager, shop: Shop, env: dict[str, str]) -> None:
    manager.events = stories.promoted()

    _, _, screen = on_terminal(shop, "deploy", env=env)

    assert "\x1b[" not in COLOUR.sub("", screen)
    assert "22:13:21.400 slot 1: pid 8121 → 9004, v7 serves 0.6s\n" in screen


@pytest.mark.parametrize("env", [{"LANG": "C"}, {"LANG": ""}, {"LC_ALL": "POSIX"}, {"PYTHONIOENCODING": "ascii"}])
def test_a_locale_without_utf8_gets_ascii_signs(manager: ScriptedManager, shop: Shop, env: dict[str, str]) -> None:
    manager.events = stories.canary_halt()

    _, _, screen = on_terminal(shop, "deploy", env=env)

    assert screen.isascii()
    assert "  x slot 1     v6 -> v7 pid 9310  exit code 1" in last_drawing(screen)
    assert "  | ModuleNotFoundError" in screen


def test_a_log_line_cannot_drive_the_terminal(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.canary_halt()

    _, _, screen = on_terminal(shop, "deploy", env={"NO_COLOR": "1"})

    assert "owned" not in screen
    assert "\x1b]" not in screen


def test_more_slots_than_the_screen_has_lines_are_cut_until_the_end(manager: ScriptedManager, shop: Shop) -> None:
    story = stories.promoted()
    story[0]["slots"] = list(range(1, 31))
    manager.events = story

    _, _, screen = on_terminal(shop, "deploy", env={"LINES": "10"})

    drawings = screen.split("\x1b[J")[:-1]
    assert max(drawing.count("\n") for drawing in drawings[:-1]) <= 10
    assert last_drawing(screen).count("\n") == 34


def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Output(io.StringIO(), io.StringIO(), {}, Style())
    view = RolloutView()
    story = stories.later_halt()
    story[3]["subject"] = "a very long subject " * 10
    for line in story:
        view.apply(decode_event(json.dumps(line).encode()))

    monkeypatch.setenv("COLUMNS", "60")
    lines = render(view, out, "shop", 1700000010.0)

    assert max(map(len, lines)) <= 60


def test_a_closed_pipe_ends_the_viewer_quietly(manager: ScriptedManager, shop: Shop) -> None:
    manager.events = stories.promoted()

    with shop.start("deploy", "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=20)

    assert (process.returncode, err) == (141, "")
