"""What is told of a save: by which editor it was made, of which files it consists, when it is complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployer.releases.request import StageResult
from deployer.watch.protocol import Saved, Stage, Watching
from tests.integration.watch.watchkit import Child, tree, wait_until

Watch = Callable[..., Child]


@pytest.fixture(params=[None, 0.1], ids=["kernel", "poll"])
def child(watch: Watch, request: pytest.FixtureRequest) -> Child:
    """One that is told by the kernel, and one that looks."""
    return watch(poll_s=request.param)


def saved(child: Child) -> list[str]:
    """The files of the next save, in order."""
    word = child.expect(Saved)
    assert word.count == len(word.files)
    assert abs(word.at - time.time()) < 10
    return sorted(word.files)


def test_it_tells_how_it_watches(child: Child) -> None:
    assert child.watching == Watching(mode=child.watching.mode, directories=2)
    assert child.watching.mode in ("kernel", "poll")
    child.nothing_saved()


def test_a_file_that_is_written_in_place(child: Child, source: Path) -> None:
    (source / "views/start.py").write_text("def start():\n    return 2\n")
    assert saved(child) == ["views/start.py"]
    child.nothing_saved()


def test_vim_that_moves_the_file_aside(child: Child, source: Path) -> None:
    file, backup = source / "app.py", source / "app.py~"
    (source / "4913").write_text("")
    (source / "4913").unlink()
    (source / ".app.py.swp").write_bytes(b"b0VIM")
    file.rename(backup)
    file.write_text("app = 2\n")
    file.chmod(0o644)
    backup.unlink()
    (source / ".app.py.swp").unlink()
    assert saved(child) == ["app.py"]
    child.nothing_saved()


def test_an_editor_that_renames_a_temporary_file_over_it(child: Child, source: Path) -> None:
    aside = source / ".app.py.k3j2h1"
    aside.write_text("app = 2\n")
    aside.replace(source / "app.py")
    word = child.expect(Saved)
    assert "app.py" in word.files
    child.nothing_saved()
    child.stage()
    assert tree(child.release()) == tree(source)


def test_vs_code_that_truncates_and_writes(child: Child, source: Path) -> None:
    with open(source / "app.py", "r+b", buffering=0) as file:
        file.truncate(0)
        file.write(b"app = 2\n")
    assert saved(child) == ["app.py"]


def test_a_deleted_file_and_a_moved_one(child: Child, source: Path) -> None:
    (source / "data.json").unlink()
    assert saved(child) == ["data.json"]
    (source / "app.py").rename(source / "main.py")
    assert saved(child) == ["app.py", "main.py"]


def test_a_mode_and_a_link(child: Child, source: Path) -> None:
    (source / "app.py").chmod(0o755)
    assert saved(child) == ["app.py"]
    (source / "link.py").symlink_to("app.py")
    assert saved(child) == ["link.py"]
    (source / "link.py").unlink()
    (source / "link.py").symlink_to("views/start.py")
    assert saved(child) == ["link.py"]
    child.stage()
    assert tree(child.release()) == tree(source)


def test_new_directories_with_files_that_are_made_at_once(child: Child, source: Path) -> None:
    """Before anybody could have begun to watch them."""
    script = "mkdir -p a/b/c/d && for i in 1 2 3 4 5; do echo $i > a/b/$i.py; echo $i > a/b/c/d/$i.py; done"
    subprocess.run(["/bin/sh", "-c", script], cwd=source, check=True)
    word = child.expect(Saved)
    assert word.count >= 10
    time.sleep(0.3)  # whatever else there was is told
    (source / "a/b/c/d/1.py").write_text("changed\n")
    wait_until(lambda: "a/b/c/d/1.py" in child.expect(Saved).files)
    child.stage()
    assert tree(child.release()) == tree(source)


def test_a_directory_that_is_removed_and_one_that_is_renamed(child: Child, source: Path) -> None:
    (source / "static/css").mkdir(parents=True)
    (source / "static/css/a.css").write_text("a {}")
    child.expect(Saved)
    (source / "static").rename(source / "assets")
    child.expect(Saved)
    (source / "assets/css/a.css").write_text("b {}")
    assert saved(child) == ["assets/css/a.css"]
    shutil.rmtree(source / "assets")
    assert "assets/css/a.css" in saved(child)
    (source / "assets").mkdir()
    (source / "assets/x").write_text("x")
    assert "assets/x" in saved(child)
    child.stage()
    assert tree(child.release()) == tree(source)


def test_a_directory_that_leaves_the_tree_and_comes_back(watch: Watch, source: Path, tmp_path: Path) -> None:
    child = watch(extensions=["py"])
    (source / "views").rename(tmp_path / "aside")
    assert saved(child) == ["views"]
    (tmp_path / "aside/start.py").write_text("changed where nobody looks\n")
    child.nothing_saved()
    (tmp_path / "aside").rename(source / "views")
    assert saved(child) == ["views/start.py"]
    (source / "views/start.py").write_text("and here\n")
    assert saved(child) == ["views/start.py"]


def test_a_linked_source_and_one_whose_link_is_turned(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "app.py").write_text("app = 3\n")
    link = tmp_path / "current"
    link.symlink_to(source)
    with Child(link, tmp_path / "root") as child:
        (source / "app.py").write_text("app = 2\n")
        assert saved(child) == ["app.py"]
        link.unlink()
        link.symlink_to(other)
        child.expect(Saved)
        (other / "app.py").write_text("app = 4\n")
        assert saved(child) == ["app.py"]
        child.stage()
        assert tree(child.release()) == tree(other)


def test_a_source_that_is_removed_and_made_anew(source: Path, tmp_path: Path) -> None:
    with Child(source, tmp_path / "root") as child:
        shutil.rmtree(source)
        child.expect(Saved)
        assert "cannot use the source directory" in child.fail().what
        source.mkdir()
        (source / "app.py").write_text("app = 5\n")
        end = time.monotonic() + 10
        while child.expect(Saved).files != ["app.py"] and time.monotonic() < end:
            (source / "app.py").write_text(f"app = {time.monotonic()}\n")  # noted once it is watched
        child.stage()
        assert tree(child.release()) == tree(source)


def test_what_is_ignored_is_no_save(child: Child, source: Path) -> None:
    for path in (".git/index", "node_modules/a/b.js", "__pycache__/x.pyc", "shop.log", ".deployer/x", ".idea/y"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text("x")
    (source / "env").mkdir()
    (source / "env/pyvenv.cfg").write_text("home = /usr/bin\n")
    time.sleep(0.5)
    while child.next(0.1) is not None:
        pass  # the directory was one like any other before its mark was there
    (source / "env/lib").mkdir()
    (source / "env/lib/x.py").write_text("")
    child.nothing_saved(0.5)
    (source / ".env").write_text("A=1\n")
    assert saved(child) == [".env"]


def test_gitignore_is_respected_and_read_anew(child: Child, source: Path) -> None:
    (source / ".gitignore").write_text("build/\n*.tmp\n!keep.tmp\n")
    assert saved(child) == [".gitignore"]
    (source / "build").mkdir()
    (source / "build/a.js").write_text("")
    (source / "views/x.tmp").write_text("")
    child.nothing_saved()
    (source / "views/keep.tmp").write_text("")
    assert saved(child) == ["views/keep.tmp"]
    (source / ".gitignore").write_text("*.tmp\n")
    assert ".gitignore" in saved(child)
    (source / "build/a.js").write_text("new\n")
    assert saved(child) == ["build/a.js"]
    (source / ".gitignore").unlink()
    assert ".gitignore" in saved(child)
    (source / "views/x.tmp").write_text("new\n")
    assert saved(child) == ["views/x.tmp"]


def test_what_is_included_counts_though_git_ignores_it(watch: Watch, source: Path) -> None:
    (source / ".gitignore").write_text("dist\n")
    (source / "dist").mkdir()
    child = watch(include=["dist"])
    (source / "dist/app.js").write_text("")
    assert saved(child) == ["dist/app.js"]


@pytest.mark.parametrize(
    "settings",
    [{"extensions": ["py"]}, {"paths": ["views"]}, {"ignore": ["*.json", "/app.py"]}],
    ids=["extensions", "paths", "ignore"],
)
def test_filters(watch: Watch, source: Path, settings: dict[str, Any]) -> None:
    child = watch(**settings)
    (source / "data.json").write_text("{ }\n")
    child.nothing_saved()
    (source / "views/start.py").write_text("")
    assert saved(child) == ["views/start.py"]


def test_a_half_written_file_is_waited_for(watch: Watch, source: Path) -> None:
    child = watch()
    with open(source / "app.py", "w", buffering=1) as file:
        for number in range(5):
            file.write(f"x{number} = {number}\n")
            time.sleep(0.1)  # longer than it takes to settle
        assert child.next(0) is None
    assert saved(child) == ["app.py"]
    child.nothing_saved()
    child.stage()
    assert (child.release() / "app.py").read_text() == (source / "app.py").read_text()


def test_a_file_that_was_half_written_before_anybody_watched_is_waited_for(watch: Watch, source: Path) -> None:
    """As after the death of the child before: this one has not seen that somebody writes."""
    with open(source / "app.py", "w", buffering=1) as file:
        file.write("x = 1\n")
        child = watch()
        child.send(Stage(request=child.request()))
        file.write("y = 2\n")
    assert isinstance(child.answer(), StageResult)
    assert (child.release() / "app.py").read_text() == "x = 1\ny = 2\n"


def test_a_new_file_that_is_empty_yet_is_waited_for(watch: Watch, source: Path) -> None:
    child = watch()
    with open(source / "new.py", "w") as file:
        time.sleep(0.15)
        assert child.next(0) is None
        file.write("x = 1\n")
    assert saved(child) == ["new.py"]


def test_a_file_that_somebody_keeps_open_delays_nobody_for_ever(watch: Watch, source: Path) -> None:
    child = watch()
    with open(source / "app.db", "wb", buffering=0) as file:
        file.write(b"x")
        assert saved(child) == ["app.db"]
        (source / "app.py").write_text("app = 2\n")
        assert saved(child) == ["app.py"]


def test_many_changes_are_one_save(watch: Watch, source: Path) -> None:
    child = watch(settle_s=0.2)
    for number in range(300):
        (source / f"views/{number}.py").write_text(f"x = {number}\n")
    word = child.expect(Saved)
    assert (word.count, len(word.files)) == (300, 20)
    child.nothing_saved()


def test_a_tree_that_is_never_quiet_is_told_all_the_same(watch: Watch, source: Path) -> None:
    """A compiler that writes on and on."""
    child = watch(settle_s=0.2)
    writer = subprocess.Popen(["/bin/sh", "-c", "while :; do echo x > out.js; done"], cwd=source)
    try:
        assert child.expect(Saved, 10).files == ["out.js"]
    finally:
        writer.kill()
        writer.wait()


def test_names_that_are_no_text(child: Child, source: Path) -> None:
    path = os.fsencode(source) + b"/views/caf\xe9 \n.py"
    with open(path, "wb") as file:
        file.write(b"x = 1\n")
    word = child.expect(Saved)
    assert word.files == ["views/caf\\xe9 \\n.py"]
    child.stage()
