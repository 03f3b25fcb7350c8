"""sd_notify(3): tell the supervisor, when there is one. That it is away is no reason to stop serving."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> None:
    """Send one message to NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.setblocking(False)
        try:
            out.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            pass  # as above
