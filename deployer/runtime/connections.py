"""uvicorn's protocols with what they lack: half-closed clients, and an end that loses nothing.

The classes are made at run time, on top of whichever protocol uvicorn has chosen (httptools or h11; websockets or
wsproto). The parts of a protocol that are looked at here are the same in all of them since uvicorn 0.23.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from collections.abc import Callable, Iterator
from typing import Any

from .counting import ENDLESS
from .transport import Transport

LAST_WORDS_S = 2.0  # how long the client may take to close after we did
UNREAD, UNSENT = termios.FIONREAD, termios.TIOCOUTQ  # SIOCINQ and SIOCOUTQ of tcp(7) and unix(7)


def http_class(base: Any, on_closed: Callable[[], None]) -> Any:
    """`base` for connections that are counted, and that answer a client which has closed its half."""

    class Http(base):  # type: ignore[misc]
        half_closed = False
        accepted: socket.socket

        def connection_made(self, transport: Any) -> None:
            super().connection_made(Transport(transport, self.loop, self.accepted))

        def connection_lost(self, exc: Exception | None) -> None:
            on_closed()
            super().connection_lost(exc)

        def eof_received(self) -> bool | None:
            """The client sends no more. Without this asyncio closes at once, and it never gets its answer.

            A client that went away looks the same until something is sent to it: so an event stream, which could
            go on for ever, is ended; any other answer is finished.
            """
            super().eof_received()
            self.transport.flush()  # asyncio may close by itself now
            if self.half_closed:
                return True
            waiting = list(open_cycles(self))
            if not waiting or any(cycle.more_body or ENDLESS in cycle.scope for cycle in waiting):
                return None
            self.half_closed = True
            complete = super().on_response_complete

            def on_response_complete() -> None:
                complete()
                if not is_busy(self):
                    self.transport.close()

            self.on_response_complete = on_response_complete
            for cycle in waiting:
                cycle.on_response = on_response_complete
            return True

    return Http


def websocket_class(base: Any, on_closed: Callable[[], None]) -> Any:
    """`base` for connections that are counted."""

    class WebSocket(base):  # type: ignore[misc]
        is_websocket = True

        def connection_lost(self, exc: Exception | None) -> None:
            on_closed()
            super().connection_lost(exc)

    return WebSocket


def is_websocket(connection: Any) -> bool:
    return getattr(connection, "is_websocket", False)


def open_cycles(connection: Any) -> Iterator[Any]:
    """Requests that are not answered whole, the oldest first.

    httptools' protocol forgets the one under way when others were pipelined behind it, and keeps those; h11's knows
    of the one under way only.
    """
    cycle = connection.cycle
    queued = [waiting for waiting, _ in reversed(getattr(connection, "pipeline", ()))]
    if cycle is not None and cycle not in queued:
        queued.append(cycle)
    return (found for found in queued if not found.response_complete)


def is_busy(connection: Any) -> bool:
    """Is a request being answered, or waiting for that?"""
    return any(True for _ in open_cycles(connection))


def shakes_hands(websocket: Any) -> bool:
    """It is not known yet whether the application wants it: a goodbye now would be an error, 500, for an answer."""
    completed = getattr(websocket, "handshake_completed_event", None)  # of websockets' older protocol
    return not (completed.is_set() if completed is not None else websocket.handshake_complete)


def is_idle(connection: Any) -> bool:
    """No request is being answered on it, none has begun to arrive, and nothing lies in the kernel unread."""
    return not is_busy(connection) and not has_begun(connection) and not _in_kernel(connection.transport, UNREAD)


def is_flushed(connection: Any) -> bool:
    """Has the kernel taken all that was answered? It delivers that also when we are gone."""
    size: int = connection.transport.get_write_buffer_size()
    return size == 0


def untaken(connection: Any) -> int:
    """Bytes of answers that the client's side has not taken yet."""
    size: int = connection.transport.get_write_buffer_size()
    return size + _in_kernel(connection.transport, UNSENT)


def _in_kernel(transport: Any, queue: int) -> int:
    """Bytes that lie there."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), queue, count)
    except OSError:
        return 0
    return count[0]


def be_gentle(connection: Any) -> None:
    """From now on the connection is closed by us in the way of GentleTransport."""
    if isinstance(connection.transport, GentleTransport):
        return  # a websocket that was made of a gentle connection
    gentle = GentleTransport(connection)
    connection.transport = gentle
    if not is_websocket(connection):
        for cycle in open_cycles(connection):
            cycle.transport = gentle


def is_last_answer(send: Any) -> bool:
    """Is nothing more waiting on the connection of this answer? Pipelined requests are all answered before it closes.

    `send` is a method of uvicorn's cycle, whose transport is ours by then.
    """
    cycle = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    return isinstance(transport, GentleTransport) and not transport.has_more(cycle)


class GentleTransport:
    """Closes its own half first and reads on until the client has closed too.

    A close() while something of the client's is unread (a pipelined request, the rest of an upload) makes the kernel
    send a reset, which can destroy an answer on its way.
    """

    def __init__(self, connection: Any) -> None:
        self.connection, self._inner = connection, connection.transport
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def has_more(self, cycle: Any) -> bool:
        """Are there requests behind this one?"""
        if cycle.more_body:
            return False  # what comes is its own body
        connection = self.connection
        behind = any(other is not cycle for other in open_cycles(connection))
        return behind or has_begun(connection) or _in_kernel(self._inner, UNREAD) > 0

    def set_protocol(self, protocol: Any) -> None:
        """It becomes a websocket, or was refused as one a moment ago."""
        self.connection = protocol
        if not self._closing:
            self._inner.set_protocol(protocol)

    def write(self, data: bytes) -> None:
        """After the end what is written goes nowhere, as in asyncio's own close(); after write_eof() it would raise."""
        if not self._closing:
            self._inner.write(data)

    def is_closing(self) -> bool:
        return self._closing or self._inner.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        self._closing = True
        if getattr(self.connection, "half_closed", False) or not self._inner.can_write_eof():
            self._inner.close()
            return
        self._inner.set_protocol(_LastWords(self, self._inner))
        self._inner.resume_reading()
        self._inner.write_eof()


class _LastWords(asyncio.Protocol):
    """Throws away what comes, until the client closes or its time is over."""

    def __init__(self, gentle: GentleTransport, transport: Any) -> None:
        self._gentle, self._transport = gentle, transport
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LAST_WORDS_S, self._too_late)

    def _too_late(self) -> None:
        """A slow reader has not even taken all yet: its time starts when it has."""
        if self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(LAST_WORDS_S, self._too_late)
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._gentle.connection.connection_lost(exc)


def has_begun(connection: Any) -> bool:
    """Has the head of a request arrived in part?"""
    conn = getattr(connection, "conn", None)
    if conn is not None:  # h11
        return bool(conn.trailing_data[0])
    scope, cycle = connection.scope, connection.cycle
    return scope is not None and (cycle is None or cycle.scope is not scope)
