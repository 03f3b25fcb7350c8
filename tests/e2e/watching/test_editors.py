"""Whatever writes into the tree, and however: what `deployer watch` serves at the end is what is on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import apps
from tests.cluster import wait_until
from tests.e2e.shop import git
from tests.e2e.watching import editor
from tests.e2e.watching.plan import Way
from tests.load import LoadThread
from tests.watchkit import FIRST, Tree, event_names, views

MANY = 2000
FILES_A_PACKAGE = 100
LIGHT = {"keepalive": 2, "fresh": 1, "slow": 0}

Save = Callable[[Path, str], None]


def in_parts(path: Path, text: str) -> None:
    editor.parts(path, text[:10], text[10:], 0.05)


def anew(path: Path, text: str) -> None:
    editor.write(path, text, way=Way.ANEW, amid_s=0.05)


def in_place(path: Path, text: str) -> None:
    """What nano and `cat >` do."""
    path.write_text(text)


WAYS: dict[str, Save] = {
    "truncate": in_place,
    "rename": editor.rename,
    "vim": editor.vim,
    "parts": in_parts,
    "delete and create": anew,
}


@pytest.fixture
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    made = Tree()
    failed_before = request.session.testsfailed
    try:
        yield made
    finally:
        failed = request.session.testsfailed > failed_before
        if failed:
            print(f"{made.base}: deployer.log\n{made.log_tail(60)}")
        made.close(check=not failed)


def test_ways_of_saving(tree: Tree) -> None:
    """Each way twice, under load: served each time, and nobody's request is lost."""
    tree.plant()
    with tree.watch():
        tree.until_served(FIRST)
        with LoadThread(tree.address, **LIGHT) as load:
            for turn in range(2):
                for name, save in WAYS.items():
                    label = f"{name.replace(' ', '-')}-{turn}"
                    save(tree.views, views(label))
                    tree.until_served(label)
            report = load.stop()
    assert report.lost == 0, str(report)
    assert report.errors == 0, str(report)


def test_saves_faster_than_they_can_be_served(tree: Tree) -> None:
    """A person who types :w all the time, in every way: the last one counts."""
    tree.plant()
    with tree.watch():
        tree.until_served(FIRST)
        for number in range(40):
            list(WAYS.values())[number % len(WAYS)](tree.views, views(f"fast-{number}"))
            time.sleep(0.03)
        tree.until_served("fast-39")


def test_a_checkout_of_two_thousand_files(tree: Tree) -> None:
    """Between two branches, to and fro; what belongs to only one of them is imported too."""
    tree.plant()
    base = tree.directory
    (base / ".gitignore").write_text(".deployer/\n__pycache__/\n")
    (base / "views.py").write_text(views_of_packages("main"))
    git(base, "init", "--quiet", "--initial-branch=main")
    write_packages(base, "main")
    git(base, "add", "--all")
    git(base, "commit", "--quiet", "-m", "main")
    git(base, "checkout", "--quiet", "-b", "other")
    shutil.rmtree(base / "package0")
    (base / "views.py").write_text(views_of_packages("other"))
    write_packages(base, "other", first=1)
    git(base, "add", "--all")
    git(base, "commit", "--quiet", "-m", "other")
    with tree.watch():
        tree.until_served("other other 19")
        for branch, packages in (("main", 20), ("other", 19)):
            git(base, "checkout", "--quiet", branch)
            tree.until_served(f"{branch} {branch} {packages}", 60)
        git(base, "checkout", "--quiet", "main")
        git(base, "checkout", "--quiet", "other")  # without waiting
        tree.until_served("other other 19", 60)


def write_packages(base: Path, word: str, first: int = 0) -> None:
    for package in range(first, MANY // FILES_A_PACKAGE):
        directory = base / f"package{package}"
        directory.mkdir(exist_ok=True)
        for number in range(FILES_A_PACKAGE):
            (directory / f"module{number}.py").write_text(f"WORD = {word!r}\n")


def views_of_packages(branch: str) -> str:
    """A label of the branch, what all the files say (once if they agree), and how many packages there are."""
    return (
        "import pathlib\n"
        "modules = sorted(pathlib.Path(__file__).parent.glob('package*/module*.py'))\n"
        "words = sorted({path.read_text().split(chr(39))[1] for path in modules})\n"
        f"LABEL = ' '.join([{branch!r}, *words, str(len(modules) // {FILES_A_PACKAGE})])\n\n\n"
        "def answering():\n    pass\n"
    )


def test_a_directory_that_is_renamed_and_removed(tree: Tree) -> None:
    """What is in a directory that came by a rename is watched; one that went is nobody's any more."""
    tree.plant()
    parts = tree.directory / "parts"
    parts.mkdir()
    (parts / "label.py").write_text("WORD = 'one'\n")
    tree.views.write_text(views_from("parts"))
    with tree.watch():
        tree.until_served("one")
        parts.rename(tree.directory / "pieces")  # broken now: the old code serves on
        time.sleep(0.3)
        assert tree.served() == "one"
        tree.views.write_text(views_from("pieces"))
        (tree.directory / "pieces" / "label.py").write_text("WORD = 'two'\n")
        tree.until_served("two")
        in_place(tree.directory / "pieces" / "label.py", "WORD = 'three'\n")
        tree.until_served("three")
        outside = tree.base / "new" / "deep"
        outside.mkdir(parents=True)
        (outside / "label.py").write_text("WORD = 'four'\n")
        shutil.rmtree(tree.directory / "pieces")
        (tree.base / "new").rename(tree.directory / "new")
        tree.views.write_text(views_from("new.deep"))
        tree.until_served("four")
        (tree.directory / "new" / "deep" / "label.py").write_text("WORD = 'five'\n")
        tree.until_served("five")


def views_from(package: str) -> str:
    return f"from {package}.label import WORD as LABEL\n\n\ndef answering():\n    pass\n"


def test_a_link_that_is_switched(tree: Tree) -> None:
    """`current -> a`, then `-> b`, as a rename does it and as `ln -sfn` does."""
    tree.plant()
    for name in ("a", "b"):
        (tree.directory / name).mkdir()
        (tree.directory / name / "label.py").write_text(f"WORD = 'link-{name}'\n")
    link = tree.directory / "current"
    link.symlink_to("a")
    tree.views.write_text(views_from("current"))
    with tree.watch():
        tree.until_served("link-a")
        link.with_name("next").symlink_to("b")
        link.with_name("next").rename(link)
        tree.until_served("link-b")
        link.unlink()
        link.symlink_to("a")
        tree.until_served("link-a")
        (tree.directory / "a" / "label.py").write_text("WORD = 'behind the link'\n")
        tree.until_served("behind the link")


def test_edits_amid_the_rollout_of_a_slow_app(tree: Tree) -> None:
    """It boots for half a second, and is saved all the time: the newest wins, and is served at the end."""
    tree.plant()
    slow = "import time\ntime.sleep(0.5)\n"
    tree.views.write_text(slow + views(FIRST))
    with tree.watch() as watch:
        tree.until_served(FIRST)
        with LoadThread(tree.address, **LIGHT) as load:
            for number in range(12):
                tree.views.write_text(slow + views(f"slow-{number:02d}"))
                time.sleep(0.1 + 0.13 * (number % 5))
            tree.until_served("slow-11")
            report = load.stop()
        reasons = [event["reason"] for event in watch.drain() if event["event"] == "rollout.finished"]
    assert report.lost == 0, str(report)
    assert "superseded" in reasons


def test_a_broken_save_and_its_fix(tree: Tree) -> None:
    """What does not compile or import never serves; the next good save needs nobody's help."""
    tree.plant()
    with tree.watch() as watch:
        tree.until_served(FIRST)
        for number, broken in enumerate(("def broken(:\n", "import a_package_that_is_not_there\n")):
            tree.views.write_text(views("broken") + broken)
            failed = watch.until("rollout.failed")
            assert "views.py" in "\n".join([failed["what"], failed["cause"] or "", *failed["tail"]]), failed
            assert tree.served() == (f"fixed-{number - 1}" if number else FIRST)
            tree.views.write_text(views(f"fixed-{number}"))
            tree.until_served(f"fixed-{number}")


def test_a_node_app(tree: Tree) -> None:
    """Any program: its socket is a descriptor, and it is watched like the others."""
    node = shutil.which("node")
    if node is None:
        assert "CI" not in os.environ, "node is not installed"
        pytest.skip("node is not installed")
    tree.directory.mkdir()
    app = apps.node(tree.directory, label="node-0")
    tree.configure(f'command = "{node} server.js"\nready = "{app.ready}"')
    with tree.watch():
        tree.until_body("node-0")
        with LoadThread(tree.address, **LIGHT) as load:
            for number in range(1, 5):
                apps.node(tree.directory, label=f"node-{number}")
                tree.until_body(f"node-{number}")
            report = load.stop()
    assert report.lost == 0, str(report)


def test_a_build_step_for_each_save(tree: Tree) -> None:
    """[watch] build makes, in the release, what is served; a build that fails leaves the old code there."""
    tree.plant()
    tree.configure('app = "app:app"', "[watch]\nbuild = ['sh make.sh']\n")
    tree.views.write_text("import built\nLABEL = built.WORD\n\n\ndef answering():\n    pass\n")
    make = tree.directory / "make.sh"

    def script(word: str, more: str = "") -> str:
        return f"echo \"WORD = '{word}'\" > built.py\n{more}\n"

    make.write_text(script("one"))
    with tree.watch() as watch:
        tree.until_served("one")
        make.write_text(script("two"))
        tree.until_served("two")
        make.write_text(script("three", "echo oh dear; exit 3"))
        failed = watch.until("rollout.failed")
        assert "oh dear" in "\n".join([failed["cause"] or "", *failed["tail"]]), failed
        assert tree.served() == "two"
        make.write_text(script("four"))
        tree.until_served("four")
    assert not (tree.directory / "built.py").exists(), "the build works in the release"


def test_a_compiler_that_writes_into_the_tree(tree: Tree) -> None:
    """`tsc --watch` beside us: the save makes its output, that is a save too, and then there is rest."""
    tree.plant()
    compiler = tree.base / "compiler.py"
    compiler.write_text(COMPILER)
    source = tree.directory / "label.source"
    source.write_text("one")
    tree.views.write_text(views_from("output"))
    command = [sys.executable, str(compiler), str(source), str(tree.directory / "output" / "label.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        try:
            wait_until((tree.directory / "output" / "label.py").exists, "the compiler's first output")
            with tree.watch() as watch:
                tree.until_served("one")
                for word in ("two", "three"):
                    source.write_text(word)
                    tree.until_served(word)
                time.sleep(1.0)
                before = len(watch.drain())
                time.sleep(1.0)
                late = watch.drain()[before:]
                assert [event for event in late if event["event"] == "rollout.started"] == [], event_names(late)
        finally:
            running.kill()


COMPILER = """
import os, pathlib, sys, time
source, output = map(pathlib.Path, sys.argv[1:])
output.parent.mkdir(exist_ok=True)
seen = None
while os.getppid() != 1:
    text = source.read_text()
    if text and text != seen:
        time.sleep(0.1)
        output.write_text("")
        time.sleep(0.05)
        output.write_text(f"WORD = {text!r}\\n")
        seen = text
    time.sleep(0.02)
"""
