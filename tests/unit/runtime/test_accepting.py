"""What a connection that was accepted is like when its protocol gets it, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest
import uvloop

from deployer.runtime.accept import Acceptor

LIMIT_S = 10.0


class Taken(asyncio.Protocol):
    def __init__(self, accepted: socket.socket, made: asyncio.Future[Taken]) -> None:
        self.accepted, self._made = accepted, made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._made.set_result(self)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_it_neither_blocks_nor_waits_for_more_to_send(
    new_loop: Callable[[], asyncio.AbstractEventLoop], family: socket.AddressFamily
) -> None:
    """Without Nagle's delay, or the second part of an answer would wait for the client to say that it has the first."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[Taken] = loop.create_future()
        acceptor = Acceptor([listener], lambda accepted: Taken(accepted, made), None)
        acceptor.start()
        client.connect(listener.getsockname())
        taken = await asyncio.wait_for(made, LIMIT_S)
        await acceptor.settled()
        accepted = taken.accepted
        assert accepted.fileno() == taken.transport.get_extra_info("socket").fileno()
        assert not os.get_blocking(accepted.fileno())
        assert not os.get_inheritable(accepted.fileno())
        if family == socket.AF_INET:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        acceptor.stop()
        taken.transport.close()
        await asyncio.sleep(0)
        assert client.recv(1) == b""

    with _listener(family) as listener, socket.socket(family) as client:
        client.settimeout(LIMIT_S)
        loop = new_loop()
        try:
            loop.run_until_complete(asyncio.wait_for(run(), LIMIT_S))
        finally:
            loop.close()


def _listener(family: socket.AddressFamily) -> socket.socket:
    """As a worker gets it: by its descriptor."""
    made = socket.socket(family)
    made.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
    made.listen()
    return socket.socket(fileno=made.detach())
