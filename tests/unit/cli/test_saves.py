"""What a watch says of its saves: the lines that a developer reads all day."""

from __future__ import annotations

import io
import time

import pytest
from save_stories import ROOT, T0, Story, a_day

from deployer.cli.output import Output, Style
from deployer.cli.saves import Saves, in_source, place
from deployer.cli.savescreen import SaveScreen
from deployer.wire.schema import LogLine

ADDRESS = "http://127.0.0.1:8000"
A_DAY = f"""\
22:13:20 dev-1 live in 310 ms, watching /srv/shop (213 directories), {ADDRESS}
22:13:31 app/views.py → dev-2 live in 74 ms
22:13:40 app/views.py → dev-3 failed at app/views.py:28
  │ Traceback (most recent call last):
  │   File "/usr/lib/python3.11/importlib/__init__.py", line 126, in import_module
  │     return _bootstrap._gcd_import(name[level:], package, level)
  │   File "/srv/shop/shop.py", line 4, in <module>
  │     from app.views import cart
  │   File "/srv/shop/app/views.py", line 28, in <module>
  │     RATE = os.environ["RATE"]
  │   File "<frozen os>", line 679, in __getitem__
  │ KeyError: 'RATE'
error: the preflight worker of dev-3 exited with code 1 after 0.1s, before it was ready
still serving dev-2; fix and save
22:13:51 app/views.py and 3 more → dev-4 live in 1.5s
22:14:00 app/views.py: the same as dev-4
"""


class Terminal(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


def screen(*, tty: bool = False, style: Style | None = None) -> tuple[SaveScreen, Terminal]:
    """Both streams are one, as on a terminal."""
    terminal = Terminal(tty)
    env = {"TERM": "xterm", "LANG": "C.UTF-8", "NO_COLOR": "1"}
    out = Output(terminal, terminal, env, style or Style())
    return SaveScreen(out, Saves(3, out.glyphs, ROOT, ADDRESS)), terminal


def shown(story: Story, **how: bool) -> str:
    show, terminal = screen(**how)
    for event in story.decoded:
        show.event(event)
    return terminal.getvalue()


def log(release: str, text: str, *, slot: int = 1, stream: str = "stdout") -> LogLine:
    return LogLine(ts=T0, slot=slot, pid=900, release=release, stream=stream, line=text)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_a_day_of_saves_is_one_calm_line_each_and_errors_in_full() -> None:
    assert shown(a_day()) == A_DAY


def test_on_a_terminal_what_is_under_way_is_a_line_that_goes_again() -> None:
    text = shown(a_day(), tty=True)

    assert text.count("  ... dev-2 starting\r\x1b[K") == 1
    for busy in ("a save", *(f"dev-{number}" for number in range(1, 5))):
        text = text.replace(f"  ... {busy} starting\r\x1b[K", "")
    assert text == A_DAY


def test_a_save_that_a_newer_one_took_the_place_of_is_passed_over() -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.begin(2, 1.0, "a.py", saved=1.0, previous="dev-1")
    story.failed(2, "dev-2", 1.1, "dev-1", what="superseded", reason="superseded")
    story.begin(3, 1.1, "a.py", "b.py", saved=1.05, previous="dev-1").promoted(3, "dev-3", 1.2)

    assert shown(story).splitlines()[1:] == ["22:13:21 a.py and 1 more → dev-3 live in 150 ms"]


def test_a_checkout_of_two_thousand_files_says_how_many() -> None:
    names = [f"f{number}.py" for number in range(20)]
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.begin(2, 1.0, *names, count=2000, saved=1.0).promoted(2, "dev-2", 1.4)

    assert shown(story).splitlines()[1] == "22:13:21 f0.py and 1999 more → dev-2 live in 400 ms"


def test_what_is_live_already_when_the_watch_begins_is_said_so() -> None:
    story = Story().watch_started(directories=1).begin(1, 0.0, previous="v7")
    story.finished(1, 0.1, "unchanged", release="v7", serving="v7")

    assert shown(story) == f"22:13:20 v7 is what is on disk, watching /srv/shop (1 directory), {ADDRESS}\n"


def test_code_that_is_broken_from_the_start() -> None:
    story = Story().watch_started().begin(1, 0.0)
    tail = ['  File "shop.py", line 3', "    def cart(:", "             ^", "SyntaxError: invalid syntax"]
    what = "shop.py does not compile"
    story.failed(1, None, 0.1, None, what=what, cause="invalid syntax (line 3)", reason="syntax", tail=tail)
    story.begin(2, 5.0, "shop.py", saved=5.0).promoted(2, "dev-2", 5.2)

    assert shown(story) == (
        "22:13:20 failed at shop.py:3\n"
        '  │   File "shop.py", line 3\n'
        "  │     def cart(:\n"
        "  │              ^\n"
        "  │ SyntaxError: invalid syntax\n"
        "error: shop.py does not compile\n"
        "cause: invalid syntax (line 3)\n"
        f"watching /srv/shop (213 directories), {ADDRESS}\n"
        "nothing serves yet; fix and save\n"
        "22:13:25 shop.py → dev-2 live in 200 ms\n"
    )


@pytest.mark.parametrize("line", ["OSError: [Errno 98] Address already in use", "Error: listen EADDRINUSE: 0.0.0.0:80"])
def test_a_program_that_binds_a_port_of_its_own_is_told_what_to_do(line: str) -> None:
    story = Story().watch_started().begin(1, 0.0, previous="dev-1").failed(1, "dev-2", 0.1, "dev-1", tail=[line])

    text = shown(story)

    assert "cause: the old and the new one run side by side for a moment, and both bind the same port\n" in text
    assert "hint: serve on the socket that is passed down: {fd} in `command`, or LISTEN_FDS\n" in text


def test_a_release_that_crashes_when_it_is_live_is_told_with_the_way_back() -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.begin(2, 1.0, "a.py", saved=1.0, previous="dev-1").promoted(2, "dev-2", 1.1)
    story.add(
        "worker.exited", 3.0, slot=1, pid=900, release="dev-2", expected=False, text="exit code 1", seconds=1.9, tail=[]
    )
    story.begin(3, 3.0, previous="dev-2", kind="rollback", release="dev-1").promoted(3, "dev-1", 3.05)

    assert shown(story).splitlines()[2:] == [
        "22:13:23 slot 1: dev-2 pid 900 died: exit code 1 after 1.9s",
        "22:13:23 dev-2 crashed: back to dev-1 in 50 ms",
        "fix and save",
    ]


def test_a_look_of_the_next_managers_that_finds_nothing_is_passed_over() -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.begin(2, 1.0, previous="dev-1").finished(2, 1.1, "unchanged", release="dev-1", serving="dev-1")

    assert len(shown(story).splitlines()) == 1


def test_back_to_the_save_before_needs_no_fix() -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.begin(2, 1.0, previous="dev-2", kind="rollback", release="dev-1").promoted(2, "dev-1", 1.05)

    assert shown(story).splitlines()[1:] == ["22:13:21 back to dev-1 in 50 ms"]


def test_a_watch_that_runs_out_of_the_kernels_watches_says_what_to_raise_and_polls() -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    fault = {
        "what": "the kernel watches no more",
        "cause": "limit 8192",
        "hint": "sysctl fs.inotify.max_user_watches=1",
    }
    story.add("watch.fault", 2.0, watch=3, **fault)
    story.watch_started(2.1, mode="poll")

    assert shown(story).splitlines()[1:] == [
        "22:13:22 the watch is in trouble and goes on",
        "error: the kernel watches no more",
        "cause: limit 8192",
        "hint: sysctl fs.inotify.max_user_watches=1",
        "22:13:22 watching by looking again and again (polling) from now on",
    ]


def test_what_others_do_meanwhile_is_named() -> None:
    story = Story().watch_started().begin(1, 0.0).promoted(1, "dev-1", 0.1)
    story.begin(2, 1.0, watch=None, previous="dev-1", who="bob", kind="restart", release="dev-1")
    story.promoted(2, "dev-1", 1.5)

    assert shown(story).splitlines()[1:] == [
        "22:13:21.000 restarting dev-1 (1 slot) by bob",
        "22:13:21.700 finished: promoted, dev-1 serves 0.1s",
    ]


def test_what_a_release_prints_is_shown_when_it_is_live_and_a_traceback_is_not_shown_twice() -> None:
    show, terminal = screen()
    for event in a_day().decoded:
        if event.event == "rollout.started":
            release = f"dev-{event.rollout}"
            show.line(log(release, f"{release} begins"))
        show.event(event)
        if event.event == "rollout.failed":
            show.line(log("dev-3", "KeyError: 'RATE'", stream="stderr", slot=0))
    show.line(log("dev-4", "hello"))
    show.line(log("dev-2", "bye"))

    lines = terminal.getvalue().splitlines()
    assert [line for line in lines if "begins" in line] == [
        f"22:13:20.000 {release}/1 900 │ {release} begins" for release in ("dev-1", "dev-2", "dev-4")
    ]
    assert lines.index("22:13:20.000 dev-4/1 900 │ dev-4 begins") + 1 == lines.index(A_DAY.splitlines()[-2])
    assert lines[-2:] == ["22:13:20.000 dev-4/1 900 │ hello", "22:13:20.000 dev-2/1 900 │ bye"]
    assert sum("KeyError: 'RATE'" in line for line in lines) == 1


def test_a_long_traceback_is_whole_where_the_event_has_its_end_only() -> None:
    show, terminal = screen()
    story = Story().watch_started().begin(1, 0.0, previous="dev-1").failed(1, "dev-2", 0.1, "dev-1", tail=["the end"])
    lines = [f"line {number}" for number in range(60)]
    for event in story.decoded:
        if event.event == "rollout.failed":
            for line in [*lines, "the end"]:
                show.line(log("dev-2", line, slot=0, stream="stderr"))
        show.event(event)

    assert terminal.getvalue().count("  │ ") == 61


def test_a_file_is_named_as_it_is_in_the_source() -> None:
    node = [
        f"{ROOT}/releases/dev-3/server.js:7",
        "    throw new Error()",
        f"    at start ({ROOT}/releases/dev-3/a.js:9:3)",
    ]
    lines = in_source(node, ROOT, "dev-3", "/srv/shop")

    assert lines[0] == "/srv/shop/server.js:7"
    assert place(lines, "/srv/shop") == "server.js:7"
    assert place(["nothing of the kind"], "/srv/shop") is None
