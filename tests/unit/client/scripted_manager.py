"""A manager made of a script: a real HTTP server on a real unix socket, answering what a test tells it to.

It speaks the control API of docs/architecture.md: JSON answers, and event streams in chunks that can be
cut in the middle, as the death of the manager does.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, Any]


class Cut(Exception):  # noqa: N818 - what it does, not an error of ours
    """Raised by a stream: the connection ends here, in the middle of a line."""


class ScriptedManager:
    """Answers are looked up as "METHOD /path"; `requests` records what was asked."""

    def __init__(self, socket_path: Path) -> None:
        self.answers: dict[str, Answer | Callable[[dict[str, str], Any], Answer]] = {}
        self.streams: dict[str, Callable[[dict[str, str]], Iterator[bytes]]] = {}
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.events: list[dict[str, Any]] = []
        self.cut_after: list[int] = []  # sequence numbers after which a connection breaks, once each
        self.hold = threading.Event()  # an event stream without an end waits for this
        self.streamed = threading.Condition()
        self.seen = 0
        self.streams["/v1/events"] = self._stream_events
        socket_path.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(socket_path, self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def bodies(self, what: str) -> list[Any]:
        """What was sent, without the keys that name commands: no two are alike."""
        sent = [body for name, _, body in self.requests if name == what]
        return [{**body, "key": None} if body and "key" in body else body for body in sent]

    def queries(self, what: str) -> list[dict[str, str]]:
        return [query for name, query, _ in self.requests if name == what]

    def wait_streamed(self, seq: int, timeout: float = 10.0) -> None:
        """Until event `seq` has been written to a client."""
        with self.streamed:
            assert self.streamed.wait_for(lambda: self.seen >= seq, timeout), f"event {seq} was never asked for"

    def _stream_events(self, query: dict[str, str]) -> Iterator[bytes]:
        after, rollout = int(query.get("after", 0)), query.get("rollout")
        while True:  # a test may add events while they are followed
            for event in list(self.events):
                if event["seq"] <= after or (rollout is not None and str(event["rollout"]) != rollout):
                    continue
                after = event["seq"]
                line = json.dumps(event).encode() + b"\n"
                if event["seq"] in self.cut_after:
                    self.cut_after.remove(event["seq"])
                    yield line[: len(line) // 2]
                    raise Cut
                yield line
                with self.streamed:
                    self.seen = max(self.seen, event["seq"])
                    self.streamed.notify_all()
                if query.get("follow") and rollout is not None and event["event"] == "rollout.finished":
                    return
            if not query.get("follow") or self.hold.wait(0.05):
                return
            yield b"\n"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, script: ScriptedManager) -> None:
        self.script = script
        super().__init__(str(path), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no fault of the script."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        script = self.server.script
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        script.requests.append((f"{method} {url.path}", query, body))
        self.close_connection = True
        answer = script.answers.get(f"{method} {url.path}")
        if answer is None and url.path in script.streams:
            self._stream(script.streams[url.path](query))
            return
        if callable(answer):
            try:
                answer = answer(query, body)
            except Cut:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        status, value = answer or (404, {"error": {"what": f"no such page: {url.path}", "exit": 1}})
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, chunks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except Cut:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client left


def event(seq: int, name: str, *, rollout: int | None = 12, ts: float | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "ts": 1700000000.0 + seq / 10 if ts is None else ts,
        "event": name,
        "rollout": rollout,
        **fields,
    }


def rollout_info(**changes: Any) -> dict[str, Any]:
    return {
        "id": 12,
        "kind": "deploy",
        "phase": "staging",
        "release": None,
        "previous": "v6",
        "outcome": None,
        "exit_code": None,
        "reason": None,
        "who": "ana",
        "message": None,
        "started_at": 1700000000.0,
        "finished_at": None,
        **changes,
    }


def worker(slot: int, pid: int | None, **changes: Any) -> dict[str, Any]:
    return {
        "slot": slot,
        "pid": pid,
        "release": "v7",
        "state": "ready",
        "uptime_s": 7800.0,
        "restarts": 0,
        "rss_bytes": 29_000_000,
        "cpu_percent": 0.1,
        **changes,
    }


def status(**changes: Any) -> dict[str, Any]:
    return {
        "app": "shop",
        "release": "v7",
        "rollout": None,
        "listen": ["tcp://127.0.0.1:8000"],
        "count": 2,
        "manager": {"pid": 10, "uptime_s": 7810.0, "version": "0.1.0"},
        "keeper": {"pid": 9},
        "workers": [worker(1, 9004), worker(2, 9011)],
        "config_file": "/srv/shop/deployer.toml",
        "root": "/srv/shop/.deployer",
        **changes,
    }
