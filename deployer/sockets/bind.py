"""Listening sockets: bound once by the supervisor and shared by all workers.

One shared descriptor, never closed between releases, is what loses no queued connection: of two SO_REUSEPORT
listeners, closing one drops those in its queue.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import psutil

from deployer.errors import DeniedError, DeployerError, Exit
from deployer.sockets.address import Address


class AddressError(DeployerError):
    """The address cannot be listened on."""

    exit_code = Exit.CONFIG
    reason = "address"


def bind(address: Address, backlog: int) -> socket.socket:
    """A listening socket. AddressError says who has the address, DeniedError that the user may not."""
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        if address.kind == "unix":
            _make_way(Path(address.path))
            sock.bind(address.path)
            os.chmod(address.path, 0o666)  # noqa: S103  # a proxy of another user connects; the directory guards it
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit it. Servers that are handed a socket often leave Nagle's algorithm on:
            # plain uvicorn then answers keep-alive clients in 43 ms instead of 0.6 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((address.host, address.port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise _explain(address, error) from error
    return sock


def bind_private(address: Address, directory: Path, number: int) -> tuple[socket.socket, Address]:
    """A socket of the same family that only this machine's preflight knows of."""
    if address.kind == "unix":
        private = Address(kind="unix", path=str(directory / f"preflight-{number}.sock"))
        return bind(private, 16), private
    host = "::1" if ":" in address.host else "127.0.0.1"
    sock = bind(Address(kind="tcp", host=host, port=0), 16)
    return sock, Address(kind="tcp", host=host, port=sock.getsockname()[1])


def bind_control(path: Path) -> socket.socket:
    """The control API's socket: 0600 from its first moment on, since umask counts at bind."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise _explain(Address(kind="unix", path=str(path)), error) from error
    finally:
        os.umask(before)
    sock.listen(128)
    return sock


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def _family(address: Address) -> socket.AddressFamily:
    if address.kind == "unix":
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _make_way(path: Path) -> None:
    """Remove a socket file that nobody listens on any more; anything else there is left alone."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # full queue or no permission: somebody is there; bind will say so


def _explain(address: Address, error: OSError) -> DeployerError:
    if error.errno == errno.EADDRINUSE:
        holder = _holder(address)
        return AddressError(
            f"{address} is in use" + (f" by {holder}" if holder else ""),
            cause="another process listens there, so no worker could be reached",
            hint="stop that process or change [[listen]] address, then: deployer up",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        low = address.kind == "tcp" and address.port < 1024
        return DeniedError(
            f"not allowed to listen on {address}",
            cause="ports below 1024 need root or CAP_NET_BIND_SERVICE" if low else error.strerror,
            hint="use a port from 1024 on behind a proxy, or start as root" if low else "check who owns the directory",
        )
    return AddressError(f"cannot listen on {address}", cause=error.strerror, hint="deployer check")


def _holder(address: Address) -> str | None:
    """ "pid 4711 (nginx)", as far as we may see."""
    for connection in psutil.net_connections("unix" if address.kind == "unix" else "tcp"):
        local: Any = connection.laddr
        if address.kind == "unix":
            same = local == address.path
        else:
            same = connection.status == psutil.CONN_LISTEN and local.port == address.port
        if same and connection.pid:
            try:
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
            except psutil.NoSuchProcess:
                return None
    return None
