"""A small web shop's front page, on Starlette (which deployer already installs for its own API).

It shows which release, slot and process answered, so that a rollout can be watched from the outside:
in the page, and on every answer as the headers X-Release, X-Worker and X-Pid. The visits that a visitor made are
counted in a session (sessions.py), which no rollout may lose.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from html import escape

import sessions
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starsessions import load_session

from deployer import runtime

HEADLINE = "Hello from the first release"
SLOW_LIMIT_S = 30.0
TICK_S = 1.0

RELEASE = runtime.release() or "none"
WORKER = "none" if runtime.slot() is None else str(runtime.slot())
PID = str(os.getpid())

PAGE = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{escape(HEADLINE)}</title>
<style>body {{ font: 1.1rem/1.6 system-ui; max-width: 40rem; margin: 4rem auto }} dt {{ font-weight: bold }}</style>
<h1>{escape(HEADLINE)}</h1>
<dl>
  <dt>release</dt><dd>{escape(RELEASE)}</dd>
  <dt>slot</dt><dd>{escape(WORKER)}</dd>
  <dt>pid</dt><dd>{PID}</dd>
  <dt>your visits</dt><dd id="visits">not counted yet</dd>
  <dt>events</dt><dd id="events">none yet</dd>
</dl>
<script>
  fetch("/visits").then((answer) => answer.json()).then((answer) => {{
    document.getElementById("visits").textContent = answer.visits
  }})
  new EventSource("/events").onmessage = (event) => {{ document.getElementById("events").textContent = event.data }}
</script>
</html>
"""


async def home(request: Request) -> Response:
    return HTMLResponse(PAGE)


async def healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def visits(request: Request) -> Response:
    """How often this visitor came. The session is stored before the answer leaves: what was shown is not forgotten."""
    await load_session(request)
    count = request.session.get("visits", 0) + 1
    request.session["visits"] = count
    return JSONResponse({"visits": count, "release": RELEASE, "slot": WORKER})


async def slow(request: Request) -> Response:
    """An answer that takes `s` seconds: what a drain must wait for."""
    try:
        seconds = min(float(request.query_params.get("s", "1")), SLOW_LIMIT_S)
    except ValueError:
        return PlainTextResponse("s must be a number of seconds\n", status_code=400)
    await asyncio.sleep(max(seconds, 0.0))
    return JSONResponse({"release": RELEASE, "slot": WORKER, "seconds": seconds})


async def events(request: Request) -> Response:
    """Server-sent events, one a second. The stream ends when the worker drains: browsers connect again by
    themselves, to a worker of the new release."""
    draining: asyncio.Event = request.app.state.draining
    return StreamingResponse(ticks(draining), media_type="text/event-stream")


async def ticks(draining: asyncio.Event) -> AsyncIterator[str]:
    yield "retry: 200\n\n"
    while not draining.is_set():
        data = {"release": RELEASE, "slot": WORKER, "pid": PID, "time": round(time.time(), 3)}
        yield f"data: {json.dumps(data)}\n\n"
        try:
            await asyncio.wait_for(draining.wait(), TICK_S)
        except TimeoutError:
            pass  # the usual case: no drain, time for the next tick


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type=request.headers.get("content-type"))


class WhoAnswered:
    """Puts release, slot and pid on every answer. Plain ASGI: it must not buffer the event stream."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({"X-Release": RELEASE, "X-Worker": WORKER, "X-Pid": PID})
            await send(message)

        await self.app(scope, receive, send_marked)


app = Starlette(
    routes=[
        Route("/", home),
        Route("/healthz", healthz),
        Route("/visits", visits, middleware=[sessions.middleware()]),
        Route("/slow", slow),
        Route("/events", events),
        Route("/echo", echo, methods=["POST"]),
    ],
    middleware=[Middleware(WhoAnswered)],
    lifespan=sessions.lifespan,
)
app.state.draining = asyncio.Event()
runtime.on_drain(app.state.draining.set)  # where deployer serves the app; serve.py sets it itself
