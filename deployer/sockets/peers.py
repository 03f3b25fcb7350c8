"""Who holds the other end of a connection: the inode of the peer's socket, from the kernel.

Several workers share one listening socket, so an answer does not say who gave it. The kernel knows.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

_NETLINK_SOCK_DIAG = 4  # sock_diag(7)
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UNIX_DIAG_SHOW_PEER = 4
_UNIX_DIAG_PEER = 2
_HEADER = struct.Struct("=IHHII")
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_ANSWER_SIZE = 16
_INET_INODE_AT = _HEADER.size + 68  # idiag_inode of struct inet_diag_msg


def peer_inode(sock: socket.socket) -> int | None:
    """Inode of the accepted socket at the other end; None while nobody has accepted, or if it cannot be told."""
    try:
        if sock.family == socket.AF_UNIX:
            return _unix_peer(os.fstat(sock.fileno()).st_ino)
        return _tcp_peer(sock)
    except OSError:
        return None


def _tcp_peer(sock: socket.socket) -> int | None:
    ours, theirs = sock.getsockname(), sock.getpeername()
    try:
        return _tcp_lookup(sock.family, theirs, ours)
    except OSError:
        pass  # it is gone, or the kernel has no inet_diag: both are ENOENT
    try:
        _tcp_lookup(sock.family, ours, theirs)  # our own end is there for certain
        return None
    except OSError:
        return _tcp_row(ours[1], theirs[1])


def _tcp_lookup(family: int, local: tuple[Any, ...], remote: tuple[Any, ...]) -> int | None:
    """One socket by both its ends, from the kernel's hash table (struct inet_diag_req_v2)."""
    ends = [socket.inet_pton(family, end[0].partition("%")[0]).ljust(16, b"\0") for end in (local, remote)]
    ports = struct.pack("!HH", local[1], remote[1])
    scope = local[3] if family == socket.AF_INET6 else 0
    head = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    answer = _ask(head + ports + ends[0] + ends[1] + struct.pack("=III", scope, 0xFFFFFFFF, 0xFFFFFFFF))
    return int(struct.unpack_from("=I", answer, _INET_INODE_AT)[0]) or None


def _tcp_row(our_port: int, their_port: int) -> int | None:
    """/proc/net/tcp (proc_net(5)): the row whose local end is their port and whose remote end is ours. Where the
    kernel has no inet_diag; reading the table takes milliseconds on a busy machine."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with Path(table).open() as rows:
            next(rows)
            for row in rows:
                fields = row.split()
                local, remote = fields[1].rpartition(":")[2], fields[2].rpartition(":")[2]
                if int(local, 16) == their_port and int(remote, 16) == our_port:
                    return int(fields[9]) or None
    return None


def _unix_peer(inode: int) -> int | None:
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _UNIX_DIAG_SHOW_PEER, 0xFFFFFFFF, 0xFFFFFFFF)
    try:
        answer = _ask(request)
    except FileNotFoundError:
        return None
    length = len(answer)
    at = _HEADER.size + _UNIX_ANSWER_SIZE
    while at + 4 <= length:
        size, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == _UNIX_DIAG_PEER:
            return int(struct.unpack_from("=I", answer, at + 4)[0]) or None
        at += (size + 3) & ~3
    return None


def _ask(request: bytes) -> bytes:
    """One question to the kernel (sock_diag(7)); OSError with its error code, ENOENT when there is no such socket."""
    message = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        netlink.send(message)
        answer = netlink.recv(8192)
    length, kind = _HEADER.unpack_from(answer)[:2]
    if kind != _SOCK_DIAG_BY_FAMILY:
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]  # NLMSG_ERROR
        raise OSError(code, os.strerror(code))
    return answer[:length]
