"""The smallest server that drains right: standard library only, starts in well under 100 ms.

Copied as server.py into a release beside behaviour.py, which says how this release behaves. Its drain is
the model for all others: on SIGTERM stop accepting; answer the next request on each open connection with
`Connection: close`; close connections only after they idled for LINGER_S, because a request may be on its
way on them; exit when none is left. It accepts one connection a wake-up and never calls listen(): the
socket is shared, the others must get their turn and nobody may shrink its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time

import behaviour

LINGER_S = 2.0
CHECK_S = 0.05  # how often a draining server looks for connections that idled long enough
CRASH_AFTER_S = 0.3
SLOW_LIMIT_S = 30.0

RELEASE = os.environ.get("DEPLOYER_RELEASE", "-")
WORKER = os.environ.get("DEPLOYER_WORKER", "-")

KIND = behaviour.BEHAVIOUR
if KIND == "raises_at_import":
    raise RuntimeError(f"this release is broken on purpose ({behaviour.LABEL})")
if KIND == "third_worker_crashes" and WORKER == "3":
    raise RuntimeError("the third worker is broken on purpose")
if KIND == "exits_zero":
    sys.exit(0)


class Connection(asyncio.Protocol):
    """One visitor: requests are answered one after the other, in order."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = bytearray()
        self.answering = False
        self.idle_since = time.monotonic()

    @property
    def idle(self) -> bool:
        return not self.answering and not self.buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.next_request()

    def next_request(self) -> None:
        """Take a whole request off the buffer, when there is one and none is being answered."""
        end = self.buffer.find(b"\r\n\r\n")
        if self.answering or end < 0:
            return
        head = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        whole = end + 4 + int(fields.get("content-length", 0))
        if len(self.buffer) < whole:
            return
        body = bytes(self.buffer[end + 4 : whole])
        del self.buffer[:whole]
        self.answering = True
        target = head[0].split(" ")[1]
        closing = fields.get("connection", "").lower() == "close"
        path, _, query = target.partition("?")
        pause = min(float(query.partition("s=")[2] or 1), SLOW_LIMIT_S) if path == "/slow" else 0.0
        if pause:
            asyncio.get_running_loop().call_later(pause, self.answer, path, body, closing)
        else:
            self.answer(path, body, closing)

    def answer(self, path: str, body: bytes, closing: bool) -> None:
        if self.transport.is_closing():
            return
        status, text = respond(path, body)
        closing = closing or self.server.draining
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            f"X-Release: {RELEASE}\r\nX-Worker: {WORKER}\r\nX-Pid: {os.getpid()}\r\n"
            f"Connection: {'close' if closing else 'keep-alive'}\r\n\r\n"
        )
        self.transport.write(head.encode() + text)
        self.answering = False
        self.idle_since = time.monotonic()
        if closing:
            self.transport.close()
        else:
            self.next_request()


def respond(path: str, body: bytes) -> tuple[str, bytes]:
    if path == "/healthz":
        return ("500 Sick", b"sick\n") if KIND == "health_500" else ("200 OK", b"ok\n")
    if path == "/echo":
        return "200 OK", body
    if KIND == "error_500":
        return "500 Broken", b"broken on purpose\n"
    return "200 OK", f"{behaviour.LABEL} release {RELEASE} worker {WORKER} pid {os.getpid()}\n".encode()


class Server:
    """The inherited socket, the open connections, and the way out."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        self.connections: set[Connection] = set()
        self.opening: set[asyncio.Task[object]] = set()
        self.draining = False
        self.done = asyncio.Event()

    def start(self) -> None:
        self.listening.setblocking(False)
        asyncio.get_running_loop().add_reader(self.listening, self.accept)

    def accept(self) -> None:
        try:
            visitor, _ = self.listening.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # another worker was faster, or the visitor left
        visitor.setblocking(False)
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(loop.connect_accepted_socket(lambda: Connection(self), visitor))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    def stop(self) -> None:
        """SIGTERM."""
        if KIND == "ignores_sigterm" or self.draining:
            return
        self.draining = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.listening)
        self.listening.close()
        loop.call_soon(self.drain)

    def drain(self) -> None:
        # Read events of this turn of the loop ran before this timer: what looks idle here has nothing unread.
        now = time.monotonic()
        for connection in list(self.connections):
            if connection.idle and now - connection.idle_since >= LINGER_S:
                connection.transport.close()
        if self.connections or self.opening:
            asyncio.get_running_loop().call_later(CHECK_S, self.drain)
        else:
            self.done.set()


def notify(message: str) -> None:
    """sd_notify(3). That the supervisor is away is no reason to stop serving."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
            out.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = Server(socket.socket(fileno=3))
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    if KIND not in ("never_ready", "never_serves"):
        server.start()
    if KIND != "never_ready":
        notify("READY=1")
    print(f"{behaviour.LABEL} worker {WORKER} serves", flush=True)
    if KIND == "crash_in_soak":
        loop.call_later(CRASH_AFTER_S, os._exit, 3)
    await server.done.wait()


if __name__ == "__main__":
    if behaviour.BOOT_S:
        time.sleep(behaviour.BOOT_S)
    asyncio.run(main())
