"""app.log: never more than its share of the disk, and the last lines of it back again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from deployer.logs import applog
from deployer.logs.applog import AppLog
from deployer.wire.schema import LogLine


def line(number: int, *, slot: int = 1, release: str = "v1") -> LogLine:
    return LogLine(ts=float(number), slot=slot, pid=10, release=release, stream="stdout", line=f"line {number}")


@pytest.fixture
def log(tmp_path: Path) -> AppLog:
    return AppLog(tmp_path / "app.log")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applog, "SIZE_MAX", 1000)


def lengths(log: AppLog) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(log.path.parent.iterdir())}


def test_lines_come_back_oldest_first(log: AppLog) -> None:
    for number in range(5):
        log.write(line(number))
    assert [found.ts for found in log.last(3)] == [2.0, 3.0, 4.0]
    assert log.last(0) == []
    assert len(log.last(99)) == 5


def test_lines_are_chosen_by_slot_and_release(log: AppLog) -> None:
    """The number asked for counts the lines that match."""
    for number in range(12):
        log.write(line(number, slot=1 + number % 2, release="v2" if number >= 6 else "v1"))
    assert [found.ts for found in log.last(2, slot=2)] == [9.0, 11.0]
    assert [found.ts for found in log.last(9, slot=1, release="v1")] == [0.0, 2.0, 4.0]
    assert log.last(9, release="v3") == []


def test_only_the_owner_may_read_it(log: AppLog) -> None:
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("small")
def test_it_is_rotated_before_it_grows_too_long_and_the_oldest_goes(log: AppLog) -> None:
    for number in range(200):
        log.write(line(number))
    found = lengths(log)
    assert set(found) == {"app.log", *(f"app.log.{number}" for number in range(1, applog.FILES_KEPT + 1))}
    assert max(found.values()) <= 1000
    files = [log.path.with_name(name) for name in sorted(found, reverse=True)[:-1]]
    stamps = [msgspec.json.decode(data)["ts"] for path in [*files, log.path] for data in path.read_bytes().splitlines()]
    assert stamps == sorted(stamps)
    assert stamps[-1] == 199.0


@pytest.mark.usefixtures("small")
def test_the_last_lines_reach_back_into_the_file_before(log: AppLog) -> None:
    """Right after a rotation `logs` does not begin with nothing."""
    number = 0
    while not log.path.with_name("app.log.1").exists():
        log.write(line(number))
        number += 1
    assert log.path.stat().st_size < 200
    assert [found.ts for found in log.last(4)] == [float(n) for n in range(number - 4, number)]


@pytest.mark.usefixtures("small")
def test_the_next_manager_goes_on_where_the_last_one_was(log: AppLog) -> None:
    """Its size counts from what is there."""
    for number in range(5):
        log.write(line(number))
    again = AppLog(log.path)
    for number in range(5, 20):
        again.write(line(number))
    assert max(lengths(again).values()) <= 1000
    assert again.last(1)[0].ts == 19.0


def test_a_line_that_a_crash_cut_is_passed_over(log: AppLog) -> None:
    """In the middle and at the end; no other line is lost by it."""
    log.write(line(1))
    with log.path.open("ab") as file:
        file.write(b'{"ts": 2.0, "slot": 1, "pi\n')
        file.write(b"\xff\xfe not json\n")
        file.write(b'{"ts": 2.0, "slot": 1, "pid": 10, "release": "v1", "stream": "stdout", "line": "\xc3{"ts": 2.5}\n')
        file.write(b'{"ts": 2.0, "slot": 1, "pid": 10, "release": "v1", "stream": "stdout", "line": "\xc3"}\n')
        file.write(b'{"ts": "of another kind"}\n\n')
    log.write(line(3))
    with log.path.open("ab") as file:
        file.write(b'{"ts": 4.0, "sl')
    assert [found.ts for found in log.last(9)] == [1.0, 3.0]


def test_followers_hear_each_line_and_may_leave_meanwhile(log: AppLog) -> None:
    heard: list[float] = []

    def once(found: LogLine) -> None:
        heard.append(found.ts)
        log.followers.discard(once)

    log.followers.add(once)
    log.write(line(1))
    log.write(line(2))
    assert heard == [1.0]


def test_a_disk_that_takes_nothing_costs_lines_and_nothing_else(log: AppLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run on; followers hear what is printed all the same; what was dropped is counted."""
    heard: list[LogLine] = []
    log.followers.add(heard.append)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        log.write(line(1))
    log.write(line(2))
    assert log.dropped == 1
    assert [found.ts for found in heard] == [1.0, 2.0]
    assert [found.ts for found in log.last(9)] == [2.0]
