"""Open pages refresh with each release that goes live: the server on this machine that they listen to.

GET /reload.js is the script of a page (reload.js), GET /events its stream of server-sent events. Each page is told
the release that is live when it connects, and again with every other one: who missed an event has missed nothing.
"""

from __future__ import annotations

import json
import os
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from sys import exception
from typing import Any
from zlib import crc32

from deployer.errors import DeployerError, Exit

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # another name that leads here is a page of somebody else's (DNS rebinding)
FIRST_PORT, PORTS = 20_000, 10_000  # below those that the kernel gives out by itself
KEEP_ALIVE_S = 15.0
RETRY_MS = 1000  # until a page that lost us asks again
REQUEST_S = 10.0  # for each part of a request to arrive, of an answer to leave
CLOSE_S = 5.0
BACKLOG = 64
UNTIL_WOKEN_S = 3600.0


def port_for(root: Path) -> int:
    """The same for each watch of a cluster: a tag in a page stays right, and pages left open find the next watch."""
    return FIRST_PORT + crc32(os.fsencode(root)) % PORTS


def script_tag(url: str) -> str:
    """What a user adds to a page that deployer does not change by itself."""
    return f'<script src="{url}/reload.js" async></script>'


class Browser:
    """`port` is used where it is free; 0: any."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._live: str | None = None
        self._server: _Server | None = None
        self._accepting: threading.Thread | None = None

    def start(self) -> str:
        """Listen; the URL."""
        self._server = _bound(self._port)
        self._server.live = self._live
        self._accepting = threading.Thread(
            target=self._server.serve_forever, args=(UNTIL_WOKEN_S,), name="browser", daemon=True
        )
        self._accepting.start()
        return self._server.url

    def reload(self, release: str) -> None:
        """This release is live: every page of another one reloads."""
        self._live = release
        if self._server is not None:
            self._server.tell(release)

    def close(self) -> None:
        """End all streams, threads and the socket."""
        server, self._server = self._server, None
        if server is None:
            return
        assert self._accepting is not None
        server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        server.shutdown()
        self._accepting.join(CLOSE_S)
        server.server_close()
        server.hang_up()


class _Server(socketserver.TCPServer):
    """One thread a connection, which ends with it; all are known, so that they can be ended."""

    allow_reuse_address = True
    request_queue_size = BACKLOG

    def __init__(self, port: int) -> None:
        super().__init__((HOST, port), _Handler)
        self.live: str | None = None
        self._lock = threading.Lock()
        self._streams: set[int] = set()  # an eventfd each: written to wake it
        self._connections: dict[threading.Thread, socket.socket] = {}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.socket.getsockname()[1]}"

    def tell(self, release: str) -> None:
        self.live = release
        with self._lock:
            for stream in self._streams:
                os.eventfd_write(stream, 1)

    @contextmanager
    def listening(self) -> Iterator[int]:
        """An eventfd that is readable once another release is live."""
        stream = os.eventfd(0)
        with self._lock:
            self._streams.add(stream)
        try:
            yield stream
        finally:
            with self._lock:
                self._streams.remove(stream)
            os.close(stream)

    def hang_up(self) -> None:
        with self._lock:
            connections = dict(self._connections)
        for connection in connections.values():
            with suppress(OSError):  # closed by now
                connection.shutdown(socket.SHUT_RDWR)
        for thread in connections:
            thread.join(CLOSE_S)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self._converse, args=(request, client_address), name="browser page", daemon=True
        )
        with self._lock:
            thread.start()
            self._connections[thread] = request

    def _converse(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
            with self._lock:
                del self._connections[threading.current_thread()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that went away is none."""
        if not isinstance(exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S
    server_version, sys_version = "deployer", ""

    def do_GET(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if name.lower() not in NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, f"This is {HOST}.")
        elif self.path.partition("?")[0] == "/events":
            self._events()
        elif self.path.partition("?")[0] == "/reload.js":
            self._script()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _script(self) -> None:
        words = ", ".join(json.dumps(word) for word in (f"{self.server.url}/events", self.server.live or ""))
        body = Path(__file__).with_name("reload.js").read_bytes().rstrip() + f"({words});\n".encode()
        self._head("text/javascript; charset=utf-8", len(body))
        self.wfile.write(body)

    def _events(self) -> None:
        with self.server.listening() as woken:
            self._head("text/event-stream")
            self.wfile.write(b"retry: %d\n\n" % RETRY_MS)
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            poll.register(woken, select.POLLIN)
            told = None
            while True:
                live = self.server.live
                if live is not None and live != told:
                    self.wfile.write(f"id: {live}\ndata: {live}\n\n".encode())
                    told = live
                ready = [fd for fd, _ in poll.poll(KEEP_ALIVE_S * 1000)]
                if self.connection.fileno() in ready and not self.connection.recv(1024):
                    return  # the page is gone, or we close
                if woken in ready:
                    os.eventfd_read(woken)
                if not ready:
                    self.wfile.write(b":\n\n")

    def _head(self, kind: str, length: int | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Cross-Origin-Resource-Policy", "cross-origin")  # for pages that ask for it (COEP)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Requests are not what the person at the terminal looks at."""


def _bound(port: int) -> _Server:
    try:
        try:
            return _Server(port)
        except OSError:
            if port == 0:
                raise
            return _Server(0)
    except OSError as error:
        raise DeployerError(
            "--browser: cannot listen for open pages",
            cause=f"{HOST}: {error.strerror}",
            hint="deployer watch",
            exit_code=Exit.NOT_STARTED,
        ) from None
