"""A WSGI application as an ASGI one: a2wsgi with a pool of threads, and the three things it leaves to us."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any


def as_asgi(app: Any, threads: int) -> Any:
    """The ASGI application. Its `executor` is the pool."""
    from a2wsgi import WSGIMiddleware

    return _Guarded(WSGIMiddleware(_with_errors_on_stderr(app), workers=threads))


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

        def received() -> Any:
            self.moved += 1
            return receive()

        def sent(message: Any) -> Any:
            self.moved += 1
            return send(message)

        await self._inner(scope, received, sent)


def _with_errors_on_stderr(app: Any) -> Callable[[Any, Any], Iterable[bytes]]:
    def call(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.errors"] = sys.stderr
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return call
