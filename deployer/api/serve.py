"""Serves the control API on its unix socket with uvicorn, which we keep from what does not fit a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployer.api.app import Api

STOP_S = 2  # how long answers may take to end when the supervisor stops
_UCRED = struct.Struct("3i")  # pid, uid, gid: SO_PEERCRED, unix(7)

log = structlog.get_logger()


class PeerCheckedProtocol(H11Protocol):
    """Only root and the owner of this process are served, whatever became of the socket's mode."""

    def connection_made(self, transport: Any) -> None:
        sock: socket.socket = transport.get_extra_info("socket")
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            log.warning("api.refused", pid=pid, uid=uid)
            transport.abort()
            return
        super().connection_made(transport)


class ControlServer(uvicorn.Server):
    """No signals of its own, and no tick ten times a second: an idle manager uses no CPU."""

    def __init__(self, api: Api) -> None:
        self.api = api
        super().__init__(
            uvicorn.Config(
                api.application(),
                http=PeerCheckedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        self._end = asyncio.Event()

    async def run_on(self, sock: socket.socket) -> None:
        await self.serve(sockets=[sock])

    def end(self) -> None:
        self.api.stop()
        self._end.set()

    async def main_loop(self) -> None:
        await self._end.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
