"""Listen addresses: "tcp://host:port" and "unix:/path" to values and back. Binding them is `sockets.bind`."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNIX_PATH_MAX = 107
"""Bytes of a unix socket's path: sun_path is 108 with its final NUL."""

_FORMS = 'write "tcp://HOST:PORT" or "unix:/path/to/socket"'
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_LOOKS_LIKE_TCP = re.compile(r"\S*[^/\s]:\d+|\d+")


@dataclass(frozen=True)
class Address:
    """Where visitors connect. `host` and `port` belong to tcp (no brackets), `path` (absolute) to unix."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def parse(text: str, base: Path) -> Address:
    """The address in `text`; a relative unix path starts at `base` (absolute).

    ValueError says in words what is wrong with it and what to write instead.
    """
    if text.startswith("tcp://"):
        return _parse_tcp(text)
    if text.startswith("unix:"):
        return _parse_unix(text, base)
    if text.startswith("tcp:"):
        raise ValueError(f'write "tcp://{text.removeprefix("tcp:").lstrip("/")}", with two slashes')
    if _LOOKS_LIKE_TCP.fullmatch(text) and "://" not in text:
        host, _, port = text.rpartition(":")
        raise ValueError(f'the "tcp://" is missing: write "tcp://{host or "127.0.0.1"}:{port}"')
    if text.startswith(("/", "./")):
        raise ValueError(f'the "unix:" is missing: write "unix:{text}"')
    raise ValueError(f"not an address: {_FORMS}")


def _parse_tcp(text: str) -> Address:
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not colon or port.endswith("]"):
        raise ValueError(f'the port is missing: write "{text.rstrip("/")}:8000"')
    return Address("tcp", host=_host(host, port), port=_port(port))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'"{text}" is not a port: write a number from 1 to 65535')
    if len(text) > 5 or int(text) > 65535:
        raise ValueError(f"port {text} is too high: the highest is 65535")
    if int(text) == 0:
        raise ValueError("port 0 would be another port at every start: write the port that visitors use")
    return int(text)


def _host(text: str, port: str) -> str:
    """The host in its canonical form: without brackets, IPv6 shortened, names in lower case."""
    if text in ("", "*"):
        raise ValueError(f'the host is missing: write "tcp://0.0.0.0:{port}" to listen on every interface')
    if text.startswith("[") and text.endswith("]"):
        packed = _packed(socket.AF_INET6, text[1:-1])
        if packed is None:
            raise ValueError(f'"{text[1:-1]}" is not an IPv6 address')
        return socket.inet_ntop(socket.AF_INET6, packed)
    if ":" in text:
        raise ValueError(f'an IPv6 address needs brackets: write "tcp://[{text.strip("[]")}]:{port}"')
    if re.fullmatch(r"[0-9.]+", text):
        if _packed(socket.AF_INET, text) is None:
            raise ValueError(f'"{text}" is not an IPv4 address')
        return text
    if _HOST_NAME.fullmatch(text) is None or ".." in text:
        raise ValueError(f'"{text}" is not a host name')
    return text.lower()


def _packed(family: socket.AddressFamily, text: str) -> bytes | None:
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):
        return None


def _parse_unix(text: str, base: Path) -> Address:
    written = text.removeprefix("unix:")
    if not written.strip("/"):
        raise ValueError('the path is missing: write "unix:/path/to/socket"')
    if written.startswith("//") and not written.startswith("///"):
        rest = written.lstrip("/")
        raise ValueError(f'write "unix:/{rest}", or "unix:{rest}" beside deployer.toml: one slash or none')
    if written.startswith("@"):
        raise ValueError("a socket without a file is open to every user: write a path")
    if "\0" in written or written.endswith("/"):
        raise ValueError("the path must name a file")
    assert base.is_absolute()
    # normpath keeps two leading slashes, and an absolute `written` replaces the base.
    path = os.path.normpath(os.path.join(base, "/" + written.lstrip("/") if written[0] == "/" else written))
    length = len(os.fsencode(path))
    if length > UNIX_PATH_MAX:
        raise ValueError(f"the path is {length} bytes long and the kernel allows {UNIX_PATH_MAX}: {path}")
    return Address("unix", path=path)
