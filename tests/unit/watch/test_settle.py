"""When a save is complete, and what it consists of."""

from __future__ import annotations

from deployer.watch.batch import SHOWN, Batch
from deployer.watch.change import EVERYTHING, Change, Kind
from deployer.watch.settle import CHECKOUT_MOST_S, CHECKOUT_S, MOST_S, WRITER_S, Settle

QUIET_S = 0.02


def settle() -> Settle:
    return Settle(QUIET_S)


def changed(path: str = "a.py", kind: Kind = Kind.CHANGED) -> Change:
    return Change(path, kind)


def test_nothing_is_due_before_something_changed() -> None:
    assert settle().due() is None


def test_quiet_is_counted_from_the_last_change_of_any_file() -> None:
    timing = settle()
    for step in range(10):
        timing.note(changed(f"{step}.py"), 5.0 + step / 100)
        assert timing.due() == 5.0 + step / 100 + QUIET_S


def test_a_tree_that_is_never_quiet_is_told_all_the_same() -> None:
    timing = settle()
    now = 1.0
    while now < 10.0:
        timing.note(changed(), now)
        now += 0.01
    assert timing.due() == 1.0 + MOST_S


def test_who_is_writing_is_waited_for() -> None:
    timing = settle()
    timing.note(changed("a.py", Kind.WRITING), 1.0)
    assert timing.due() == 1.0 + WRITER_S
    timing.note(changed("a.py", Kind.WRITING), 1.4)
    assert timing.due() == 1.4 + WRITER_S
    timing.note(changed("a.py", Kind.WRITTEN), 1.45)
    assert timing.due() == 1.45 + QUIET_S


def test_a_file_that_nobody_closes_delays_no_other_save() -> None:
    timing = settle()
    timing.note(changed("app.db", Kind.WRITING), 1.0)
    timing.told()
    timing.note(changed("app.py", Kind.WRITTEN), 2.0)
    assert timing.due() == 2.0 + QUIET_S


def test_a_file_that_is_still_being_written_when_another_save_is_told() -> None:
    timing = settle()
    timing.note(changed("big.py", Kind.WRITING), 1.0)
    timing.told()
    timing.note(changed("app.py", Kind.WRITTEN), 1.1)
    assert timing.due() == 1.0 + WRITER_S


def test_git_may_pause_longer() -> None:
    timing = settle()
    timing.note(changed(), 1.0)
    assert timing.due(checkout=True) == 1.0 + CHECKOUT_S
    for step in range(1, 200):
        timing.note(changed(), 1.0 + step / 10)
    assert timing.due(checkout=True) == 1.0 + CHECKOUT_MOST_S


def test_after_it_was_told_nothing_is_due() -> None:
    timing = settle()
    timing.note(changed(), 1.0)
    timing.told()
    assert timing.due() is None


def test_a_batch_names_each_file_once_in_their_order() -> None:
    batch = Batch()
    for path in ("b.py", "a.py", "b.py"):
        batch.add(changed(path), 7.0)
    assert batch.at == 7.0
    assert batch.take() == (["b.py", "a.py"], 2)
    assert not batch


def test_a_batch_shows_the_first_files_and_counts_all() -> None:
    batch = Batch()
    for number in range(2000):
        batch.add(changed(f"{number}.py"), 1.0)
    files, count = batch.take()
    assert (files, count) == ([f"{number}.py" for number in range(SHOWN)], 2000)


def test_a_temporary_file_is_no_change() -> None:
    batch = Batch()
    for kind in (Kind.MADE, Kind.WRITTEN, Kind.GONE):
        batch.add(changed("app.py.1234", kind), 1.0)
    assert not batch


def test_a_temporary_file_that_a_snapshot_may_hold_is() -> None:
    batch = Batch()
    batch.add(changed("app.py.1234", Kind.MADE), 1.0)
    batch.copied()
    batch.add(changed("app.py.1234", Kind.GONE), 1.0)
    assert batch.take() == (["app.py.1234"], 1)


def test_a_file_that_was_there_and_is_gone_is_a_change() -> None:
    batch = Batch()
    for kind in (Kind.GONE, Kind.MADE, Kind.GONE):
        batch.add(changed("app.py", kind), 1.0)
    assert batch


def test_all_of_it_is_shown_only_where_nothing_is_known() -> None:
    batch = Batch()
    batch.add(changed(EVERYTHING), 1.0)
    assert batch.take() == ([EVERYTHING], 1)
    batch.add(changed(EVERYTHING), 1.0)
    batch.add(changed("a.py"), 1.0)
    assert batch.take() == (["a.py"], 1)
