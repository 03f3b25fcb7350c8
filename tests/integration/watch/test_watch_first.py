"""A first look."""

from __future__ import annotations

from deployer.watch.protocol import Saved
from tests.integration.watch.watchkit import tree


def test_a_save_is_told_and_staged(watch, source):
    child = watch()
    assert child.watching.mode == "kernel"
    assert child.watching.directories == 2
    result = child.stage()
    assert result.outcome == "staged"
    assert tree(child.release()) == tree(source)
    (source / "views/start.py").write_text("def start():\n    return 2\n")
    saved = child.expect(Saved)
    assert (saved.files, saved.count) == (["views/start.py"], 1)
    result = child.stage()
    assert tree(child.release()) == tree(source)
