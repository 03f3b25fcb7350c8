"""Listening sockets, and the sentence for each reason why there is none."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deployer.errors import DeniedError, DeployerError, Exit
from deployer.sockets import bind as module
from deployer.sockets.address import Address
from deployer.sockets.bind import AddressError, bind, bind_control, bind_private, inode


def unix(path: Path) -> Address:
    return Address("unix", path=str(path))


@pytest.fixture
def taken() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield Address("tcp", host="127.0.0.1", port=sock.getsockname()[1])


def refused(address: Address, error: OSError) -> DeployerError:
    return module._explain(address, error)


# What is bound


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_tcp_socket_listens_at_once(host: str, family: socket.AddressFamily) -> None:
    with closing(bind(Address("tcp", host=host, port=0), 16)) as sock:
        assert sock.family == family
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.get_inheritable()
        socket.create_connection(sock.getsockname()[:2], 1.0).close()


def test_a_unix_socket_is_open_to_a_proxy_of_another_user(tmp_path: Path) -> None:
    with closing(bind(unix(tmp_path / "app.sock"), 16)):
        assert stat.S_IMODE((tmp_path / "app.sock").stat().st_mode) == 0o666


def test_a_socket_file_that_nobody_listens_on_makes_way(tmp_path: Path) -> None:
    """A cluster that was killed leaves it behind."""
    bind(unix(tmp_path / "app.sock"), 16).close()
    assert (tmp_path / "app.sock").exists()
    bind(unix(tmp_path / "app.sock"), 16).close()


def test_a_private_socket_is_of_the_same_kind(tmp_path: Path) -> None:
    """For the preflight: another port of the same family on this machine alone, or a file of its own."""
    for public, family in (
        (Address("tcp", host="0.0.0.0", port=80), socket.AF_INET),
        (Address("tcp", host="::", port=80), socket.AF_INET6),
        (unix(Path("/run/app.sock")), socket.AF_UNIX),
    ):
        sock, address = bind_private(public, tmp_path, 3)
        with closing(sock):
            assert sock.family == family
            if family == socket.AF_UNIX:
                assert address.path == sock.getsockname() == str(tmp_path / "preflight-3.sock")
            else:
                assert (address.host, address.port) == sock.getsockname()[:2]
                assert address.host in ("127.0.0.1", "::1")


def test_the_control_socket_is_private_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode comes with the bind, not after it; the process's own umask is left as it was."""
    modes = []
    listen = socket.socket.listen
    path = tmp_path / "control.sock"
    path.write_text("left by a kill")

    def look(sock: socket.socket, backlog: int) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        listen(sock, backlog)

    before = os.umask(0)
    try:
        monkeypatch.setattr(socket.socket, "listen", look)
        bind_control(path).close()
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_an_inode_names_the_socket_whatever_the_descriptor() -> None:
    with socket.socket() as one, socket.socket() as other:
        with closing(one.dup()) as same:
            assert inode(one) == inode(same) != inode(other)


# What is refused, in words


def test_an_address_in_use_names_the_process(taken: Address) -> None:
    with pytest.raises(AddressError) as caught:
        bind(taken, 16)
    error = caught.value
    assert error.what.startswith(f"{taken} is in use by pid {os.getpid()} (")
    assert error.hint == "stop that process or change [[listen]] address, then: deployer up"
    assert (error.exit_code, error.reason) == (Exit.CONFIG, "address")


def test_a_unix_address_in_use_names_the_process_and_leaves_its_file(tmp_path: Path) -> None:
    with closing(bind(unix(tmp_path / "app.sock"), 16)):
        with pytest.raises(AddressError, match=rf"^unix:.*app\.sock is in use by pid {os.getpid()} \("):
            bind(unix(tmp_path / "app.sock"), 16)
        with closing(socket.socket(socket.AF_UNIX)) as visitor:
            visitor.connect(str(tmp_path / "app.sock"))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "app.sock").write_text("precious")
    with pytest.raises(AddressError, match=r"is in use$"):
        bind(unix(tmp_path / "app.sock"), 16)
    assert (tmp_path / "app.sock").read_text() == "precious"


def test_a_low_port_asks_for_another_or_for_root() -> None:
    """Said of the error itself: whoever runs this test may be root."""
    error = refused(Address("tcp", host="0.0.0.0", port=80), OSError(errno.EACCES, "Permission denied"))
    assert isinstance(error, DeniedError)
    assert error.what == "not allowed to listen on tcp://0.0.0.0:80"
    assert error.cause == "ports below 1024 need root or CAP_NET_BIND_SERVICE"
    assert error.exit_code is Exit.DENIED


def test_a_directory_that_may_not_be_written_is_the_owners_matter() -> None:
    error = refused(Address("unix", path="/run/app.sock"), OSError(errno.EACCES, "Permission denied"))
    assert isinstance(error, DeniedError)
    assert (error.what, error.cause) == ("not allowed to listen on unix:/run/app.sock", "Permission denied")
    assert error.hint == "check who owns the directory"


def test_any_other_reason_is_told_as_the_kernel_tells_it(tmp_path: Path) -> None:
    with pytest.raises(AddressError) as caught:
        bind(unix(tmp_path / "none" / "app.sock"), 16)
    assert caught.value.what == f"cannot listen on unix:{tmp_path}/none/app.sock"
    assert caught.value.cause == "No such file or directory"
    with pytest.raises(AddressError, match=r"^cannot listen on tcp://192\.0\.2\.1:8000$") as foreign:
        bind(Address("tcp", host="192.0.2.1", port=8000), 16)
    assert foreign.value.cause == "Cannot assign requested address"


def test_a_refused_bind_leaves_no_descriptor_open(taken: Address) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AddressError):
        bind(taken, 16)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_host_name_that_is_not_known_is_refused_in_words() -> None:
    """Said of the error itself: no test asks the network."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    error = refused(Address("tcp", host="shop.invalid", port=8000), unknown)
    assert (error.what, error.cause) == ("cannot listen on tcp://shop.invalid:8000", "Name or service not known")
