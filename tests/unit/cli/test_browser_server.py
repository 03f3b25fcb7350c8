"""Pages that are open while releases go live: what they are told, and that nothing is left when the watch ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from time import monotonic, sleep
from typing import Self

import pytest

from deployer.cli.browser import FIRST_PORT, PORTS, Browser, port_for, script_tag

LIMIT_S = 10.0


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Whatever happened, no thread and no descriptor is left."""
    before = len(os.listdir("/proc/self/fd"))
    browser = Browser()
    yield browser
    browser.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("browser")] == []
    assert len(os.listdir("/proc/self/fd")) == before


class Page:
    """One that listens to the events."""

    def __init__(self, url: str, path: str = "/events", **headers: str) -> None:
        self.connection = HTTPConnection(url.removeprefix("http://"), timeout=LIMIT_S)
        self.connection.request("GET", path, headers=headers)
        self.answer: HTTPResponse = self.connection.getresponse()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.close()
        self.connection.close()

    def event(self) -> dict[str, str]:
        """The fields of the next; {} at the end of the stream."""
        fields: dict[str, str] = {}
        while line := self.answer.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if not name:
                return fields
            fields[name] = value
        return {}


def live(release: str) -> dict[str, str]:
    return {"id": release, "data": release}


RETRY = {"retry": "1000"}


def pages_of(count: int) -> None:
    """Wait until that many pages are served."""
    deadline = monotonic() + LIMIT_S
    while sum(thread.name == "browser page" for thread in threading.enumerate()) != count:
        assert monotonic() < deadline, f"{count} pages are connected"
        sleep(0.01)


def test_all_open_pages_are_told_of_a_release(browser: Browser) -> None:
    url = browser.start()
    browser.reload("dev-41")
    with Page(url) as one, Page(url) as two:
        assert one.answer.headers["Content-Type"] == "text/event-stream"
        assert one.answer.headers["Access-Control-Allow-Origin"] == "*"
        for page in (one, two):
            assert [page.event(), page.event()] == [RETRY, live("dev-41")]
        browser.reload("dev-42")
        assert [one.event(), two.event()] == [live("dev-42")] * 2
        browser.reload("dev-41")  # back
        assert [one.event(), two.event()] == [live("dev-41")] * 2


def test_a_page_that_missed_a_release_is_told_when_it_connects_again(browser: Browser) -> None:
    url = browser.start()
    browser.reload("dev-41")
    with Page(url) as page:
        assert [page.event(), page.event()] == [RETRY, live("dev-41")]
    browser.reload("dev-42")
    with Page(url, **{"Last-Event-ID": "dev-41"}) as page:
        assert [page.event(), page.event()] == [RETRY, live("dev-42")]


def test_nothing_is_told_before_a_release_is_live(browser: Browser) -> None:
    with Page(browser.start()) as page:
        assert page.event() == RETRY
        browser.reload("dev-1")
        assert page.event() == live("dev-1")


def test_what_is_live_may_be_known_before_the_start(browser: Browser) -> None:
    browser.reload("dev-7")
    with Page(browser.start()) as page:
        assert [page.event(), page.event()] == [RETRY, live("dev-7")]


def test_an_open_page_is_kept_alive(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployer.cli.browser.KEEP_ALIVE_S", 0.02)
    with Page(browser.start()) as page:
        assert page.event() == RETRY
        assert [page.answer.readline() for _ in range(4)] == [b":\n", b"\n"] * 2


def test_pages_that_go_away_are_forgotten_at_once(browser: Browser, capfd: pytest.CaptureFixture[str]) -> None:
    url = browser.start()
    with Page(url) as stays:
        assert stays.event() == RETRY
        for _ in range(20):
            with Page(url) as page:
                assert page.event() == RETRY
        address = url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as rude:  # a reset in the middle of a request
            rude.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pages_of(1)
        browser.reload("dev-2")
        assert stays.event() == live("dev-2")
    assert capfd.readouterr() == ("", "")


def test_the_end_of_the_watch_ends_the_streams_and_frees_the_port() -> None:
    browser = Browser()
    url = browser.start()
    port = int(url.rpartition(":")[2])
    with Page(url) as page, socket.create_connection(("127.0.0.1", port)) as silent:
        assert page.event() == RETRY
        pages_of(2)
        began = monotonic()
        browser.close()
        browser.close()
        assert monotonic() - began < 2
        assert page.event() == {}
        assert silent.recv(1) == b""
    again = Browser(port)
    assert again.start() == url  # the next watch has the same address, so that pages that were left open find it
    again.close()


def test_a_port_that_is_taken_is_passed_over(browser: Browser) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = Browser(taken.getsockname()[1])
        url = other.start()
        assert url != f"http://127.0.0.1:{taken.getsockname()[1]}"
        other.reload("dev-1")
        with Page(url) as page:
            assert [page.event(), page.event()] == [RETRY, live("dev-1")]
        other.close()


def test_each_cluster_has_a_port_of_its_own() -> None:
    ports = {port_for(Path(f"/srv/shop{number}/.deployer")) for number in range(20)}
    assert len(ports) > 15
    assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in ports)
    assert port_for(Path("/srv/shop1/.deployer")) == port_for(Path("/srv/shop1/.deployer"))


def test_the_script_knows_where_it_is_from_and_what_is_live(browser: Browser) -> None:
    url = browser.start()
    assert script_tag(url) == f'<script src="{url}/reload.js" async></script>'
    browser.reload("dev-3")
    with Page(url, "/reload.js") as page:
        text = page.answer.read().decode()
        assert text.endswith(f'("{url}/events", "dev-3");\n')
        assert page.answer.headers["Content-Type"].startswith("text/javascript")
        assert page.answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/reload.js", "localhost:80", 200),
        ("/reload.js?1", "127.0.0.1", 200),
        ("/events", "evil.example:41235", 403),
        ("/reload.js", "127.0.0.1.evil.example", 403),
        ("/events", "", 403),
        ("/", "127.0.0.1", 404),
        ("/../../etc/passwd", "127.0.0.1", 404),
    ],
)
def test_only_this_machine_by_its_own_name(browser: Browser, path: str, host: str, status: int) -> None:
    with Page(browser.start(), path, Host=host) as page:
        assert page.answer.status == status


class Tab:
    """reload.js in node, with as much of a browser around it as it needs."""

    def __init__(self, url: str) -> None:
        program = [shutil.which("node") or "node", str(Path(__file__).with_name("page.js")), url]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def do(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def sees(self, *expected: str) -> None:
        assert self.process.stdout is not None
        assert [self.process.stdout.readline().rstrip() for _ in expected] == list(expected)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node runs the script of a page")


@needs_node
def test_a_page_reloads_for_another_release_and_for_no_other_reason(browser: Browser) -> None:
    url = browser.start()
    browser.reload("dev-1")
    with Tab(url) as tab:
        tab.do("load dev-1")
        tab.sees("open", "told dev-1")
        browser.reload("dev-2")
        tab.sees("reload", "told dev-2")
        tab.do("load dev-2")
        tab.sees("open", "told dev-2")
        browser.reload("dev-1")
        tab.sees("reload", "told dev-1")


@needs_node
def test_a_page_from_a_cache_is_not_reloaded_for_ever(browser: Browser) -> None:
    """Nor is one from a worker whose turn to be replaced has not come."""
    url = browser.start()
    browser.reload("dev-2")
    with Tab(url) as tab:
        tab.do("load dev-1")
        tab.sees("open", "reload", "told dev-2")
        tab.do("load dev-1")
        tab.sees("open", "told dev-2")
        browser.reload("dev-3")
        tab.sees("reload", "told dev-3")


@needs_node
def test_a_page_that_nobody_sees_catches_up_when_it_is_shown(browser: Browser) -> None:
    """One with a tag of the user's, which names no release."""
    url = browser.start()
    browser.reload("dev-1")
    with Tab(url) as tab:
        tab.do("load")
        tab.sees("open", "told dev-1")
        tab.do("hide")
        tab.sees("closed")
        pages_of(0)
        browser.reload("dev-2")
        tab.do("show")
        tab.sees("open", "reload", "told dev-2")


@needs_node
def test_a_page_that_was_left_open_finds_the_next_watch() -> None:
    first = Browser()
    url = first.start()
    first.reload("dev-1")
    with Tab(url) as tab:
        tab.do("load dev-1")
        tab.sees("open", "told dev-1")
        first.close()
        tab.sees("lost", "lost")
        second = Browser(int(url.rpartition(":")[2]))
        second.reload("dev-2")
        assert second.start() == url
        while (line := tab.process.stdout and tab.process.stdout.readline()) == "lost\n":
            pass
        assert line == "open\n"
        tab.sees("reload", "told dev-2")
        second.close()
