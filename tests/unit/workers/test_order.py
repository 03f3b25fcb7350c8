"""What a worker is told to become: its words, its environment, its limits."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from deployer.config.model import Config, Worker
from deployer.releases.release import Release
from deployer.releases.served import RUNTIME, lent, program
from deployer.workers import order


def config(**keys: Any) -> Worker:
    return Worker(command="serve", **keys)


def release(**env: str) -> Release:
    return Release("v1", Path("/srv/v1"), Config(name="shop", worker=config()), env)


# The command


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("serve --fd {fd}", ["serve", "--fd", "5"]),
        ("serve --web {fd:web} --admin={fd:admin}", ["serve", "--web", "5", "--admin=6"]),
        ("serve -n {worker} -r {release}", ["serve", "-n", "2", "-r", "v7"]),
        ("serve '{worker} of {release}' \"a b\"", ["serve", "2 of v7", "a b"]),
        ("serve -c '{{\"fd\": {fd}}}'", ["serve", "-c", '{"fd": 5}']),
        ("serve", ["serve"]),
    ],
)
def test_placeholders_are_filled_in_word_by_word(template: str, words: list[str]) -> None:
    """{fd} comes after the descriptors that LISTEN_FDS counts (3 and 4 here), so that no server takes one twice."""
    assert order.command(template, names=["web", "admin"], slot=2, release="v7") == words


def test_a_value_is_one_word_whatever_is_in_it() -> None:
    """Words are split before anything is filled in."""
    assert order.command("serve {release}", names=[], slot=1, release="v 7; rm -rf /") == ["serve", "v 7; rm -rf /"]


# The environment


def test_the_environment_is_built_anew() -> None:
    """A key of the last worker that neither base nor release has is gone; the release wins over the base."""
    base = {"PATH": "/bin", "LEVEL": "base"}
    first = order.environment(base, release(LEVEL="info", OLD="1"), {}, [])
    second = order.environment(base, release(LEVEL="debug"), {}, [])
    assert first == {"PATH": "/bin", "LEVEL": "info", "OLD": "1"}
    assert second == {"PATH": "/bin", "LEVEL": "debug"}
    assert base == {"PATH": "/bin", "LEVEL": "base"}


def test_what_our_own_starter_set_for_us_does_not_reach_a_worker() -> None:
    """systemd's words to us would make a worker believe it was spoken to."""
    base = dict.fromkeys(
        (
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "MAINPID",
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "DEPLOYER_KEEPER_FD",
            "DEPLOYER_OPEN_FILES",
        ),
        "theirs",
    )
    assert order.environment(base | {"HOME": "/root"}, release(), {}, []) == {"HOME": "/root"}


def test_our_own_words_win_over_the_release() -> None:
    """The configuration cannot claim another slot or notify socket."""
    env = order.environment({}, release(NOTIFY_SOCKET="/tmp/x", DEPLOYER_WORKER="9"), {"NOTIFY_SOCKET": "/run/y"}, [])
    assert env["NOTIFY_SOCKET"] == "/run/y"


def test_sockets_are_announced_in_their_order() -> None:
    env = order.environment({}, release(LISTEN_FDS="99"), {}, ["web", "admin"])
    assert (env["LISTEN_FDS"], env["LISTEN_FDNAMES"]) == ("2", "web:admin")
    assert "LISTEN_PID" not in env, "only the process itself knows it"


def test_without_sockets_none_are_announced() -> None:
    assert order.environment({"LISTEN_FDS": "1"}, release(), {}, []) == {}


# Limits and user


def test_by_default_nothing_is_limited() -> None:
    assert order.limits(config(), {}) == {
        "umask": None,
        "nice": None,
        "rlimits": [],
        "uid": None,
        "gid": None,
        "groups": [],
    }


def test_limits_are_numbers_for_the_shim() -> None:
    found = order.limits(config(umask="027", nice=5, rlimits={"nofile": 1000, "CORE": 0}), {})
    assert (found["umask"], found["nice"]) == (0o27, 5)
    assert found["rlimits"] == [[resource.RLIMIT_NOFILE, 1000], [resource.RLIMIT_CORE, 0]]


def test_open_files_start_from_what_they_were_before_the_keeper_raised_them() -> None:
    """What the configuration says comes later, and so counts."""
    found = order.limits(config(rlimits={"nofile": 2000}), {order.OPEN_FILES: "1024"})
    assert found["rlimits"] == [[resource.RLIMIT_NOFILE, 1024], [resource.RLIMIT_NOFILE, 2000]]


def test_root_gives_a_worker_its_user_with_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order.os, "geteuid", lambda: 0)
    found = order.limits(config(user="nobody"), {})
    assert found["uid"] == 65534
    assert found["gid"] in found["groups"]
    only_group = order.limits(config(group="root"), {})
    assert (only_group["uid"], only_group["gid"], only_group["groups"]) == (None, 0, [])


def test_others_leave_the_user_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order.os, "geteuid", lambda: 1000)
    assert order.limits(config(user="nobody"), {})["uid"] is None


@pytest.mark.parametrize("keys", [{"user": "no-such-user"}, {"group": "no-such-group"}])
def test_a_user_or_group_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]) -> None:
    monkeypatch.setattr(order.os, "geteuid", lambda: 0)
    with pytest.raises(OSError, match=r"no-such-.*on this machine \(\[worker\] user, group\)"):
        order.limits(config(**keys), {})


# An application that deployer serves itself


def served(environment: Path | None) -> list[str]:
    worker = Worker(app="shop:app", drain_timeout="10s", threads=4)
    return program(worker, environment)


def test_an_application_runs_on_our_interpreter_unless_its_release_has_one() -> None:
    assert served(None) == [sys.executable, RUNTIME, "--drain-timeout=10", "--threads=4", "shop:app"]
    words = served(Path("/srv/envs/a"))
    assert words[:2] == ["/srv/envs/a/bin/python", RUNTIME]
    assert words[-1] == "shop:app"


def test_what_is_lent_is_named_with_its_place_and_its_python() -> None:
    """And found without importing it: the manager needs none of it."""
    found = {word.partition(":")[2].partition("=")[0]: word for word in lent()}
    assert {"uvicorn", "h11", "click", "a2wsgi"} <= set(found)
    place = found["uvicorn"].partition("uvicorn=")[2]
    assert (Path(place) / "uvicorn" / "server.py").is_file()
    assert found["uvicorn"].startswith(f"--lend={sys.implementation.cache_tag}:")
