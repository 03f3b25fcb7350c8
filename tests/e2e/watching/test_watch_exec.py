"""`deployer watch --exec` for real: any program, no configuration, and nothing left when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.client.client import Client
from deployer.errors import BusyError
from deployer.paths import Layout
from deployer.wire.schema import WatchRequest
from tests.cluster import DEPLOYER, free_port

LIMIT_S = 60
HANDLER = """\
from http.server import BaseHTTPRequestHandler, HTTPServer
import socket, sys
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"one")
"""
INHERITS = (
    HANDLER
    + """\
server = HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""
)
BINDS = HANDLER + 'HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()\n'


class Watch:
    """The command in a directory of its own, its output as it comes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "serve.py"
        self.text = ""
        self._process: subprocess.Popen[str] | None = None
        self._more = threading.Condition()

    def start(self, *words: str) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [DEPLOYER, "watch", *words],
            cwd=self.directory,
            env={key: value for key, value in os.environ.items() if not key.startswith("DEPLOYER_")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self._process

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.text += line
                self._more.notify_all()

    def until(self, text: str) -> str:
        """What was printed since this was asked last, once `text` has been."""
        with self._more:
            assert self._more.wait_for(lambda: text in self.text, LIMIT_S), f"never printed: {text}\n{self.text}"
            end = self.text.index(text) + len(text)
            found, self.text = self.text[:end], self.text[end:]
        return found

    def end(self, typed: str) -> int:
        assert self._process is not None
        self.type(typed)
        code = self._process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code

    def type(self, text: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def is_down(self) -> bool:
        words = [DEPLOYER, "status", "--config", ".deployer/watch.toml"]
        done = subprocess.run(words, cwd=self.directory, capture_output=True, timeout=LIMIT_S, check=False)
        return done.returncode == 69

    def close(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it takes the cluster with it
        process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    with tempfile.TemporaryDirectory(prefix="dep-", dir="/tmp") as directory:
        made = Watch(Path(directory))
        yield made
        made.close()


def answer(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        found: bytes = response.read()
        return found


def test_any_program_is_replaced_with_each_save_and_a_broken_one_is_not(watch: Watch) -> None:
    port = free_port()
    watch.program.write_text(INHERITS)

    process = watch.start("--exec", "python3 serve.py {fd}", "--listen", str(port), "--browser")
    url = watch.until("/reload.js").rpartition('src="')[2].removesuffix("/reload.js")
    first = watch.until(f"http://127.0.0.1:{port}\n")
    assert f", watching {watch.directory} (1 directory), " in first
    assert answer(port) == b"one"

    events = urllib.request.urlopen(f"{url}/events", timeout=LIMIT_S)
    with events:
        watch.program.write_text(INHERITS.replace("one", "two"))
        assert "serve.py → dev-2 live in " in watch.until("dev-2 live in ")
        assert answer(port) == b"two"
        told = b""
        while b"dev-2" not in told:
            told += events.readline()

    client = Client(Layout(watch.directory / ".deployer"))
    mine = client.watch(WatchRequest(who="me", holder=process.pid))
    assert mine == client.status().watch, "a command that asks again has its watch already"
    with pytest.raises(BusyError, match="is watched already"):
        client.watch(WatchRequest(who="me", holder=os.getpid()))

    watch.program.write_text("import nothing_of_that_name\n")
    said = watch.until("still serving dev-2; fix and save\n")
    assert "serve.py → dev-3 failed at serve.py:1\n" in said
    assert said.count("ModuleNotFoundError: No module named 'nothing_of_that_name'\n") == 1
    assert answer(port) == b"two"

    watch.program.write_text(INHERITS.replace("one", "three"))
    watch.until("dev-4 live in ")
    assert answer(port) == b"three"
    watch.type("r\n")
    watch.until("back to dev-2 in ")
    assert answer(port) == b"two"

    assert watch.end("q\n") == 0
    assert watch.is_down()


def test_a_program_with_a_port_of_its_own_is_told_how_to_share_one(watch: Watch) -> None:
    port = free_port()
    watch.program.write_text(BINDS)

    watch.start("-q", "--exec", f"python3 serve.py {port}")
    watch.until("dev-1 live in ")
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            assert answer(port) == b"one"
            break
        except OSError:
            assert time.monotonic() < deadline, "it never served"
            time.sleep(0.05)
    watch.program.write_text(BINDS.replace("one", "two"))
    said = watch.until("still serving dev-1; fix and save\n")

    assert "OSError: [Errno 98] Address already in use\n" in said
    assert "cause: the old and the new one run side by side for a moment, and both bind the same port\n" in said
    assert "hint: deployer watch --listen tcp://127.0.0.1:8000 --exec" in said
    assert answer(port) == b"one"
    assert watch.end("q\n") == 0
    assert watch.is_down()
