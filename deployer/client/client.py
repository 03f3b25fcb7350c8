"""One method for each verb of the control API (docs/architecture.md, "Control API")."""

from __future__ import annotations

import os
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from deployer.client.account import read_state
from deployer.client.transport import MAX_SOCKET_PATH, HTTPException, HTTPResponse, Stream, UnixConnection
from deployer.errors import BusyError, ConfigError, DeniedError, DeployerError, Exit, UnavailableError
from deployer.paths import Layout
from deployer.wire.schema import (
    AbortRequest,
    Command,
    DeployRequest,
    Message,
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

ANSWER_TIMEOUT_S = 10.0
"""An answer is a look at memory or one commit to state.db; a manager that takes longer hangs."""
PLAN_TIMEOUT_S = 15 * 60.0
"""A dry run fetches the source as a deploy would."""

NEXT_MANAGER_S = 30.0
PAUSE_S = 0.05

T = TypeVar("T")

_CLASSES: dict[int, type[DeployerError]] = {
    Exit.BUSY: BusyError,
    Exit.CONFIG: ConfigError,
    Exit.DENIED: DeniedError,
    Exit.UNAVAILABLE: UnavailableError,
}


class BrokenOffError(UnavailableError):
    """It died, or was stopped, before it had answered."""


class Client:
    """Asks the manager that serves `layout`; keeps no connection between calls."""

    def __init__(self, layout: Layout, timeout: float = ANSWER_TIMEOUT_S) -> None:
        self.layout = layout
        self.timeout = timeout

    def status(self) -> Status:
        return self._call("GET", "/v1/status", Status)

    def releases(self) -> list[ReleaseInfo]:
        return self._call("GET", "/v1/releases", list[ReleaseInfo])

    def release(self, name: str) -> ReleaseDetail:
        return self._call("GET", f"/v1/releases/{quote(name, safe='')}", ReleaseDetail)

    def pin(self, name: str, request: PinRequest) -> ReleaseDetail:
        return self._call("POST", f"/v1/releases/{quote(name, safe='')}/pin", ReleaseDetail, request)

    def diff(self, old: str, new: str) -> SettingsDiff:
        return self._call("GET", _path("/v1/diff", old=old, new=new), SettingsDiff)

    def plan_deploy(self, request: DeployRequest) -> Plan:
        patient = Client(self.layout, timeout=PLAN_TIMEOUT_S)
        return patient._call("POST", "/v1/plan/deploy", Plan, request)

    def plan_rollback(self, request: RollbackRequest) -> Plan:
        return self._call("POST", "/v1/plan/rollback", Plan, request)

    def rollouts(self, limit: int = 20, *, saves: bool = False) -> list[RolloutInfo]:
        """Newest first; with those of saves, or without."""
        return self._call("GET", _path("/v1/rollouts", limit=limit, saves=int(saves) or None), list[RolloutInfo])

    def rollout(self, rollout: int) -> RolloutInfo:
        return self._call("GET", f"/v1/rollouts/{rollout}", RolloutInfo)

    def deploy(self, request: DeployRequest) -> RolloutInfo:
        return self._command("/v1/deploy", request)

    def rollback(self, request: RollbackRequest) -> RolloutInfo:
        return self._command("/v1/rollback", request)

    def restart(self, request: RestartRequest) -> RolloutInfo:
        return self._command("/v1/restart", request)

    def scale(self, request: ScaleRequest) -> RolloutInfo:
        return self._command("/v1/scale", request)

    def abort(self, request: AbortRequest) -> RolloutInfo:
        return self._call("POST", "/v1/abort", RolloutInfo, request)

    def stop(self, request: StopRequest) -> None:
        self._call("POST", "/v1/stop", dict, request)

    def watch(self, request: WatchRequest) -> WatchInfo:
        """Asked again by the same holder, since no answer came, a manager answers the watch that it has."""
        return self._until_answered("/v1/watch", WatchInfo, request)

    def watch_stop(self, request: WatchStop) -> None:
        self._call("POST", "/v1/watch/stop", dict, request)

    def watch_again(self, request: WatchAgain) -> RolloutInfo:
        return self._call("POST", "/v1/watch/again", RolloutInfo, request)

    def watch_back(self, request: WatchBack) -> RolloutInfo:
        return self._call("POST", "/v1/watch/back", RolloutInfo, request)

    def events(self, *, after: int = 0, rollout: int | None = None, follow: bool = False) -> Stream:
        """Lines of JSON, one an event; `deployer.client.follow` makes something lasting of them."""
        return self._stream(_path("/v1/events", after=after, rollout=rollout, follow=int(follow) or None))

    def logs(
        self,
        *,
        lines: int = 100,
        follow: bool = False,
        slot: int | None = None,
        release: str | None = None,
    ) -> Stream:
        """Lines of JSON, one a LogLine."""
        query = {"lines": lines, "follow": int(follow) or None, "slot": slot, "release": release}
        return self._stream(_path("/v1/logs", **query))

    # Private.

    def _command(self, path: str, request: Command) -> RolloutInfo:
        """A manager that dies before it has answered may have begun what it was asked: the next one knows the key."""
        return self._until_answered(path, RolloutInfo, msgspec.structs.replace(request, key=os.urandom(8).hex()))

    def _until_answered(self, path: str, answer: type[T], body: Message) -> T:
        give_up = monotonic() + NEXT_MANAGER_S
        while True:
            try:
                return self._call("POST", path, answer, body)
            except BrokenOffError:
                if monotonic() >= give_up:
                    raise
                sleep(PAUSE_S)

    def _call(self, method: str, path: str, answer: type[T], body: Message | None = None) -> T:
        with self._request(method, path, body) as exchange:
            try:
                data = exchange.response.read()
            except (OSError, HTTPException) as error:
                raise self._unreachable(error) from error
        return _decode(data, answer)

    def _stream(self, path: str) -> Stream:
        exchange = self._request("GET", path, None)
        return Stream(exchange.connection, exchange.sock, exchange.response)

    def _request(self, method: str, path: str, body: Message | None) -> _Exchange:
        connection = UnixConnection(str(self.layout.control_socket), self.timeout)
        try:
            return self._exchange(connection, method, path, body)
        except (OSError, HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except BaseException:
            connection.close()
            raise

    def _exchange(self, connection: UnixConnection, method: str, path: str, body: Message | None) -> _Exchange:
        payload = None if body is None else msgspec.json.encode(body)
        headers = {"Connection": "close"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, payload, headers)
        # An answer that ends with the connection takes the socket away from it: hold on to it here.
        sock = connection.sock
        response = connection.getresponse()
        exchange = _Exchange(connection, sock, response)
        if response.status >= 400:
            with exchange:
                raise _refusal(self.layout, response.status, response.read())
        return exchange

    def _unreachable(self, error: Exception) -> DeployerError:
        path = self.layout.control_socket
        if isinstance(error, PermissionError):
            return DeniedError(
                f"you may not talk to the supervisor of {self.layout.root}",
                cause=f"{path} belongs to another user",
                hint=f"sudo -u '#{_owner(self.layout)}' deployer status",
            )
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            return ConfigError(
                f"the path of the control socket is too long ({len(str(path).encode())} bytes)",
                cause=f"{path}: a unix socket's path has at most {MAX_SOCKET_PATH} bytes",
                hint='set a shorter `root = "..."` in deployer.toml',
            )
        if isinstance(error, TimeoutError):
            state = read_state(self.layout)
            if state is not None and state.state == "failed" and state.problem is not None:
                return _failing(self.layout, state.problem)
            return UnavailableError(
                f"the supervisor of {self.layout.root} does not answer",
                cause=f"nothing came from {path} in {self.timeout:.0f}s",
                hint="deployer status",
            )
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return UnavailableError(
                f"no supervisor runs for {self.layout.root}",
                cause=f"nothing listens on {path}",
                hint="deployer up",
            )
        return BrokenOffError(
            f"the supervisor of {self.layout.root} broke off the conversation",
            cause=str(error) or type(error).__name__,
            hint="deployer status",
        )


class _Exchange:
    """A request whose answer has begun; closing it lets go of everything."""

    def __init__(self, connection: UnixConnection, sock: Any, response: HTTPResponse) -> None:
        self.connection = connection
        self.sock = sock
        self.response = response

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()
        self.sock.close()


class _Refusal(msgspec.Struct):
    error: Problem


def problem_error(problem: Problem) -> DeployerError:
    """The exception for what the other side says went wrong; its class follows the exit code."""
    code = Exit(problem.exit) if problem.exit in set(Exit) else Exit.BUG
    return _CLASSES.get(code, DeployerError)(
        problem.what, cause=problem.cause, hint=problem.hint, exit_code=code, reason=problem.reason
    )


def _failing(layout: Layout, problem: Problem) -> UnavailableError:
    """The keeper holds the socket, so a manager that fails at every start looks like one that is slow to answer."""
    cause = f"{problem.what}: {problem.cause}" if problem.cause else problem.what
    what = f"the manager of {layout.root} fails each time it is started; workers that run keep serving"
    return UnavailableError(what, cause=cause, hint=problem.hint or f"tail -n 20 {layout.own_log}")


def _refusal(layout: Layout, status: int, data: bytes) -> DeployerError:
    try:
        return problem_error(msgspec.json.decode(data, type=_Refusal).error)
    except msgspec.MsgspecError:
        text = data.decode(errors="replace").strip()[:300]
        what, hint = f"the supervisor answered HTTP {status}", f"tail -n 20 {layout.own_log}"
        return DeployerError(what, cause=text or None, hint=hint, reason="bug")


def _decode(data: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=answer)
    except msgspec.MsgspecError as error:
        raise UnavailableError(
            "the supervisor's answer makes no sense to this version of deployer",
            cause=str(error),
            hint="deployer --version",
        ) from error


def _path(path: str, **query: object) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _owner(layout: Layout) -> int | str:
    try:
        return layout.run.stat().st_uid
    except OSError:
        return "UID"
