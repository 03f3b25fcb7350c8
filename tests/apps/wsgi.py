"""A plain WSGI app, as a visitor of gunicorn would write it. Copied as app.py into a release."""

from __future__ import annotations

import os
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
if KIND in ("never_ready", "never_serves"):
    time.sleep(3600)


def respond(path: str, query: str) -> tuple[str, bytes]:
    if path == "/healthz":
        return ("500 Sick", b"sick\n") if KIND == "health_500" else ("200 OK", b"ok\n")
    if path == "/slow":
        time.sleep(min(float(query.partition("s=")[2] or 1), 30))
    if KIND == "error_500":
        return "500 Broken", b"broken on purpose\n"
    return "200 OK", f"{behaviour.LABEL} release {RELEASE} worker {WORKER} pid {os.getpid()}\n".encode()


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    status, body = respond(environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
    headers = [
        ("Content-Type", "text/plain"),
        ("Content-Length", str(len(body))),
        ("X-Release", RELEASE),
        ("X-Worker", WORKER),
        ("X-Pid", str(os.getpid())),
    ]
    start_response(status, headers)
    return [body]
