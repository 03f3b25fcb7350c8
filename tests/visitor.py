"""A visitor with a session: how often he came is counted by the application, and must never go back."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any, Self

from tests.load import parse_address

PAUSE_S = 0.03
LIMIT_S = 30.0


class _Connection(http.client.HTTPConnection):
    """To an address of deployer's, over TCP or a unix socket. It honours `Connection: close`, and connects again."""

    def __init__(self, address: str) -> None:
        super().__init__("localhost", timeout=LIMIT_S)
        self._family, self._target = parse_address(address)

    def connect(self) -> None:
        self.sock = socket.socket(self._family)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(self._target)


class Visitor(threading.Thread):
    """Asks for /visits again and again, one request after the other, until `stop`."""

    def __init__(self, address: str) -> None:
        super().__init__(name="visitor")
        self.count = 0
        self.releases: list[str] = []
        """Those that answered, in turn."""
        self.slots: set[str] = set()
        self.went_back: list[str] = []
        self.lost: list[str] = []
        self._connection = _Connection(address)
        self._cookie = ""
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self.join()
        self.hang_up()

    def run(self) -> None:
        while not self._over.wait(PAUSE_S):
            try:
                self._take(self.visit())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.lost.append(f"after visit {self.count}: {error!r}")
                self.hang_up()

    def hang_up(self) -> None:
        self._connection.close()

    def complaints(self) -> list[str]:
        """What was wrong since the last call."""
        self.went_back, went_back = [], self.went_back
        self.lost, lost = [], self.lost
        return [f"the visitor's count went back: {text}" for text in went_back] + [
            f"the visitor's request was lost {text}" for text in lost
        ]

    def until_served_by(self, release: str, limit_s: float = LIMIT_S) -> bool:
        end = time.monotonic() + limit_s
        while self.releases[-1:] != [release] and time.monotonic() < end:
            time.sleep(PAUSE_S)
        return self.releases[-1:] == [release]

    def visit(self) -> dict[str, Any]:
        self._connection.request("GET", "/visits", headers={"Cookie": self._cookie} if self._cookie else {})
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise ValueError(f"{response.status} {body[:100]!r}")
        self._cookie = response.headers["Set-Cookie"].partition(";")[0]
        found: dict[str, Any] = json.loads(body)
        return found

    def _take(self, found: dict[str, Any]) -> None:
        if found["visits"] <= self.count:
            self.went_back.append(f"visit {found['visits']} after {self.count}, by {found['release']}")
        self.count = found["visits"]
        self.slots.add(found["slot"])
        if self.releases[-1:] != [found["release"]]:
            self.releases.append(found["release"])
