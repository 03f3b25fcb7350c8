"""What `deployer watch` serves in tests: it answers with the label in views.py. Copied into a source tree."""

import asyncio
import os

import views


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        await asyncio.sleep(float(scope["query_string"].decode().partition("s=")[2] or 1))
    if scope["path"] != "/healthz":
        views.answering()
    body = views.LABEL.encode() + b"\n"
    headers = [
        (b"content-length", str(len(body)).encode()),
        (b"content-type", b"text/plain"),
        (b"x-release", views.LABEL.encode()),  # what was saved, not which release deployer made of it
        (b"x-worker", os.environ.get("DEPLOYER_WORKER", "-").encode()),
        (b"x-pid", str(os.getpid()).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
