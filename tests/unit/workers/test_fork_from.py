"""What the manager makes of a template's answer to its request."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from deployer.runtime.channel import Channel
from deployer.workers import start
from deployer.workers.start import CannotForkError, Theirs, fork_from


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Channel, Channel]]:
    """The manager's, and the template's; the next request is "mine"."""
    monkeypatch.setattr(start.secrets, "token_hex", lambda _: "mine")
    one, other = (Channel(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def theirs() -> Iterator[Theirs]:
    reading, writing = os.pipe()
    yield Theirs(order_r=reading, outputs=(writing, writing), line=reading, hold=(reading,), sockets=(writing, reading))
    os.close(reading)
    os.close(writing)


def test_an_answer_that_was_meant_for_a_manager_that_died_is_none(
    ends: tuple[Channel, Channel], theirs: Theirs
) -> None:
    """Its worker got no order, and the pid may be anybody's by now."""
    ends[1].send({"op": "forked", "id": "of another", "pid": 1})
    ends[1].send({"op": "forked", "id": "mine", "pid": 2})
    assert fork_from(ends[0])(theirs) == 2
    found = ends[1].receive()
    assert found is not None
    message, fds = found
    assert message == {"op": "fork", "id": "mine", "sockets": 2}
    assert len(fds) == 7
    for fd in fds:
        os.close(fd)


def test_a_fork_that_failed_is_told_at_once(ends: tuple[Channel, Channel], theirs: Theirs) -> None:
    ends[1].send({"op": "forked", "id": "mine", "pid": None})
    with pytest.raises(CannotForkError, match="failed"):
        fork_from(ends[0])(theirs)


def test_a_template_that_ended_forks_nothing(ends: tuple[Channel, Channel], theirs: Theirs) -> None:
    ends[1].close()
    with pytest.raises(CannotForkError):
        fork_from(ends[0])(theirs)


def test_a_template_that_hangs_is_waited_for_a_while(
    ends: tuple[Channel, Channel], theirs: Theirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "FORK_LIMIT_S", 0.02)
    with pytest.raises(CannotForkError, match="within"):
        fork_from(ends[0])(theirs)
