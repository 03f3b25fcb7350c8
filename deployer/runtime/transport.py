"""A connection's transport that sends the head of an answer and the first part of its body in one write.

uvicorn writes one after the other: two system calls, two packets, and a client that is woken twice. Here a head waits
for what is written next; where nothing is, it goes when everything else that is due in the loop had its turn.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

JOINED_MAX = 65536  # bytes: to copy a larger part costs more than a write of its own


class Transport:
    """Around the event loop's transport. What is called often is the loop's own method, without a step between."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._inner, self._loop, self._socket = inner, loop, sock
        self._head = b""  # what is held back
        self.write = inner.write
        self.is_closing = inner.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The accepted socket is at hand; uvloop would make another object for it."""
        if name == "socket":
            return self._socket
        return self._inner.get_extra_info(name, default)

    def hold(self) -> None:
        """What is written next is the head of an answer."""
        self.write = self._hold

    def _hold(self, head: bytes) -> None:
        self._head, self.write = head, self._join
        self._loop.call_soon(self.flush)

    def _join(self, part: Any) -> None:
        if len(part) > JOINED_MAX:
            self.flush()
            self.write(part)
        else:
            whole = self._head + part
            self._head, self.write = b"", self._inner.write
            self.write(whole)

    def flush(self) -> None:
        """Send a head that is held back. Whatever changes the connection's state comes after what was written."""
        head, self._head, self.write = self._head, b"", self._inner.write
        if head and not self.is_closing():
            self.write(head)

    def write_eof(self) -> None:
        self.flush()
        self._inner.write_eof()

    def close(self) -> None:
        self.flush()
        self._inner.close()

    def get_write_buffer_size(self) -> int:
        size: int = self._inner.get_write_buffer_size()
        return size + len(self._head)
