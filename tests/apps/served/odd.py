"""bare.py, and what odd clients ask for besides. What is `held` begins when the worker drains."""

import asyncio

import bare

from deployer.runtime import on_drain

draining = asyncio.Event()
on_drain(draining.set)


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await SOCKETS.get(scope["path"], bare.echo)(receive, send)
    else:
        await bare.app(scope, receive, send)


async def held(query, receive, send):
    await draining.wait()
    await asyncio.sleep(float(query.get("s", "0.1")))
    await bare.answer(send, b"held")


async def big(query, receive, send):
    """Many bytes in one piece: the application is done before the client has begun to read."""
    await bare.answer(send, b"x" * int(query["bytes"]))


async def drip(query, receive, send):
    """Bytes until so many seconds after the drain began."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    waiting = asyncio.ensure_future(held(query, receive, _nowhere))
    while not waiting.done():
        await send({"type": "http.response.body", "body": b".", "more_body": True})
        await asyncio.wait([waiting], timeout=0.1)
    await send({"type": "http.response.body", "body": b"end"})


async def _nowhere(message):
    pass


async def status(query, receive, send):
    """An answer without a body."""
    await send({"type": "http.response.start", "status": int(query["code"]), "headers": []})
    await send({"type": "http.response.body"})


async def held_echo(receive, send):
    """Its handshake waits for the drain."""
    await draining.wait()
    await asyncio.sleep(0.5)
    await bare.echo(receive, send)


async def unwelcome(receive, send):
    await receive()
    await send({"type": "websocket.close"})


async def flood(receive, send):
    """Says more than a client that does not read can take."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "text": "x" * 60_000})


async def flood_of_events(query, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while True:
        await send({"type": "http.response.body", "body": b"data: %s\n\n" % (b"x" * 60_000), "more_body": True})


SOCKETS = {"/held": held_echo, "/unwelcome": unwelcome, "/flood": flood}
bare.PATHS.update(
    {"/held": held, "/big": big, "/drip": drip, "/status": status, "/flood": flood_of_events},
)
