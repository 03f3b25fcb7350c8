"""uvicorn on the inherited socket, with a drain that loses no request. Run as: python serve.py

Plain `uvicorn --fd 3` closes idle keep-alive connections the moment it gets SIGTERM; a request that was on
its way on one of them is lost, whatever the supervisor does. Here a worker that is told to stop
  1. stops accepting (the socket stays open in the supervisor and the other workers, nobody is refused),
  2. answers what is open, and the next request on each open connection, with `Connection: close`,
  3. closes connections that were idle for LINGER_S, and exits when none is left.
It says READY=1 (sd_notify) once it accepts. Any ASGI app can be served like this: change the import.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from typing import Any

import uvicorn
from app import app
from uvicorn.protocols.http.h11_impl import H11Protocol

LISTEN_FD = 3  # the first descriptor of sd_listen_fds(3)
BACKLOG = 2048  # asyncio calls listen() again on the shared socket: its default, 100, would shrink the queue
KEEPALIVE_S = 75
LINGER_S = 2.0
CHECK_S = 0.05
CLOSE = (b"connection", b"close")


def notify(message: str) -> None:
    """sd_notify(3): tell the supervisor, when there is one. That it is away is no reason to stop serving."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
            out.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)


def is_idle(connection: H11Protocol) -> bool:
    """No request is being answered on it, and none has begun to arrive."""
    answered = connection.cycle is None or connection.cycle.response_complete
    return answered and not connection.conn.trailing_data[0]


class DrainingServer(uvicorn.Server):
    """uvicorn's server with another way to end; everything else is uvicorn's."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        app.state.draining.set()
        self.announce_close()
        await self.wait_until_gone()
        await self.lifespan.shutdown()

    def announce_close(self) -> None:
        """From now on every answer says `Connection: close`, those under way too unless their head was sent."""
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        for connection in self.server_state.connections:
            cycle: Any = connection.cycle
            if cycle is not None and not cycle.response_started:
                cycle.default_headers = self.server_state.default_headers

    async def wait_until_gone(self) -> None:
        """Close what has been idle for LINGER_S until no connection is left."""
        idle_since: dict[Any, float] = {}
        first_look = True  # connections that were accepted a moment ago are not in the list yet
        while self.server_state.connections or first_look:
            first_look = False
            now = time.monotonic()
            open_now = list(self.server_state.connections)
            idle_since = {c: idle_since.get(c, now) for c in open_now if is_idle(c)}
            for connection, since in idle_since.items():
                if now - since >= LINGER_S:
                    connection.shutdown()
            await asyncio.sleep(CHECK_S)


def main() -> None:
    # http="h11": the parts of the protocol that the drain looks at. fileno= finds out the socket's own family,
    # which uvicorn's --fd does not (it takes TCP for unix and leaves Nagle's algorithm on).
    config = uvicorn.Config(
        app, http="h11", backlog=BACKLOG, timeout_keep_alive=KEEPALIVE_S, access_log=False, log_level="warning"
    )
    # At its end uvicorn raises the signal anew for whoever handled it before: we have done as told, exit with 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    DrainingServer(config).run(sockets=[socket.socket(fileno=LISTEN_FD)])


if __name__ == "__main__":
    main()
