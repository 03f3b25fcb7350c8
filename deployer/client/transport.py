"""HTTP/1.1 over the control socket with the standard library alone.

`http.client` loads ssl for a class that a unix socket has no use for; that costs 10 ms and 4 MB at every
command, so it is imported here with ssl out of reach (its own documented fallback) and ssl is let back in
right after. Nobody else in this package imports `http.client`.
"""

from __future__ import annotations

import socket
import sys

if "http.client" in sys.modules or "ssl" in sys.modules:
    from http.client import HTTPConnection, HTTPException, HTTPResponse
else:
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        from http.client import HTTPConnection, HTTPException, HTTPResponse
    finally:
        del sys.modules["ssl"]

__all__ = ["HTTPException", "HTTPResponse", "UnixConnection"]

MAX_SOCKET_PATH = 107
"""Bytes that sun_path holds besides the final NUL."""


class UnixConnection(HTTPConnection):
    """A connection to the socket at `path`; `timeout` bounds each connect, send and receive."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class Stream:
    """The lines of an answer that goes on; each is handed over as soon as it is whole."""

    def __init__(self, connection: UnixConnection, sock: socket.socket, response: HTTPResponse) -> None:
        self._connection = connection
        self._sock = sock
        self._response = response

    def readline(self, timeout: float) -> bytes | None:
        """The next line without its end, or None when the answer ends or breaks off.

        A line that lacks its end was cut by the death of the manager: it is dropped, and asked for again.
        `TimeoutError` when nothing comes for `timeout` seconds; the stream is of no use afterwards.
        """
        self._sock.settimeout(timeout)
        try:
            line = self._response.readline()
        except TimeoutError:
            raise
        except (OSError, HTTPException, ValueError):
            return None
        return line[:-1] if line.endswith(b"\n") else None

    def close(self) -> None:
        self._response.close()
        self._connection.close()
        self._sock.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
