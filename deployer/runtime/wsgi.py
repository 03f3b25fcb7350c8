"""A WSGI application as an ASGI one: a2wsgi with a pool of threads, and the things it leaves to us."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

_cycle: ContextVar[Any] = ContextVar("cycle")
"""uvicorn's state of the request that a thread works on."""


def as_asgi(app: Any, threads: int) -> Any:
    """The ASGI application. Its `executor` is the pool."""
    from a2wsgi import WSGIMiddleware

    return _Guarded(WSGIMiddleware(_server_side(app), workers=threads))


class _Guarded:
    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.executor = inner.executor
        self.moved = 0  # parts of requests and answers that went through: who has slow clients is not stuck

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Without headers that have an underscore in the name: as CGI variables they pass for those with a hyphen,
        so that anyone could forge what a proxy in front has set."""
        if scope["type"] == "http" and any(b"_" in name for name, _ in scope["headers"]):
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if b"_" not in name]}
        _cycle.set(getattr(receive, "__self__", None))

        def received() -> Any:
            self.moved += 1
            return receive()

        def sent(message: Any) -> Any:
            self.moved += 1
            return send(message)

        await self._inner(scope, received, sent)


def _server_side(app: Any) -> Callable[[Any, Any], Iterable[bytes]]:
    """`app` with its errors on stderr, and with answers that end when nobody listens any more."""

    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.errors"] = sys.stderr
        answer: Iterable[bytes] = app(environ, start_response)
        cycle = _cycle.get()
        return answer if cycle is None or isinstance(answer, (list, tuple)) else _while_heard(answer, cycle)

    return call


def _while_heard(answer: Iterable[bytes], cycle: Any) -> Iterable[bytes]:
    """a2wsgi goes on when the client has left, or a drain has ended the event stream: a thread lost for ever."""
    try:
        for part in answer:
            yield part
            if cycle.disconnected or cycle.response_complete:
                return
    finally:
        getattr(answer, "close", lambda: None)()
