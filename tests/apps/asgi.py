"""A raw ASGI app for uvicorn. Copied as app.py into a release."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from typing import Any

import behaviour

KIND = behaviour.BEHAVIOUR
RELEASE = os.environ.get("DEPLOYER_RELEASE", "-")
WORKER = os.environ.get("DEPLOYER_WORKER", "-")

time.sleep(behaviour.BOOT_S)
if KIND == "raises_at_import":
    raise RuntimeError(f"this release is broken on purpose ({behaviour.LABEL})")
if KIND == "third_worker_crashes" and WORKER == "3":
    raise RuntimeError("the third worker is broken on purpose")
if KIND == "exits_zero":
    sys.exit(0)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await http(scope, send)


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    if KIND == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if KIND == "never_serves" and (address := os.environ.get("NOTIFY_SOCKET")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
            out.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
    if KIND in ("never_ready", "never_serves"):
        await asyncio.sleep(3600)
    if KIND == "crash_in_soak":
        asyncio.get_running_loop().call_later(0.3, os._exit, 3)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def http(scope: dict[str, Any], send: Any) -> None:
    path, query = scope["path"], scope["query_string"].decode()
    status, body = 200, f"{behaviour.LABEL} release {RELEASE} worker {WORKER} pid {os.getpid()}\n".encode()
    if path == "/slow":
        await asyncio.sleep(min(float(query.partition("s=")[2] or 1), 30))
    if path == "/healthz":
        status, body = (500, b"sick\n") if KIND == "health_500" else (200, b"ok\n")
    elif KIND == "error_500":
        status, body = 500, b"broken on purpose\n"
    headers = [
        (b"content-length", str(len(body)).encode()),
        (b"x-release", RELEASE.encode()),
        (b"x-worker", WORKER.encode()),
        (b"x-pid", str(os.getpid()).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
