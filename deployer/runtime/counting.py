"""Around the application: counts its answers on the scoreboard, and knows the event streams that are open.

It stands in the way of every request, so it is written for few steps. Latency is the time until the head of the
answer is there: an endless stream or a slow reader says nothing about the application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from .histogram import BUCKETS, SUB, SUB_BITS, TICK_BITS
from .scoreboard import FIELD, STATUSES, Record

_EVENT_STREAM = b"text/event-stream"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DEAF_S = 0.05  # what a send into an ended stream takes: an application that never looks up must not take the loop
_STATUS_END = 100 * STATUSES
ENDLESS = "deployer.event_stream"  # in the scope of one
CLOSE = (b"connection", b"close")
PROBE = b"deployer-probe"  # a header that the manager's health checks have: they are no visitors


class Stream:
    """An answer of server-sent events that is under way."""

    def __init__(self, send: Any, task: asyncio.Task[Any], streams: set[Stream]) -> None:
        self._send, self.task = send, task
        task.add_done_callback(lambda _: streams.discard(self))
        streams.add(self)
        self.ended_at: float | None = None
        self.between_events = True
        self._ending: asyncio.Task[Any] | None = None

    def end(self) -> None:
        """Finish the answer properly; what the application still sends goes nowhere, and it hears `http.disconnect`."""
        loop = asyncio.get_running_loop()
        self.ended_at = loop.time()
        last = self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._ending = loop.create_task(last)

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    @property
    def transport(self) -> Any:
        """Of its connection: `send` is a method of uvicorn's cycle."""
        return self._send.__self__.transport

    async def pass_on(self, message: Any) -> None:
        if self.ended:
            await asyncio.sleep(_DEAF_S)
            return
        body = message.get("body", b"")
        if body:
            self.between_events = body.endswith(_EVENT_ENDS)
        await self._send(message)


class Counting:
    """The application that uvicorn calls, without middleware of its own. `serve` sets what it is."""

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self.is_last: Callable[[Any], bool] | None = None
        """In a drain: is the answer that this `send` is for the last one on its connection?"""
        self._app: Any = None
        self._proxied: Any = None

    def serve(self, app: Any, with_proxy_headers: Callable[[Any], Any], record: Record | None) -> None:
        """`with_proxy_headers` is uvicorn's middleware: it is asked when there are such headers, not each time."""
        self._app, self._proxied = app, with_proxy_headers(self._counted)
        self._record = record
        if record is None:
            self._statuses = memoryview(bytearray(8 * STATUSES)).cast("Q")
            self._histogram = memoryview(bytearray(8 * BUCKETS)).cast("Q")
        else:
            self._statuses, self._histogram = record.statuses, record.histogram

    @property
    def moved(self) -> int:
        """Parts of bodies that the threads of a WSGI application have taken and given."""
        moved: int = getattr(self._app, "moved", 0)
        return moved

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "http":
            names = dict(scope["headers"])
            if b"x-forwarded-for" not in names and b"x-forwarded-proto" not in names:
                if PROBE in names:
                    await self._app(scope, receive, self._uncounted(send))
                    return
                # The body of `_counted` is here once more: a call less for nearly every request.
                counted = self._counter(scope, send)
                try:
                    await self._app(scope, receive, counted)
                except Exception as error:
                    self._failed(error, counted)
                    raise
                return
        if kind == "lifespan":
            await self._app(scope, receive, send)
        else:
            await self._proxied(scope, receive, send)

    async def _counted(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = self._counter(scope, send)
        try:
            await self._app(scope, receive, counted)
        except Exception as error:
            self._failed(error, counted)
            raise

    def _counter(self, scope: Any, send: Any) -> Any:
        """The `send` that the application gets."""
        task = asyncio.current_task()  # here, not in `counted`: a WSGI application's answers come from another
        began = perf_counter_ns()
        start: Any = None
        stream: Stream | None = None

        def counted(message: Any) -> Any:
            nonlocal start, stream
            if start is None:
                if message is None:  # asked by `_failed`: nothing was sent
                    return False
                start = message
                status = message.get("status", 500)
                self._statuses[status // 100 if status < _STATUS_END else 0] += 1  # 0: of no class
                ticks = (perf_counter_ns() - began) >> TICK_BITS
                if ticks >= SUB:
                    shift = ticks.bit_length() - SUB_BITS - 1
                    ticks = (shift << SUB_BITS) + (ticks >> shift)
                self._histogram[ticks if ticks < BUCKETS else BUCKETS - 1] += 1
                if self.is_last is not None and self.is_last(send):
                    message = _closing(message)
                send.__self__.transport.hold()
            elif message is None:
                return True
            elif stream is not None:
                return stream.pass_on(message)
            elif message.get("more_body") and _is_event_stream(start):
                assert task is not None
                stream = Stream(send, task, self.streams)
                scope[ENDLESS] = True
                return stream.pass_on(message)
            return send(message)

        return counted

    def _uncounted(self, send: Any) -> Any:
        """The `send` of a request that is not a visitor's; in a drain its connection ends like any other."""

        def passed(message: Any) -> Any:
            if self.is_last is not None and message["type"] == "http.response.start" and self.is_last(send):
                message = _closing(message)
            return send(message)

        return passed

    def _failed(self, error: Exception, counted: Any) -> None:
        """An application that raises is answered for by uvicorn, with 500, which passes by us."""
        started = counted(None)
        if not started:
            self._statuses[5] += 1
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
