"""Who accepted a connection: told by the kernel, for every kind of socket a cluster may listen on."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.sockets import peers
from deployer.sockets.bind import inode
from deployer.sockets.peers import peer_inode
from deployer.workers.listening import holder_of

KINDS = ["tcp", "tcp6", "tcp4 on a tcp6 socket", "unix"]


@pytest.fixture(params=KINDS)
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "sock"))
        sock.listen()
    elif request.param == "tcp":
        sock = socket.create_server(("127.0.0.1", 0))
    elif request.param == "tcp6":
        sock = socket.create_server(("::1", 0), family=socket.AF_INET6)
    else:
        sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with sock:
        yield sock


def visit(listener: socket.socket) -> socket.socket:
    if listener.family == socket.AF_UNIX:
        visitor = socket.socket(socket.AF_UNIX)
        visitor.connect(listener.getsockname())
        return visitor
    host, port = listener.getsockname()[:2]
    return socket.create_connection(("127.0.0.1" if host == "::" else host, port), 5.0)


def test_the_accepted_socket_is_found(listener: socket.socket) -> None:
    """Of several, each visitor's own."""
    visitors = [visit(listener) for _ in range(5)]
    accepted = [listener.accept()[0] for _ in visitors]
    try:
        assert [peer_inode(visitor) for visitor in visitors] == [inode(sock) for sock in accepted]
    finally:
        for sock in (*visitors, *accepted):
            sock.close()


def test_there_is_nobody_while_a_connection_waits_in_the_queue(listener: socket.socket) -> None:
    with visit(listener) as visitor:
        assert peer_inode(visitor) is None
        accepted, _ = listener.accept()
        with accepted:
            assert peer_inode(visitor) == inode(accepted)


def test_a_peer_that_is_gone_or_was_never_there_is_nobody(listener: socket.socket) -> None:
    with visit(listener) as visitor:
        accepted, _ = listener.accept()
        accepted.close()
        assert peer_inode(visitor) is None
    with socket.socket(listener.family) as alone:
        assert peer_inode(alone) is None


def test_the_socket_of_another_process_is_found(listener: socket.socket) -> None:
    """Workers are processes of their own; all share the listening socket."""
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(fileno=int(sys.argv[1])).accept()[0]\n"
        "s.send(b'%d' % os.fstat(s.fileno()).st_ino)\n"
        "s.recv(1)"
    )
    fd = listener.fileno()
    with visit(listener) as visitor:
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", code, str(fd)], pass_fds=[fd]) as process:
            visitor.settimeout(10.0)
            told = int(visitor.recv(100))
            assert peer_inode(visitor) == told
            assert holder_of(told, [process.pid]) == process.pid
            visitor.send(b"x")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_kernel_without_inet_diag_is_asked_by_its_tables(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in some containers: every question is answered with ENOENT."""

    def unknown(request: bytes) -> bytes:
        raise FileNotFoundError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener, visit(listener) as visitor:
        monkeypatch.setattr(peers, "_ask", unknown)
        assert peer_inode(visitor) is None
        accepted, _ = listener.accept()
        with accepted:
            assert peer_inode(visitor) == inode(accepted)
