"""state.db: what is committed is whole, what is not was never there, and a bad file is refused in words."""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.errors import Exit
from deployer.state import store as module
from deployer.state.store import SCHEMA_VERSION, StateError, Store
from deployer.wire.schema import Event, LastExit


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def store(tmp_path: Path, heard: list[Event]) -> Iterator[Store]:
    made = Store(tmp_path / "state.db", on_event=heard.append)
    yield made
    made.close()


def opened(path: Path) -> None:
    Store(path).close()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def last_exit(pid: int) -> LastExit:
    return LastExit(at=1.0, pid=pid, release="v1", code=3, signal=None, text="exit code 3", tail=["boom"])


def test_it_is_durable_and_private(store: Store) -> None:
    """WAL with synchronous=FULL (2): a commit survives kill -9 and a power cut. Nobody else may read it."""
    assert store.row("PRAGMA journal_mode")[0] == "wal"  # type: ignore[index]
    assert store.row("PRAGMA synchronous")[0] == 2  # type: ignore[index]
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_what_was_put_is_there_for_the_next_manager(store: Store) -> None:
    store.put("config", {"name": "shop", "deep": [1, None]})
    store.put("config", {"name": "shop", "deep": [2, None]})
    store.close()
    again = Store(store.path)
    assert again.get("config") == {"name": "shop", "deep": [2, None]}
    assert again.get("none") is None
    assert again.get("none", 7) == 7
    again.close()


def test_events_are_heard_once_after_the_commit(store: Store, heard: list[Event]) -> None:
    with store.transaction():
        store.emit("one", x=1)
        with store.transaction():
            store.emit("two")
        assert heard == []
    assert [(event.event, event.data) for event in heard] == [("one", {"x": 1}), ("two", {})]
    assert [event.seq for event in heard] == [event.seq for event in store.events()]


def test_an_error_takes_everything_back_and_nobody_hears(store: Store, heard: list[Event]) -> None:
    """Also what inner transactions had finished; and the next transaction is a clean one."""

    def fail() -> None:
        with store.transaction():
            store.emit("one")
            with store.transaction():
                store.put("count", 3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert heard == []
    assert store.events() == []
    assert store.get("count") is None
    store.emit("after")
    assert [event.event for event in heard] == ["after"]


def test_a_listener_may_write(tmp_path: Path) -> None:
    """What is told after a commit may lead to the next one."""
    store = Store(tmp_path / "state.db")
    store.on_event = lambda event: store.put("seen", event.seq)
    store.emit("one")
    assert store.get("seen") == 1
    store.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_events_have_no_gaps_whatever_is_rolled_back(
    tmp_path_factory: pytest.TempPathFactory, work: list[tuple[int, bool]]
) -> None:
    """A client that counts them knows that it has missed none."""
    store = Store(tmp_path_factory.mktemp("gaps") / "state.db")
    for count, good in work:
        try:
            with store.transaction():
                for _ in range(count):
                    store.emit("x")
                if not good:
                    raise RuntimeError
        except RuntimeError:
            pass  # what this is about
    kept = sum(count for count, good in work if good)
    assert [event.seq for event in store.events()] == list(range(1, kept + 1))
    store.close()


def test_events_are_read_from_a_point_of_one_rollout(store: Store) -> None:
    store.rollout = 5
    for name in ("a", "b", "c"):
        store.emit(name)
    store.emit("d", rollout=6)
    assert [event.event for event in store.events(after=1, rollout=5)] == ["b", "c"]
    assert [event.event for event in store.events(after=1)] == ["b", "c", "d"]
    assert [event.event for event in store.events(limit=2)] == ["a", "b"]


def test_old_events_are_trimmed_and_numbers_are_never_used_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_KEPT", 3)
    for _ in range(5):
        store.emit("x")
    store.trim_events()
    assert [event.seq for event in store.events()] == [3, 4, 5]
    store.emit("x")
    assert store.events()[-1].seq == 6


def test_numbers_of_releases_are_never_used_again(store: Store) -> None:
    """A release's number, once it was seen, means that release for ever."""
    values = {"state": "staging", "source": ".", "who": "ann", "staged_at": 1.0}
    first = store.insert("releases", **values)
    store.delete("releases", "number", first)
    assert store.insert("releases", **values) == first + 1


def test_a_worker_is_read_back_as_it_was_added(store: Store) -> None:
    values = {
        "slot": 2,
        "generation": 7,
        "release": "v7",
        "pid": 10,
        "ticks": 5,
        "state": "starting",
        "spawned_at": 1.5,
    }
    row = store.add_worker(**values)
    store.update("workers", "id", row.id, state="ready", ready_at=2.5)
    (read,) = store.workers()
    assert (read.id, read.slot, read.state, read.ready_at, read.drain_at) == (row.id, 2, "ready", 2.5, None)


def test_exits_of_a_slot_are_counted_and_the_last_is_kept(store: Store) -> None:
    assert store.slot(1).restarts == 0
    for pid in (10, 11):
        store.count_exit(1, last_exit(pid))
    assert store.slot(1).restarts == 2
    assert store.slot(1).last_exit == last_exit(11)
    assert store.slot(2).last_exit is None


def test_a_newer_schema_is_refused_and_left_as_it_is(store: Store) -> None:
    store.put("count", 3)
    store.close()
    change(store.path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = store.path.read_bytes()
    with pytest.raises(StateError) as caught:
        opened(store.path)
    error = caught.value
    assert error.what == (
        f"{store.path} was written by a newer deployer (schema {SCHEMA_VERSION + 1}, this one knows {SCHEMA_VERSION})"
    )
    assert "keep serving" in (error.cause or "")
    assert error.hint == "install the newer deployer again, then: deployer up"
    assert error.exit_code is Exit.CONFIG
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_is_refused_and_the_copy_is_named(store: Store, damage: str) -> None:
    with store.transaction():
        for _ in range(2000):
            store.emit("x", text="some text that fills pages")
    store.back_up()
    store.close()
    data = bytearray(store.path.read_bytes())
    at = 0 if damage == "header" else 4096 * 5
    data[at : at + 4096] = b"\xa5" * 4096
    store.path.write_bytes(data)
    with pytest.raises(StateError) as caught:
        opened(store.path)
    error = caught.value
    assert error.what == f"{store.path} is damaged"
    assert f"the last good copy is {store.backup_path}, made 20" in (error.cause or "")
    assert "workers that run keep serving" in (error.cause or "")
    assert error.hint == (f"mv {store.path} {store.path}.damaged && cp {store.backup_path} {store.path} && deployer up")


def test_a_damaged_file_without_a_copy_says_so(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, by far" * 100)
    with pytest.raises(StateError) as caught:
        opened(tmp_path / "state.db")
    assert "there is no copy of it yet" in (caught.value.cause or "")


def test_a_place_where_nothing_can_be_written_is_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot use") as caught:
        opened(tmp_path / "none" / "state.db")
    assert "damaged" not in caught.value.what


def test_the_copy_is_whole_private_and_replaced_in_one_step(store: Store) -> None:
    store.put("count", 3)
    store.back_up()
    store.put("count", 4)
    copy = Store(store.backup_path)
    assert copy.get("count") == 3
    copy.close()
    store.back_up()
    copy = Store(store.backup_path)
    assert copy.get("count") == 4
    copy.close()
    assert stat.S_IMODE(store.backup_path.stat().st_mode) == 0o600
    assert not store.backup_path.with_suffix(".new").exists()


def test_a_copy_may_be_made_from_a_thread_while_there_is_writing(store: Store) -> None:
    """Half-made copies of a thread that was killed are written over."""
    store.backup_path.with_suffix(".new").write_text("left by a kill")
    thread = threading.Thread(target=store.back_up)
    thread.start()
    while thread.is_alive():
        store.put("count", 1)
    thread.join()
    opened(store.backup_path)


def test_a_manager_killed_while_it_made_its_reserve_can_be_started_again(store: Store) -> None:
    """The reserve is a table for a moment."""
    store.close()
    change(store.path, "CREATE TABLE reserve (data BLOB)")
    opened(store.path)
