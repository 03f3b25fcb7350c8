"""The control API: one table of routes; a handler decodes, calls one method, answers.

Everyone who can open the socket may do everything: it is 0600, and `api.serve` checks the peer's uid besides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from deployer.api import openapi, streams
from deployer.errors import DeployerError, Exit
from deployer.manager.manager import Manager
from deployer.osutil.tasks import watched
from deployer.wire.schema import (
    AbortRequest,
    DeployRequest,
    Event,
    LogLine,
    PinRequest,
    Plan,
    Problem,
    ReleaseDetail,
    ReleaseInfo,
    RestartRequest,
    RollbackRequest,
    RolloutInfo,
    ScaleRequest,
    SettingsDiff,
    Status,
    StopRequest,
    WatchAgain,
    WatchBack,
    WatchInfo,
    WatchRequest,
    WatchStop,
)

T = TypeVar("T", bound=msgspec.Struct)

JSON, NDJSON, METRICS = "application/json", "application/x-ndjson", "text/plain; version=0.0.4; charset=utf-8"
HTTP_STATUS = {Exit.BUSY: 409, Exit.DENIED: 403, Exit.UNAVAILABLE: 503, Exit.BUG: 500, Exit.OK: 409}

log = structlog.get_logger()


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    summary: str
    handler: Callable[[Request], Awaitable[Response]]
    answer: Any
    body: type[msgspec.Struct] | None = None
    query: tuple[str, ...] = ()
    status: int = 200
    media: str = JSON


class Api:
    """The handlers, bound to one manager."""

    def __init__(self, manager: Manager, bell: streams.Bell) -> None:
        self._manager = manager
        self._bell = bell
        self._stopped = False
        self.endpoints = self._table()

    def application(self) -> Starlette:
        routes = [Route(e.path, e.handler, methods=[e.method]) for e in self.endpoints]
        routes += [Route("/openapi.json", self._openapi), Route("/docs", self._docs)]
        handlers: dict[Any, Any] = {DeployerError: refuse, HTTPException: no_such}
        handlers |= dict.fromkeys((msgspec.DecodeError, UnicodeDecodeError), bad_body)
        return Starlette(routes=routes, exception_handlers=handlers)

    def stop(self) -> None:
        """Streams end after what they have, so that the server can."""
        self._stopped = True
        self._bell.ring()

    def _table(self) -> list[Endpoint]:
        e, rollout, made = Endpoint, RolloutInfo, 202
        return [
            e("GET", "/v1/status", "What runs now", self._status, Status),
            e("GET", "/v1/releases", "All releases, newest first", self._releases, list[ReleaseInfo]),
            e("GET", "/v1/releases/{name}", "One release", self._release, ReleaseDetail),
            e("POST", "/v1/releases/{name}/pin", "Keep a release, or not", self._pin, ReleaseDetail, PinRequest),
            e("GET", "/v1/diff", "Settings of two releases", self._diff, SettingsDiff, query=("old", "new")),
            e("POST", "/v1/plan/deploy", "What a deploy would do", self._plan_deploy, Plan, DeployRequest),
            e("POST", "/v1/plan/rollback", "What a rollback would do", self._plan_rollback, Plan, RollbackRequest),
            e(
                "GET",
                "/v1/rollouts",
                "Rollouts, newest first",
                self._rollouts,
                list[RolloutInfo],
                query=("limit", "saves"),
            ),
            e("GET", "/v1/rollouts/{id:int}", "One rollout", self._rollout, rollout),
            e(
                "POST",
                "/v1/deploy",
                "Stage a release and roll it out",
                self._deploy,
                rollout,
                DeployRequest,
                status=made,
            ),
            e("POST", "/v1/rollback", "Go back to a release", self._rollback, rollout, RollbackRequest, status=made),
            e("POST", "/v1/restart", "Replace all workers", self._restart, rollout, RestartRequest, status=made),
            e("POST", "/v1/scale", "Change the number of workers", self._scale, rollout, ScaleRequest, status=made),
            e("POST", "/v1/abort", "Stop the rollout and revert", self._abort, rollout, AbortRequest, status=made),
            e("POST", "/v1/watch", "Put every save live", self._watch, WatchInfo, WatchRequest, status=made),
            e("POST", "/v1/watch/stop", "End the watch", self._watch_stop, dict, WatchStop, status=made),
            e("POST", "/v1/watch/again", "Deploy what is on disk", self._watch_again, rollout, WatchAgain, status=made),
            e("POST", "/v1/watch/back", "Back to the save before", self._watch_back, rollout, WatchBack, status=made),
            e("POST", "/v1/stop", "Retire all workers and end", self._stop, dict, StopRequest, status=made),
            e(
                "GET",
                "/v1/events",
                "What happened; one flat object a line",
                self._events,
                Event,
                query=("after", "rollout", "follow"),
                media=NDJSON,
            ),
            e(
                "GET",
                "/v1/logs",
                "What the workers print; one object a line",
                self._logs,
                LogLine,
                query=("lines", "follow", "slot", "release"),
                media=NDJSON,
            ),
            e("GET", "/metrics", "Numbers, as Prometheus reads them", self._metrics, str, media=METRICS),
        ]

    # Questions

    async def _status(self, request: Request) -> Response:
        return answer(self._manager.views.status())

    async def _releases(self, request: Request) -> Response:
        return answer(self._manager.catalog.infos())

    async def _release(self, request: Request) -> Response:
        return answer(self._manager.release(request.path_params["name"]))

    async def _diff(self, request: Request) -> Response:
        return answer(self._manager.diff(word(request, "old"), word(request, "new")))

    async def _plan_deploy(self, request: Request) -> Response:
        return answer(await self._manager.planner.deploy(await body(request, DeployRequest)))

    async def _plan_rollback(self, request: Request) -> Response:
        return answer(self._manager.planner.rollback(await body(request, RollbackRequest)))

    async def _rollouts(self, request: Request) -> Response:
        return answer(self._manager.views.rollouts(number(request, "limit") or 20, saves=flag(request, "saves")))

    async def _rollout(self, request: Request) -> Response:
        return answer(self._known(request.path_params["id"]))

    def _known(self, rollout: int) -> RolloutInfo:
        found = self._manager.views.rollout(rollout)
        if found is None:
            raise DeployerError(f"there is no rollout {rollout}", hint="deployer history", exit_code=Exit.USAGE)
        return found

    async def _events(self, request: Request) -> Response:
        if (rollout := number(request, "rollout")) is not None:
            self._known(rollout)
        stream = streams.events(
            self._manager.store,
            self._bell,
            after=number(request, "after") or 0,
            rollout=rollout,
            follow=flag(request, "follow"),
            stopped=lambda: self._stopped,
        )
        return StreamingResponse(stream, media_type=NDJSON)

    async def _logs(self, request: Request) -> Response:
        stream = streams.log_lines(
            self._manager.log,
            lines=100 if (lines := number(request, "lines")) is None else lines,
            follow=flag(request, "follow"),
            slot=number(request, "slot"),
            release=request.query_params.get("release"),
        )
        return StreamingResponse(stream, media_type=NDJSON)

    async def _metrics(self, request: Request) -> Response:
        from deployer.api import metrics  # what it needs is loaded for those who ask: 2 MB

        return Response(metrics.exposition(self._manager), media_type=METRICS)

    # Commands

    async def _deploy(self, request: Request) -> Response:
        return answer(self._manager.commands.deploy(await body(request, DeployRequest)), 202)

    async def _rollback(self, request: Request) -> Response:
        return answer(self._manager.commands.rollback(await body(request, RollbackRequest)), 202)

    async def _restart(self, request: Request) -> Response:
        return answer(self._manager.commands.restart(await body(request, RestartRequest)), 202)

    async def _scale(self, request: Request) -> Response:
        return answer(self._manager.commands.scale(await body(request, ScaleRequest)), 202)

    async def _abort(self, request: Request) -> Response:
        return answer(self._manager.commands.abort(await body(request, AbortRequest)), 202)

    async def _pin(self, request: Request) -> Response:
        wanted = await body(request, PinRequest)
        log.info("release.pin", release=request.path_params["name"], pinned=wanted.pinned, who=wanted.who)
        return answer(self._manager.pin(request.path_params["name"], pinned=wanted.pinned))

    async def _stop(self, request: Request) -> Response:
        wanted = await body(request, StopRequest)
        log.info("manager.stop_asked", who=wanted.who, now=wanted.now)
        watched(self._manager.stop(now=wanted.now))
        return answer({}, 202)

    async def _watch(self, request: Request) -> Response:
        return answer(self._manager.watches.start(await body(request, WatchRequest)), 202)

    async def _watch_stop(self, request: Request) -> Response:
        wanted = await body(request, WatchStop)
        self._manager.watches.stop(f"{wanted.who} ended it")
        return answer({}, 202)

    async def _watch_again(self, request: Request) -> Response:
        return answer(self._manager.watches.again((await body(request, WatchAgain)).who), 202)

    async def _watch_back(self, request: Request) -> Response:
        return answer(self._manager.watches.back((await body(request, WatchBack)).who), 202)

    # The page of this API

    async def _openapi(self, request: Request) -> Response:
        return answer(openapi.document(self.endpoints))

    async def _docs(self, request: Request) -> Response:
        return HTMLResponse(openapi.page(self.endpoints))


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeployerError)
    problem = Problem(
        what=error.what, cause=error.cause, hint=error.hint, exit=int(error.exit_code), reason=error.reason
    )
    return answer({"error": problem}, HTTP_STATUS.get(error.exit_code, 400))


async def bad_body(request: Request, error: Exception) -> Response:
    problem = Problem(what=f"the request cannot be understood: {error}", exit=int(Exit.USAGE), reason="usage")
    return answer({"error": problem}, 400)


async def no_such(request: Request, error: HTTPException) -> Response:
    """No route has this path (404), or none with this method (405)."""
    what = f"there is no {request.method} {request.url.path}"
    problem = Problem(what=what, hint="GET /openapi.json", exit=int(Exit.USAGE), reason="usage")
    return answer({"error": problem}, error.status_code)


async def body(request: Request, kind: type[T]) -> T:
    return msgspec.json.decode(await request.body(), type=kind)


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise DeployerError(f"{name} must be a number, not {text!r}", exit_code=Exit.USAGE, reason="usage")
    return int(text)


def word(request: Request, name: str) -> str:
    text = request.query_params.get(name)
    if not text:
        raise DeployerError(f"{name} is missing", exit_code=Exit.USAGE, reason="usage")
    return text


def flag(request: Request, name: str) -> bool:
    return request.query_params.get(name) in ("1", "true")
