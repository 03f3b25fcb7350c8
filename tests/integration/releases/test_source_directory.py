"""What a directory deploy takes along, and what it shares with the release before."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stagekit import CONFIG, HERE, Repository, Stager, inode, settle, stage, write

from deployer.config.model import Build, Release
from deployer.config.model import Source as SourceTable
from deployer.releases.digest import tree_digest
from deployer.releases.request import Directory

OURS = {".deployer.json"}


def files(tree: Path) -> set[str]:
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir() or path.is_symlink()}
    return found - OURS


def test_gitignore_is_read_as_git_reads_it(repository: Repository, stager: Stager) -> None:
    """Nested files, negation, anchors, a directory that goes whole, info/exclude: what git would take is taken."""
    top = repository.path
    texts = {
        ".gitignore": "*.log\n!keep.log\n/only-top\nbuild/\n!build/never\n# comment\n\\#odd\nsp ace\ndoc/**/draft\n!\n",
        "a.log": "", "keep.log": "", "only-top": "", "sub/only-top": "", "build/x": "", "build/never": "",
        "#odd": "", "sp ace": "", "doc/a/b/draft": "", "doc/a/b/final": "",
        "sub/.gitignore": "!a.log\n*.tmp\r\n/local\n", "sub/a.log": "", "sub/x.tmp": "", "sub/local": "",
        "sub/deep/local": "", "sub/deep/x.tmp": "", "excluded-by-info": "", "other/.gitignore": "*\n!.gitignore\n",
        "other/gone": "", "app.py": "",
    }  # fmt: skip
    write(top, **texts)
    (top / ".git/info/exclude").write_text("excluded-by-info\n")
    listed = repository.git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    stage(stager, "v1", Directory(path=str(top)))
    assert files(stager.release()) == set(listed.strip("\0").split("\0"))


def test_gitignore_without_a_repository_and_above_the_source(stager: Stager, repository: Repository) -> None:
    """A plain directory's is respected too; so is that of the work tree around the source, unless it names that."""
    write(stager.directory, **{".gitignore": "secret\n", "secret": "", "app.py": ""})
    stage(stager, "v1")
    assert files(stager.release()) == {".gitignore", "app.py"}
    write(repository.path, **{".gitignore": "*.log\nout/\n", "web/a.log": "", "web/b": "", "out/app.js": ""})
    stage(stager, "v2", Directory(path=str(repository.path / "web")))
    assert files(stager.release("v2")) == {"b"}
    stage(stager, "v3", Directory(path=str(repository.path / "out")))
    assert files(stager.release("v3")) == {"app.js"}


def test_include_takes_what_is_ignored_and_exclude_wins(stager: Stager) -> None:
    """Built assets are ignored by git and belong into the release."""
    texts = {".gitignore": "dist/\n*.env\n", "dist/app.js": "", "dist/app.js.map": "", "dist/other/x": "", "a.env": ""}
    write(stager.directory, **texts)
    stage(stager, "v1", Directory(path=".", include=["dist/*.js", "dist/other/"], exclude=["*.map"]))
    assert files(stager.release()) == {".gitignore", "dist/app.js", "dist/other/x"}


def test_unchanged_files_are_linked_and_changed_ones_are_not(stager: Stager) -> None:
    """Same inode for what is the same; the digest is that of a copy."""
    write(stager.directory, **{"a/same": "same", "a/changed": "1", "gone": "x"})
    settle(stager.directory)
    first = stage(stager, "v1")
    write(stager.directory, **{"a/changed": "2", "new": "n"})
    (stager.directory / "gone").unlink()
    second = stage(stager, "v2")
    one, two = stager.release("v1"), stager.release("v2")
    assert inode(one / "a/same") == inode(two / "a/same")
    assert inode(one / "a/changed") != inode(two / "a/changed")
    assert ((one / "a/changed").read_text(), (two / "a/changed").read_text()) == ("1", "2")
    assert files(two) == {"a/same", "a/changed", "new"}
    assert first["tree_digest"] != second["tree_digest"] == tree_digest(stager.directory)


def test_times_and_sizes_that_lie_are_not_believed(stager: Stager) -> None:
    """A build that sets all times to one moment: same size, same time, other bytes."""
    write(stager.directory, **{"app.js": "version 1"})
    settle(stager.directory)
    stage(stager, "v1")
    write(stager.directory, **{"app.js": "version 2"})
    settle(stager.directory)
    result = stage(stager, "v2")
    assert (stager.release("v2") / "app.js").read_text() == "version 2"
    assert (stager.release("v1") / "app.js").read_text() == "version 1"
    assert result["tree_digest"] == tree_digest(stager.directory)


def test_a_new_checkout_of_the_same_files_is_shared(stager: Stager) -> None:
    """Other inodes, same contents and times: read, found equal, linked."""
    write(stager.directory, **{"app.py": "1"})
    settle(stager.directory)
    stage(stager, "v1")
    (stager.directory / "app.py").unlink()
    write(stager.directory, **{"app.py": "1"})
    settle(stager.directory)
    stage(stager, "v2")
    assert inode(stager.release("v1") / "app.py") == inode(stager.release("v2") / "app.py")


def test_what_the_app_wrote_into_its_release_is_not_handed_on(stager: Stager) -> None:
    """v1's app changed a file: v2 has the source's bytes, of its own, and so has v3."""
    write(stager.directory, **{"settings.json": "shipped", "app.py": "1"})
    settle(stager.directory)
    stage(stager, "v1")
    (stager.release("v1") / "settings.json").write_text("written by the app")
    stage(stager, "v2")
    stage(stager, "v3")
    trees = [stager.release(name) for name in ("v1", "v2", "v3")]
    assert [(tree / "settings.json").read_text() for tree in trees] == ["written by the app", "shipped", "shipped"]
    assert len({inode(tree / "settings.json") for tree in trees}) == 3
    assert len({inode(tree / "app.py") for tree in trees}) == 1


@pytest.mark.parametrize("where", ["host", "release"])
def test_a_build_does_not_write_into_the_release_before(stager: Stager, where: str) -> None:
    """Whoever asks for the build: v2's files are its own, and writing into them leaves v1's bytes alone."""
    write(stager.directory, **{"bundle.js": "1", "app.py": "1"})
    settle(stager.directory)
    stage(stager, "v1")
    command = "sh -c 'echo built >> bundle.js'"
    config: dict[str, Any] = {"build": Build(run=[command])} if where == "host" else {}
    if where == "release":
        write(stager.directory, **{"deployer.toml": f'[build]\nrun = ["{command}"]\n'})
    stage(stager, "v2", **config)
    assert (stager.release("v2") / "bundle.js").read_text() == "1built\n"
    assert (stager.release("v1") / "bundle.js").read_text() == "1"
    for path in (stager.release("v2") / "bundle.js", stager.release("v2") / "app.py"):
        assert path.stat().st_nlink == 1


def test_files_that_programs_write_are_never_linked(stager: Stager) -> None:
    """Databases, logs, what others may write, what is shared; and nothing at all with link = false."""
    names = ["data.sqlite3", "cache.db", "app.log", "uploads/a.png", "open", "app.py"]
    write(stager.directory, **dict.fromkeys(names, "x"))
    (stager.directory / "open").chmod(0o666)
    settle(stager.directory)
    shared = {"release": Release(shared=["uploads"])}
    stage(stager, "v1")
    stage(stager, "v2", **shared)
    for name in ("data.sqlite3", "cache.db", "app.log", "open"):
        path = stager.release("v2") / name
        assert path.stat().st_nlink == 1, name
        path.write_text("written")
        assert (stager.release("v1") / name).read_text() == "x"
    assert (stager.release("v2") / "app.py").stat().st_nlink == 2
    assert (stager.release("v1") / "uploads/a.png").stat().st_nlink == 1
    done = stager.run(HERE, "v3", host_config=msgspec.structs.replace(CONFIG, source=SourceTable(link=False)))
    assert done.exit == 0
    assert (stager.release("v3") / "app.py").stat().st_nlink == 1


def test_a_missing_or_damaged_index_means_copies(stager: Stager) -> None:
    """It is a help, never needed."""
    write(stager.directory, **{"app.py": "1"})
    settle(stager.directory)
    stage(stager, "v1")
    index = stager.layout.releases / ".v1.index"
    assert index.stat().st_mode & 0o777 == 0o600
    index.write_bytes(b"SQLite format 3\0" + os.urandom(4096))
    stage(stager, "v2")
    assert (stager.release("v2") / "app.py").stat().st_nlink == 1
    stage(stager, "v3")
    assert inode(stager.release("v3") / "app.py") == inode(stager.release("v2") / "app.py")


def test_reflinks_where_the_file_system_has_them(stager: Stager, tmp_path: Path) -> None:
    """On XFS: files of their own on shared blocks, also with a build."""
    image, place = tmp_path / "image", tmp_path / "xfs"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    try:
        made = subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], capture_output=True, check=False)
        mounted = made.returncode or subprocess.run(["mount", "-o", "loop", image, place], check=False).returncode
    except FileNotFoundError:
        mounted = 1
    if mounted:
        pytest.skip("NOT TESTED: reflinks; no mkfs.xfs or no loop mount here")
    try:
        small = Stager(stager.directory, place / "root")
        write(stager.directory, **{"data.db": "x" * 100_000})
        settle(stager.directory)
        stage(small, "v1")
        done = small.run(HERE, "v2")
        assert any("1 of them unchanged and shared" in line for line in done.progress)
        one, two = small.release("v1") / "data.db", small.release("v2") / "data.db"
        assert inode(one) != inode(two)
        two.write_text("other")
        assert one.read_text() == "x" * 100_000
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
