"""Plain ASGI, without any package: what is asked of a drain."""

import asyncio
from urllib.parse import parse_qs

BIG = b"x" * 65536


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    await PATHS.get(scope["path"], home)(query, receive, send)


async def answer(send, body, status=200, content_type=b"text/plain"):
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def home(query, receive, send):
    await answer(send, query.get("n", "hello").encode())


async def slow(query, receive, send):
    await asyncio.sleep(float(query.get("s", "1")))
    await answer(send, b"slow")


async def upload(query, receive, send):
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    await answer(send, str(size).encode())


async def refuse(query, receive, send):
    """Answers before the upload is there."""
    await answer(send, b"too large", 413)


async def download(query, receive, send):
    count = int(query.get("parts", "256"))
    headers = [(b"content-length", str(count * len(BIG)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(count):
        await send({"type": "http.response.body", "body": BIG, "more_body": number < count - 1})


async def events(query, receive, send):
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    number = 0
    gone = asyncio.ensure_future(receive())
    while not gone.done() or gone.result()["type"] != "http.disconnect":
        if gone.done():
            gone = asyncio.ensure_future(receive())
        number += 1
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await asyncio.wait([gone], timeout=0.05)
    print("events: disconnected", flush=True)


async def fail(query, receive, send):
    raise RuntimeError("on purpose")


async def echo(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"echo {message['text']}"})
    print(f"websocket: {message.get('code')}", flush=True)


PATHS = {
    "/slow": slow,
    "/upload": upload,
    "/refuse": refuse,
    "/download": download,
    "/events": events,
    "/fail": fail,
}
