"""FastAPI, by a factory."""

import hashlib
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse


def create_app():
    @asynccontextmanager
    async def lifespan(app):
        print("lifespan: started", flush=True)
        app.state.greeting = "hello"
        yield
        print("lifespan: ended", flush=True)

    app = FastAPI(lifespan=lifespan)

    @app.get("/", response_class=PlainTextResponse)
    def home(request: Request):
        return request.app.state.greeting

    @app.post("/upload")
    async def upload(request: Request):
        body = await request.body()
        return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}

    @app.get("/stream")
    def stream():
        return StreamingResponse((f"part {number}\n" for number in range(5)), media_type="text/plain")

    @app.get("/fail")
    def fail():
        raise RuntimeError("on purpose")

    @app.websocket("/ws")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")

    return app
