"""One HTTP request that asks a server how it is, and who answered it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import h11

from deployer.runtime.counting import PROBE
from deployer.sockets.address import Address
from deployer.sockets.peers import peer_inode

BODY_SHOWN = 300  # bytes of a bad answer's body kept for the message


@dataclass(frozen=True)
class Answer:
    """What came back: a status, or why there was none. `holder` is what `identify` said of who gave it."""

    status: int | None
    text: str
    holder: int | None

    def describe(self) -> str:
        if self.status is None:
            return self.text
        return f"{self.status} {self.text!r}" if self.text else str(self.status)


async def get(
    address: Address, path: str, timeout: float, identify: Callable[[int], int | None] | None = None
) -> Answer:
    """GET `path`, `timeout` seconds in all. Never raises for what the server does. `identify` hears the inode of the
    server's end while the connection is open: once we close it, the server does too and nobody holds it."""
    sock = _open(address)

    def holder() -> int | None:
        inode = peer_inode(sock) if identify else None
        return identify(inode) if identify and inode else None

    try:
        async with asyncio.timeout(timeout):
            await _connect(sock, address)
            return await _exchange(sock, address, path, holder)
    except TimeoutError:
        return Answer(None, f"no answer within {timeout:g} s", holder())
    except (OSError, h11.RemoteProtocolError) as error:
        return Answer(None, _reason(error), holder())
    finally:
        sock.close()


async def connect(address: Address) -> socket.socket:
    """A connection; it stands as soon as the kernel has queued it, accepted or not. The caller closes it."""
    sock = _open(address)
    try:
        await _connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _open(address: Address) -> socket.socket:
    ip = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(socket.AF_UNIX if address.kind == "unix" else ip)
    sock.setblocking(False)
    return sock


async def _connect(sock: socket.socket, address: Address) -> None:
    target = address.path if address.kind == "unix" else (address.host, address.port)
    await asyncio.get_running_loop().sock_connect(sock, target)


async def _exchange(sock: socket.socket, address: Address, path: str, holder: Callable[[], int | None]) -> Answer:
    loop = asyncio.get_running_loop()
    connection = h11.Connection(h11.CLIENT)
    host = "localhost" if address.kind == "unix" else str(address).removeprefix("tcp://")
    # Keep-alive: a server that closes at once is gone from the kernel's tables before we can ask who it was.
    headers = [("Host", host), ("User-Agent", "deployer-health"), (PROBE.decode(), "1")]
    request = connection.send(h11.Request(method="GET", target=path, headers=headers))
    await loop.sock_sendall(sock, (request or b"") + (connection.send(h11.EndOfMessage()) or b""))
    status, who, body = None, None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await loop.sock_recv(sock, 65536)
            if not data and status is None and not connection.trailing_data[0]:
                return Answer(None, "closed the connection without an answer", who)
            connection.receive_data(data)
            who = who or holder()
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body = (body + bytes(event.data))[:BODY_SHOWN]
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            text = body.decode(errors="replace").strip()
            return Answer(status, text, who)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)  # asyncio puts the address in its own words
    return f"not HTTP: {error}"
