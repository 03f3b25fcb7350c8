"""Streams of events and log lines: taken up where they were lost, ended where they end, never silent for long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployer.api import streams
from deployer.api.streams import Bell
from deployer.logs.applog import AppLog
from deployer.state.store import Store
from deployer.wire.schema import LogLine

LIMIT_S = 5.0


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def store(tmp_path: Path, bell: Bell) -> Iterator[Store]:
    made = Store(tmp_path / "state.db", on_event=bell.ring)
    yield made
    made.close()


@pytest.fixture
def log(tmp_path: Path) -> AppLog:
    return AppLog(tmp_path / "app.log")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(bounded())


async def names(stream: AsyncIterator[bytes]) -> list[str]:
    return [json.loads(data)["event"] async for data in stream]


def events(store: Store, bell: Bell, **keys: Any) -> AsyncIterator[bytes]:
    return streams.events(
        store, bell, **{"after": 0, "rollout": None, "follow": False, "stopped": lambda: False, **keys}
    )


def test_an_event_is_one_flat_object_on_a_line(store: Store, bell: Bell) -> None:
    store.emit("worker.ready", rollout=3, slot=1, pid=10)
    (event,) = store.events()
    data = streams.flat(event)
    assert data.endswith(b"\n")
    assert json.loads(data) == {
        "seq": 1,
        "ts": round(event.ts, 3),
        "event": "worker.ready",
        "rollout": 3,
        "slot": 1,
        "pid": 10,
    }


def test_a_stream_goes_on_where_the_client_lost_it(store: Store, bell: Bell) -> None:
    """after=SEQ: nothing twice, nothing missed, across more than one reading of the database."""
    with store.transaction():
        for number in range(streams.BATCH * 2 + 7):
            store.emit(f"e{number}")

    async def test() -> None:
        everything = await names(events(store, bell))
        assert everything == [f"e{number}" for number in range(streams.BATCH * 2 + 7)]
        assert await names(events(store, bell, after=600)) == everything[600:]
        assert await names(events(store, bell, after=10**6)) == []

    run(test)


def test_a_followed_rollout_ends_with_its_end(store: Store, bell: Bell) -> None:
    """Events of others are left out, and those that come while it is followed are not."""
    store.emit("rollout.started", rollout=1)
    store.emit("rollout.finished", rollout=9)

    async def test() -> None:
        following = asyncio.create_task(names(events(store, bell, rollout=1, follow=True)))
        await asyncio.sleep(0)
        store.emit("worker.ready", rollout=1)
        store.emit("worker.ready", rollout=2)
        await asyncio.sleep(0)
        assert not following.done()
        store.emit("rollout.finished", rollout=1)
        assert await following == ["rollout.started", "worker.ready", "rollout.finished"]

    run(test)


def test_without_a_rollout_the_end_of_one_does_not_end_the_stream(store: Store, bell: Bell) -> None:
    stopped = False

    async def test() -> None:
        nonlocal stopped
        following = asyncio.create_task(names(events(store, bell, follow=True, stopped=lambda: stopped)))
        await asyncio.sleep(0)
        store.emit("rollout.finished", rollout=1)
        store.emit("manager.stopped")
        await asyncio.sleep(0)
        assert not following.done()
        stopped = True
        bell.ring()
        assert await following == ["rollout.finished", "manager.stopped"]

    run(test)


def test_what_happens_while_a_slow_reader_is_busy_is_not_missed(store: Store, bell: Bell) -> None:
    """Nobody waits for the bell then; the reader must not wait for the next one."""
    store.emit("one", rollout=1)

    async def test() -> None:
        heard = []
        async for data in events(store, bell, rollout=1, follow=True):
            heard.append(json.loads(data)["event"])
            if heard == ["one"]:
                store.emit("rollout.finished", rollout=1)
        assert heard == ["one", "rollout.finished"]

    run(test)


def test_an_empty_line_keeps_a_quiet_stream_alive(store: Store, bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while events of others ring the bell again and again."""
    monkeypatch.setattr(streams, "KEEPALIVE_S", 0.02)

    async def test() -> None:
        stream = events(store, bell, rollout=1, follow=True)

        async def noise() -> None:
            while True:
                store.emit("worker.ready", rollout=2)
                await asyncio.sleep(0.005)

        for others in (None, asyncio.create_task(noise())):
            assert await anext(stream) == b"\n"
            assert await anext(stream) == b"\n"
            if others is not None:
                others.cancel()
        store.emit("rollout.finished", rollout=1)
        assert b"rollout.finished" in await anext(stream)

    run(test)


def line(number: int, slot: int = 1) -> LogLine:
    return LogLine(ts=float(number), slot=slot, pid=10, release="v1", stream="stdout", line=str(number))


def lines(log: AppLog, **keys: Any) -> AsyncIterator[bytes]:
    return streams.log_lines(log, **{"lines": 100, "follow": False, "slot": None, "release": None, **keys})


def test_log_lines_are_followed_without_a_gap(log: AppLog) -> None:
    """First those that are there, then those that come, each once; the follower leaves nothing behind."""
    for number in range(3):
        log.write(line(number))

    async def test() -> None:
        stream = lines(log, lines=2, follow=True, slot=1)
        found = [json.loads(await anext(stream))["ts"]]
        log.write(line(3))
        log.write(line(4, slot=2))
        log.write(line(5))
        found += [json.loads(await anext(stream))["ts"] for _ in range(3)]
        assert found == [1.0, 2.0, 3.0, 5.0]
        assert log.followers
        await stream.aclose()  # type: ignore[attr-defined]
        assert not log.followers

    run(test)


def test_without_follow_a_log_stream_ends(log: AppLog) -> None:
    log.write(line(1))

    async def test() -> None:
        assert [data async for data in lines(log, release="v2")] == []
        assert [json.loads(data)["ts"] async for data in lines(log)] == [1.0]

    run(test)


def test_a_quiet_log_stream_is_kept_alive(log: AppLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "KEEPALIVE_S", 0.01)

    async def test() -> None:
        stream = lines(log, follow=True)
        assert await anext(stream) == b"\n"
        await stream.aclose()  # type: ignore[attr-defined]

    run(test)


def test_a_follower_that_does_not_read_misses_lines_and_holds_nobody_up(
    log: AppLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LOG_QUEUE", 3)

    async def test() -> None:
        log.write(line(0))
        stream = lines(log, follow=True)
        await anext(stream)
        for number in range(1, 100):
            log.write(line(number))
        assert [json.loads(await anext(stream))["ts"] for _ in range(3)] == [1.0, 2.0, 3.0]
        await stream.aclose()  # type: ignore[attr-defined]

    run(test)
