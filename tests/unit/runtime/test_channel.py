"""The line between a worker and the manager: messages with descriptors, and what happens when nobody is there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from deployer.runtime import template
from deployer.runtime.channel import ENVIRONMENT_KEY, MESSAGE_MAX, Channel
from deployer.workers import shim


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield one, other
    one.close()
    other.close()


def test_a_message_comes_whole_with_its_descriptors(ends: tuple[Channel, Channel]) -> None:
    """And one after the other."""
    reading, writing = os.pipe()
    assert ends[0].send({"op": "serve", "slot": 1}, [writing])
    assert ends[0].send({"op": "message", "data": "ä"})
    found = ends[1].receive()
    assert found is not None
    message, (copy,) = found
    assert message == {"op": "serve", "slot": 1}
    assert not os.get_inheritable(copy)
    os.write(copy, b"through")
    assert os.read(reading, 10) == b"through"
    assert ends[1].receive() == ({"op": "message", "data": "ä"}, [])
    assert ends[1].receive() is None
    for fd in (reading, writing, copy):
        os.close(fd)


def test_many_names_come_in_several_messages(ends: tuple[Channel, Channel]) -> None:
    names = [f"package.módulo{number}" for number in range(4000)]
    assert ends[0].send_names("import", names)
    found = []
    while (message := ends[1].receive()) is not None:
        assert message[0]["op"] == "import"
        found.append(message[0]["names"])
    assert [name for part in found for name in part] == names
    assert len(found) == 2


def test_nobody_waits_for_who_does_not_read(ends: tuple[Channel, Channel]) -> None:
    sent = 0
    while ends[0].send({"data": "x" * 10_000}):
        sent += 1
        assert sent < 1000
    assert sent > 1
    assert ends[1].receive() is not None
    assert ends[0].send({"data": "there is room again"})


def test_the_end_is_told(ends: tuple[Channel, Channel]) -> None:
    ends[0].send({"op": "last"})
    ends[0].close()
    assert ends[1].receive() == ({"op": "last"}, [])
    with pytest.raises(EOFError):
        ends[1].receive()
    assert not ends[1].send({"op": "too late"})


def test_too_long_a_message_is_refused(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        ends[0].send({"data": "x" * MESSAGE_MAX})


def test_it_is_found_by_its_variable_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_KEY, raising=False)
    assert Channel.from_environment() is None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = theirs.detach()
    os.set_inheritable(fd, True)
    monkeypatch.setenv(ENVIRONMENT_KEY, str(fd))
    found = Channel.from_environment()
    assert found is not None
    assert not os.get_inheritable(fd)
    assert ENVIRONMENT_KEY not in os.environ
    found.close()
    ours.close()


def test_a_fork_without_an_order_ends_as_a_shim_without_one() -> None:
    """The manager tells by that code that the program never ran."""
    assert template.NO_ORDER == shim.NO_ORDER
