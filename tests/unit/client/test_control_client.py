"""The client against a real unix socket: what is sent, what comes back, and what each failure becomes."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from scripted_manager import Cut, ScriptedManager, rollout_info, status

from deployer.client.client import Client
from deployer.client.transport import UnixConnection
from deployer.errors import (
    BusyError,
    ConfigError,
    DeniedError,
    DeployerError,
    Exit,
    SourceError,
    UnavailableError,
)
from deployer.paths import Layout
from deployer.wire.schema import (
    AbortRequest,
    DeployRequest,
    RestartRequest,
    RollbackRequest,
    ScaleRequest,
    StopRequest,
    WatchRequest,
)

WATCH = {"id": 3, "kind": "dev", "path": "/srv", "mode": None, "directories": 0, "who": "me", "since": 1.0, "saves": 0}


def test_status_is_decoded_and_fields_of_a_newer_manager_are_ignored(manager: ScriptedManager, layout: Layout) -> None:
    manager.answers["GET /v1/status"] = 200, status(invented_later=True)

    answer = Client(layout).status()

    assert (answer.app, answer.release, answer.workers[1].pid) == ("shop", "v7", 9011)


@pytest.mark.parametrize(
    ("verb", "request_", "path"),
    [
        ("deploy", DeployRequest(who="ana", git="https://h/x.git", ref="main"), "POST /v1/deploy"),
        ("rollback", RollbackRequest(who="ana", release="v3"), "POST /v1/rollback"),
        ("restart", RestartRequest(who="ana"), "POST /v1/restart"),
        ("scale", ScaleRequest(who="ana", count=3), "POST /v1/scale"),
        ("abort", AbortRequest(who="ana"), "POST /v1/abort"),
    ],
)
def test_a_verb_posts_its_request_and_answers_the_rollout(
    manager: ScriptedManager, layout: Layout, verb: str, request_: Any, path: str
) -> None:
    manager.answers[path] = 202, rollout_info()

    info = getattr(Client(layout), verb)(request_)

    assert info.id == 12
    [body] = manager.bodies(path)
    assert body.items() >= {"who": "ana"}.items()
    assert {key: value for key, value in body.items() if value is not None} == {
        key: getattr(request_, key) for key in request_.__struct_fields__ if getattr(request_, key) is not None
    }


def test_lists_and_stop(manager: ScriptedManager, layout: Layout) -> None:
    manager.answers["GET /v1/releases"] = 200, []
    manager.answers["GET /v1/rollouts"] = 200, [rollout_info()]
    manager.answers["GET /v1/rollouts/12"] = 200, rollout_info(phase="rolling")
    manager.answers["POST /v1/stop"] = 202, {}
    client = Client(layout)

    assert client.releases() == []
    assert [info.id for info in client.rollouts(limit=3)] == [12]
    assert manager.queries("GET /v1/rollouts") == [{"limit": "3"}]
    assert client.rollout(12).phase == "rolling"
    client.stop(StopRequest(who="ana", now=True))
    assert manager.bodies("POST /v1/stop") == [{"who": "ana", "now": True}]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(75, BusyError), (78, ConfigError), (77, DeniedError), (69, UnavailableError), (6, DeployerError)],
)
def test_a_problem_becomes_the_error_of_its_exit_code(
    manager: ScriptedManager, layout: Layout, code: int, kind: type[DeployerError]
) -> None:
    problem = {"what": "no", "cause": "because", "hint": "deployer follow", "exit": code, "reason": "busy"}
    manager.answers["POST /v1/deploy"] = 409, {"error": problem}

    with pytest.raises(kind) as caught:
        Client(layout).deploy(DeployRequest(who="ana"))

    error = caught.value
    assert (error.what, error.cause, error.hint) == ("no", "because", "deployer follow")
    assert (error.exit_code, error.reason) == (code, "busy")
    assert not isinstance(error, SourceError)


def test_an_error_page_that_is_no_problem_is_reported_with_its_status(manager: ScriptedManager, layout: Layout) -> None:
    manager.answers["GET /v1/status"] = 500, b"Internal Server Error"

    with pytest.raises(DeployerError, match="HTTP 500") as caught:
        Client(layout).status()

    assert caught.value.exit_code == Exit.BUG


def test_an_answer_of_another_form_is_not_a_traceback(manager: ScriptedManager, layout: Layout) -> None:
    manager.answers["GET /v1/status"] = 200, {"app": 5}

    with pytest.raises(UnavailableError, match="makes no sense"):
        Client(layout).status()


def test_no_socket_says_how_to_start(layout: Layout) -> None:
    with pytest.raises(UnavailableError) as caught:
        Client(layout).status()

    assert caught.value.hint == "deployer up"
    assert caught.value.exit_code == 69


def test_a_socket_file_that_nobody_listens_on_says_how_to_start(layout: Layout) -> None:
    layout.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(layout.control_socket))

    with pytest.raises(UnavailableError) as caught:
        Client(layout).status()

    assert caught.value.hint == "deployer up"


def test_a_manager_that_does_not_answer_is_given_up(layout: Layout) -> None:
    layout.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(layout.control_socket))
        sock.listen(1)

        with pytest.raises(UnavailableError, match="does not answer"):
            Client(layout, timeout=0.05).status()


def test_a_command_is_asked_again_of_the_next_manager_by_the_same_key(manager: ScriptedManager, layout: Layout) -> None:
    """It may have been begun by the one that died before it answered."""
    tries: list[str] = []

    def answer(query: dict[str, str], body: Any) -> tuple[int, Any]:
        tries.append(body["key"])
        if len(tries) < 3:
            raise Cut
        return 202, rollout_info()

    manager.answers["POST /v1/deploy"] = answer
    assert Client(layout).deploy(DeployRequest(who="me")).id == rollout_info()["id"]
    assert len(tries) == 3
    assert len(set(tries)) == 1
    assert Client(layout).deploy(DeployRequest(who="me")).id == rollout_info()["id"]
    assert tries[3] != tries[2], "another command has another key"


def test_a_watch_is_asked_for_again_of_the_next_manager(manager: ScriptedManager, layout: Layout) -> None:
    answers = [None, (202, WATCH)]

    def answer(query: dict[str, str], body: Any) -> tuple[int, Any]:
        found = answers.pop(0)
        if found is None:
            raise Cut
        return found

    manager.answers["POST /v1/watch"] = answer
    assert Client(layout).watch(WatchRequest(who="me", holder=4711)).id == 3
    assert [body["holder"] for body in manager.bodies("POST /v1/watch")] == [4711, 4711]


def test_an_answer_cut_short_is_unavailable(manager: ScriptedManager, layout: Layout) -> None:
    class Short(bytes):
        def __len__(self) -> int:
            return 1000

    manager.answers["GET /v1/status"] = 200, Short(b"{")

    with pytest.raises(UnavailableError, match="broke off"):
        Client(layout, timeout=2).status()


def test_a_path_too_long_for_a_socket_names_the_key_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long") as caught:
        Client(Layout(tmp_path / ("x" * 120))).status()

    assert caught.value.exit_code == 78


def test_another_users_socket_is_denied(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: UnixConnection) -> None:
        raise PermissionError(13, "Permission denied")  # what connect(2) gives to all but root and the owner

    monkeypatch.setattr(UnixConnection, "connect", refuse)

    with pytest.raises(DeniedError) as caught:
        Client(layout).status()

    assert caught.value.exit_code == 77
