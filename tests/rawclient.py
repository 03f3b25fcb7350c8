"""A client that does as it is told, on one socket."""

from __future__ import annotations

import socket
from typing import Self

from tests.load import Answer, parse_answer
from tests.runtimekit import Workers


class Client:
    """One connection."""

    def __init__(self, workers: Workers, timeout: float = 30.0) -> None:
        self.sock = workers.connect(timeout)
        self._data = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, path: str, method: str = "GET", *lines: str, body: bytes = b"") -> None:
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *lines])
        self.sock.sendall(head.encode() + b"\r\n\r\n" + body)

    def answer(self) -> Answer:
        """The next whole answer; ConnectionError when it does not come."""
        while (found := parse_answer(self._data)) is None or found.status == 100:
            if found is not None:
                del self._data[: found.size]
                continue
            self._more()
        del self._data[: found.size]
        return found

    def get(self, path: str, *lines: str) -> Answer:
        self.send(path, "GET", *lines)
        return self.answer()

    def read_until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`."""
        while mark not in self._data:
            self._more()
        end = self._data.index(mark) + len(mark)
        found = bytes(self._data[:end])
        del self._data[:end]
        return found

    def rest(self) -> bytes:
        """All until the server closes."""
        while part := self.sock.recv(65536):
            self._data += part
        return bytes(self._data)

    def ends(self) -> bool:
        """The server closes without a word, and without a reset."""
        return self.rest() == b""

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def _more(self) -> None:
        part = self.sock.recv(65536)
        if not part:
            raise ConnectionError(f"closed after {bytes(self._data)[-200:]!r}")
        self._data += part
