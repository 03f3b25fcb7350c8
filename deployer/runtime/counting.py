"""Around the application: counts its answers on the scoreboard, and knows the event streams that are open.

It stands in the way of every request, so it is written for few steps. Latency is the time until the head of the
answer is there: an endless stream or a slow reader says nothing about the application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .histogram import bucket
from .scoreboard import FIELD, Record

_EVENT_STREAM = b"text/event-stream"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_STATUS = FIELD["status_1xx"] - 1
ENDLESS = "deployer.event_stream"  # in the scope of one
CLOSE = (b"connection", b"close")


class Stream:
    """An answer of server-sent events that is under way."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.task = asyncio.current_task()
        self.ended = False
        self.between_events = True
        self._ending: asyncio.Task[Any] | None = None

    def end(self) -> None:
        """Finish the answer properly; what the application still sends goes nowhere, and it hears `http.disconnect`."""
        self.ended = True
        last = self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._ending = asyncio.get_running_loop().create_task(last)

    async def pass_on(self, message: Any) -> None:
        if self.ended:
            return
        body = message.get("body", b"")
        if body:
            self.between_events = body.endswith(_EVENT_ENDS)
        await self._send(message)


class Counting:
    """The application that uvicorn calls. `app` is set once it is imported."""

    def __init__(self, record: Record | None) -> None:
        self.app: Any = None
        self.streams: set[Stream] = set()
        self.finished = 0  # requests, counted also without a scoreboard
        self.under_way = 0
        self.is_last: Callable[[Any], bool] | None = None
        """In a drain: is the answer that this `send` is for the last one on its connection?"""
        self._record = record

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        start: Any = None
        stream: Stream | None = None

        def counted(message: Any) -> Any:
            nonlocal start, stream
            if start is None:
                start = message
                self.answered(message.get("status", 500), time.perf_counter() - began)
                if self.is_last is not None and self.is_last(send):
                    message = _closing(message)
            elif stream is not None:
                return stream.pass_on(message)
            elif message.get("more_body") and _is_event_stream(start):
                stream = Stream(send)
                scope[ENDLESS] = True
                self.streams.add(stream)
                return stream.pass_on(message)
            return send(message)

        self.under_way += 1
        try:
            await self.app(scope, receive, counted)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self.failed(error, start is not None, time.perf_counter() - began)
            raise
        finally:
            self.under_way -= 1
            self.finished += 1
            if stream is not None:
                self.streams.discard(stream)

    def answered(self, status: int, seconds: float) -> None:
        record = self._record
        if record is None:
            return
        words = record.words
        words[record.base + _STATUS + min(max(status // 100, 1), 5)] += 1
        words[record.histogram + bucket(seconds)] += 1
        record.reals[record.base + FIELD["latency_sum"]] += seconds

    def failed(self, error: BaseException, started: bool, seconds: float) -> None:
        """An application that raises is answered for by uvicorn, with 500, which passes by us."""
        if not started:
            self.answered(500, seconds)
        if self._record is None:
            return
        if started:
            self._record.words[self._record.base + FIELD["broken"]] += 1
        self._record.set_text("error", f"{type(error).__name__}: {error}")
        self._record.set_real("error_at", time.time())


def _closing(start: Any) -> Any:
    """The same answer, saying that the connection ends with it."""
    headers = [pair for pair in start.get("headers", ()) if pair[0].lower() != b"connection"]
    return {**start, "headers": [*headers, CLOSE]}


def _is_event_stream(start: Any) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(_EVENT_STREAM)
        for name, value in start.get("headers", ())
    )
