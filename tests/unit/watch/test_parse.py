"""Changed files that cannot be read, found before any worker is started."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

from deployer.config.model import Config, Worker
from deployer.errors import BuildError, Exit
from deployer.paths import Layout
from deployer.releases.index import Entry, IndexWriter, place
from deployer.releases.stage import Taken
from deployer.watch.parse import check, compare

MTIME_NS = 1_700_000_000_000_000_000
APP = Worker(app="app:app")


class Releases:
    """Trees with their index, as staging leaves them."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.releases.mkdir(parents=True)
        self._number = 0
        self._last: Path | None = None

    def make(self, worker: Worker = APP, *, development: bool = True, **files: str) -> Taken:
        """A release of these files; `views__start_py` is views/start.py."""
        self._number += 1
        name = f"dev-{self._number}"
        tree = self.layout.release(name)
        index = IndexWriter(place(tree))
        for key, text in files.items():
            path = tree / key.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, ns=(MTIME_NS, MTIME_NS))
            directory = "" if path.parent == tree else str(path.parent.relative_to(tree))
            digest = hashlib.sha256(text.encode()).digest()
            entry = Entry(os.fsencode(path.name), len(text), MTIME_NS, 0o644, 1, False, 1, 0, digest)
            index.put(os.fsencode(directory), [entry])
        index.close()
        config = Config(name="shop", worker=worker)
        taken = Taken(
            layout=self.layout,
            name=name,
            tree=tree,
            previous=self._last,
            config=config,
            env={"PATH": os.environ["PATH"]},
            environment=None,
            development=development,
        )
        self._last = tree
        return taken


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "root")


def failure(taken: Taken) -> BuildError:
    with pytest.raises(BuildError) as caught:
        check(taken)
    assert (caught.value.reason, caught.value.exit_code) == ("syntax", Exit.NOT_STARTED)
    return caught.value


def test_a_syntax_error_is_told_as_python_does(releases: Releases) -> None:
    check(releases.make(views__start_py="x = 1\n"))
    error = failure(releases.make(views__start_py="x = 1\n\ndef f(:\n    pass\n"))
    assert error.what == "views/start.py does not compile"
    assert error.cause == "line 3: invalid syntax"
    assert error.tail[0] == '  File "views/start.py", line 3'
    assert error.tail[1].strip() == "def f(:"
    assert error.tail[2].strip() == "^"
    assert error.tail[-1] == "SyntaxError: invalid syntax"


def test_several_are_counted_and_shown(releases: Releases) -> None:
    check(releases.make(a_py="", b_py=""))
    error = failure(releases.make(a_py="(\n", b_py="]\n"))
    assert error.what == "a.py does not compile (and 1 more)"
    assert any('"b.py"' in line for line in error.tail)


def test_a_null_byte_and_bytes_that_are_no_text(releases: Releases) -> None:
    check(releases.make(a_py=""))
    assert "null bytes" in str(failure(releases.make(a_py="x = '\0'\n")).cause)
    check(releases.make(a_py=""))
    assert "coding" in str(failure(releases.make(a_py="# coding: klingon\n")).cause)


def test_json_and_toml(releases: Releases) -> None:
    check(releases.make(a_json="{}", b_toml=""))
    error = failure(releases.make(a_json='{\n  "a": 1,\n  "b" 2\n}\n', b_toml=""))
    assert error.what == "a.json does not parse"
    assert error.cause == "line 3: Expecting ':' delimiter"
    assert error.tail[0] == '  File "a.json", line 3'
    assert error.tail[1].strip() == '"b" 2'
    check(releases.make(a_json="{}", b_toml=""))
    error = failure(releases.make(a_json="{}", b_toml="x = 1\ny = \n"))
    assert error.what == "b.toml does not parse"
    assert error.cause == "line 2: Invalid value"
    assert error.tail[1].strip() == "y ="


def test_json_with_comments_is_left_to_its_readers(releases: Releases) -> None:
    check(releases.make(tsconfig_json="{}"))
    check(releases.make(tsconfig_json='{\n  // ours\n  "a": 1,\n}\n'))


def test_what_did_not_change_is_not_looked_at(releases: Releases) -> None:
    check(releases.make(template_py="{{ name }} = (\n", app_py="x = 1\n"))
    check(releases.make(template_py="{{ name }} = (\n", app_py="x = 2\n"))


def test_what_was_no_better_before_is_passed_over(releases: Releases) -> None:
    """The template of a code generator is edited."""
    check(releases.make(template_py="{{ name }} = (\n"))
    check(releases.make(template_py="{{ name }} = ((\n"))


def test_without_a_release_before_nothing_is_held_against_it(releases: Releases) -> None:
    check(releases.make(template_py="{{ name }} = (\n"))


@pytest.mark.parametrize(
    ("command", "checked"),
    [
        (f"{sys.executable} app.py", True),
        ("node app.js", False),
        ("gunicorn app:app", False),  # nobody knows on which Python
        ("/opt/other/bin/python3.14 app.py", False),
        ("", False),
    ],
)
def test_python_is_judged_only_where_the_worker_runs_on_ours(releases: Releases, command: str, checked: bool) -> None:
    worker = Worker(command=command)
    check(releases.make(worker, a_py=""))
    broken = releases.make(worker, a_py="match x:\n  case (\n")
    if checked:
        failure(broken)
    else:
        check(broken)


def test_a_save_keeps_what_was_compiled(releases: Releases) -> None:
    check(releases.make(a_py="", views__b_py=""))
    taken = releases.make(a_py="x = 1\n", views__b_py="y = 1\n")
    check(taken)
    for name in ("a.py", "views/b.py"):
        cached = importlib.util.cache_from_source(str(taken.tree / name))
        code = Path(cached).read_bytes()
        assert int.from_bytes(code[8:12], "little") == MTIME_NS // 10**9
        assert int.from_bytes(code[12:16], "little") == len("x = 1\n")


def test_a_release_keeps_nothing(releases: Releases) -> None:
    check(releases.make(a_py=""))
    taken = releases.make(development=False, a_py="x = 1\n")
    check(taken)
    assert not list(taken.tree.rglob("*.pyc"))


def test_bytecode_of_unchanged_files_is_shared_and_of_others_is_not(releases: Releases) -> None:
    first = releases.make(a_py="x = 1\n", b_py="y = 1\n", lib__c_py="z = 1\n")
    check(first)
    for name in ("a", "b", "lib/c"):
        assert Path(importlib.util.cache_from_source(str(first.tree / f"{name}.py"))).exists()
    second = releases.make(a_py="x = 2\n", b_py="y = 1\n", lib__c_py="z = 1\n")
    check(second)
    for name, same in (("a", False), ("b", True), ("lib/c", True)):
        old, new = (importlib.util.cache_from_source(str(each.tree / f"{name}.py")) for each in (first, second))
        assert (os.stat(old).st_ino == os.stat(new).st_ino) is same


def test_a_directory_that_may_not_be_written_to_has_no_bytecode(releases: Releases) -> None:
    check(releases.make(lib__a_py="x = 1\n"))
    taken = releases.make(lib__a_py="x = 2\n")
    (taken.tree / "lib").chmod(0o500)
    check(taken)  # as root it is written to all the same
    (taken.tree / "lib").chmod(0o700)


def test_a_damaged_index_means_no_check(releases: Releases) -> None:
    check(releases.make(a_py=""))
    taken = releases.make(a_py="(\n")
    place(taken.tree).write_bytes(b"no database at all, but long enough to be looked at" * 100)
    assert compare(place(taken.tree), None) == ({}, {})
    check(taken)


def test_a_release_before_that_is_gone(releases: Releases, tmp_path: Path) -> None:
    taken = releases.make(a_py="x = 1\n")
    changed, same = compare(place(taken.tree), tmp_path / "nothing.index")
    assert (changed, same) == ({}, {})
