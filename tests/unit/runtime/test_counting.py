"""What stands between the server and the application: which answers are counted, and as what."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from deployer.runtime.counting import Counting


def counted(status: int, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[list[int], list[Any]]:
    """The counts by class after one request that is answered with `status`, and what was sent."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Cycle:
        """uvicorn's, of one request."""

        def __init__(self, transport: Any) -> None:
            self.transport = transport

        async def send(self, message: Any) -> None:
            sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody asks for a body")

    async def run() -> None:
        await counting({"type": "http", "headers": headers or []}, receive, Cycle(Mock()).send)

    counting = Counting()
    counting.serve(app, lambda inner: inner, None)
    asyncio.run(run())
    return list(counting._statuses), sent


@pytest.mark.parametrize(
    ("status", "place"), [(101, 1), (200, 2), (304, 3), (404, 4), (599, 5), (600, 0), (999, 0), (42, 0)]
)
def test_each_answer_counts_in_its_class(status: int, place: int) -> None:
    """One of no class, too: what an application makes up does not end its request."""
    counts, sent = counted(status)
    assert counts == [int(number == place) for number in range(6)]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


def test_the_managers_probes_are_answered_and_not_counted() -> None:
    counts, sent = counted(500, [(b"deployer-probe", b"1")])
    assert sum(counts) == 0
    assert sent[0]["status"] == 500
