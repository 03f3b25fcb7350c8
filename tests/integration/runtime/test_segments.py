"""What goes over the wire: an answer in one segment, and a head before its application knows the body."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.rawclient import Client
from tests.runtimekit import Workers

Serve = Callable[..., Workers]
ANSWERS = 20
_DATA_SEGS_IN = 152  # tcpi_data_segs_in of struct tcp_info

WAITS = """
import asyncio

go = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"text/event-stream")] if scope["path"] == "/events" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/go":
        go.set()
    else:
        await go.wait()
    await send({"type": "http.response.body", "body": b"data: gone\\n\\n"})
"""


def segments(sock: socket.socket) -> int:
    """Segments with data that the kernel has received on it."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (number,) = struct.unpack_from("I", info, _DATA_SEGS_IN)
    return int(number)


def test_a_small_answer_is_one_segment(serve: Serve, engine: dict[str, Any]) -> None:
    with Client(serve("bare:app", **engine)) as client:
        for _ in range(ANSWERS):
            assert client.get("/").body == b"hello"
        assert segments(client.sock) == ANSWERS


def test_a_head_does_not_wait_for_the_body(serve: Serve, engine: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    workers = serve("waits:app", directory=tmp_path, **engine)
    with Client(workers) as page, Client(workers) as stream, Client(workers) as other:
        page.send("/page")
        stream.send("/events")
        assert page.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert b"text/event-stream" in stream.read_until(b"\r\n\r\n")
        other.get("/go")
        for client in (page, stream):
            assert b"data: gone\n\n" in client.read_until(b"0\r\n\r\n")
