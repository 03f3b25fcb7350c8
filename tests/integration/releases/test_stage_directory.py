"""Staging a directory, by the real child process."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from stagekit import CONFIG, Stager, wait_until

from deployer.config.model import Config, Worker
from deployer.releases.digest import tree_digest
from deployer.releases.request import Directory

HERE = Directory(path=".")
NOBODY = 65534


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_copies_files_links_modes_times_and_empty_directories(stager: Stager) -> None:
    """The copy is the directory, whatever is in it, and its digest is the same."""
    write(stager.directory / "app/main.py").chmod(0o640)
    write(stager.directory / "run").chmod(0o755)
    (stager.directory / "empty").mkdir(mode=0o700)
    (stager.directory / "relative").symlink_to("app/main.py")
    (stager.directory / "absolute").symlink_to("/etc/hostname")
    (stager.directory / "dangling").symlink_to("nowhere")
    (stager.directory / "folder").symlink_to("app")
    os.utime(stager.directory / "run", (1_000_000_000, 1_000_000_000))
    os.utime(stager.directory / "relative", (5, 5), follow_symlinks=False)
    os.utime(stager.directory / "app", (7, 7))
    done = stager.run(HERE)
    release = stager.release()
    assert done.result is not None
    for name in ("app", "app/main.py", "run", "empty", "relative", "absolute", "dangling", "folder"):
        ours, theirs = (release / name).lstat(), (stager.directory / name).lstat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns), name
    assert os.readlink(release / "absolute") == "/etc/hostname"
    assert os.readlink(release / "folder") == "app"
    assert done.result["tree_digest"] == tree_digest(stager.directory) == tree_digest(release)
    assert (done.result["outcome"], done.result["files"], done.result["bytes"]) == ("staged", 6, 2)
    assert done.result["commit"] is None
    assert done.result["source"] == f"path {stager.directory}"
    assert "copied 6 files, 2 B" in done.progress


def test_leaves_out_what_is_no_part_of_a_release(stager: Stager) -> None:
    """Defaults and the user's globs, by name and by path; anchored and directory-only ones too."""
    for name in (
        *(".git/config", "sub/.git/config", "a/__pycache__/m.pyc", "b.pyc", ".venv/bin/python"),
        *("logs/x.log", "deep/er/y.log", "docs/page", "deep/docs/page", "build/out", "deep/build", "top", "deep/top"),
    ):
        write(stager.directory / name)
    write(stager.directory / "kept")
    stager.run(Directory(path=".", exclude=["*.log", "docs/*", "build/", "/top"]))
    release = stager.release()
    found = {str(path.relative_to(release)) for path in release.rglob("*") if not path.is_dir()}
    assert found == {".deployer.json", "kept", "deep/docs/page", "deep/build", "deep/top"}


def test_root_inside_the_source_is_not_copied(stager: Stager) -> None:
    """ROOT is left out by identity: also when the source names it by another way."""
    inside = Stager(stager.directory, stager.directory / "var/deployer")
    write(stager.directory / "app.py")
    alias = stager.directory.parent / "alias"
    alias.symlink_to(stager.directory)
    for name in ("v1", "v2"):
        inside.run(Directory(path=str(alias)), name)
    release = inside.release("v2")
    assert sorted(str(path.relative_to(release)) for path in release.rglob("*")) == [".deployer.json", "app.py", "var"]


def test_root_itself_is_no_source(stager: Stager) -> None:
    """`root = "."` would copy everything but everything."""
    done = stager.run(Directory(path=str(stager.layout.root)))
    assert done.exit == 6
    assert "is ROOT itself" in done.told
    stager.assert_nothing_left()


def test_names_with_spaces_line_breaks_and_no_utf8(stager: Stager) -> None:
    """A name is bytes without NUL and slash."""
    odd = (b"with space", b"line\nbreak", b"caf\xe9", b'quote"\\', b"-rf", "grün".encode())
    for name in odd:
        (stager.directory / os.fsdecode(name)).write_text("x")
    os.mkdir(os.fsencode(stager.directory) + b"/d\xff")
    os.symlink(b"\xfe\n", os.fsencode(stager.directory) + b"/link")
    os.mkfifo(os.fsencode(stager.directory) + b"/p\xfe\n")
    done = stager.run(HERE)
    assert sorted(os.listdir(os.fsencode(stager.release()))) == sorted([b".deployer.json", *odd, b"d\xff", b"link"])
    assert os.readlink(os.fsencode(stager.release()) + b"/link") == b"\xfe\n"
    assert "skipped p\\xfe\\n: a fifo" in done.progress


def test_special_files_are_skipped_and_told(stager: Stager) -> None:
    """Opening a fifo would wait for ever; a socket cannot be copied."""
    os.mkfifo(stager.directory / "pipe")
    write(stager.directory / "app.py")
    here = os.getcwd()
    os.chdir(stager.directory)  # a socket's path is limited to 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as held:
            held.bind("sock")
            done = stager.run(HERE)
    finally:
        os.chdir(here)
    assert sorted(os.listdir(stager.release())) == [".deployer.json", "app.py"]
    assert {"skipped pipe: a fifo", "skipped sock: a socket"} <= set(done.progress)


def test_setuid_is_dropped(stager: Stager) -> None:
    """The copy belongs to whoever runs deployer: a user's setuid file must not become root's."""
    write(stager.directory / "tool").chmod(0o4755)
    stager.run(HERE)
    assert stat.S_IMODE((stager.release() / "tool").stat().st_mode) == 0o755


@pytest.mark.parametrize(("path", "why"), [("missing", "No such file"), ("file", "is not a directory")])
def test_a_source_that_is_no_directory(stager: Stager, path: str, why: str) -> None:
    """Exit 6, named, with the next step."""
    write(stager.directory / "file")
    done = stager.run(Directory(path=path))
    assert done.exit == 6
    assert done.error is not None
    assert done.error["reason"] == "source"
    assert str(stager.directory / path) in done.told
    assert why in done.told
    assert "deployer deploy --path DIR" in done.told
    stager.assert_nothing_left()


def test_a_source_nested_too_deep(stager: Stager) -> None:
    """A runaway copy inside itself is refused rather than staged and never removable."""
    write(stager.directory / ("d/" * 260) / "file")
    done = stager.run(HERE)
    assert done.exit == 6
    assert "nested deeper than" in done.told
    stager.assert_nothing_left()


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may use, for a child without root's right to read everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_an_unreadable_file_is_named(as_nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called in this process under another effective user: the interpreter itself may be closed to nobody."""
    from deployer.errors import SourceError
    from deployer.releases.index import IndexWriter
    from deployer.releases.links import Previous
    from deployer.releases.sources import directory

    for name in ("source", "root", "into"):
        (as_nobody / name).mkdir()
        os.chown(as_nobody / name, NOBODY, NOBODY)
    write(as_nobody / "source/secret").chmod(0o600)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(SourceError) as caught:
            directory.copy(
                HERE,
                as_nobody / "source",
                as_nobody / "root",
                as_nobody / "into",
                IndexWriter(as_nobody / "root/into.index"),
                Previous(None, may_link=True, shared=[]),
                lambda text: None,
            )
    finally:
        os.seteuid(0)
    assert caught.value.what == f"cannot read {as_nobody}/source/secret"
    assert caught.value.cause == "Permission denied"
    assert "exclude" in (caught.value.hint or "")


WRITER = "import sys\nwith open(sys.argv[1], 'ab', buffering=0) as file:\n    while True: file.write(b'x')\n"


def test_a_file_that_never_stands_still_is_named(stager: Stager) -> None:
    """A log that grows all the time: a clear error with what to do, and nothing left."""
    target = stager.directory / "busy.log"
    target.write_bytes(b"x" * (32 << 20))  # large enough that each copy of it sees the writer at work
    size = target.stat().st_size
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)])
    try:
        wait_until(lambda: target.stat().st_size > size)
        done = stager.run(HERE)
        excluded = stager.run(Directory(path=".", exclude=["*.log"]))
    finally:
        writer.kill()
        writer.wait()
    assert done.exit == 6
    assert "busy.log changes while it is copied" in done.told
    assert "exclude" in done.told
    assert excluded.exit == 0
    assert os.listdir(stager.release()) == [".deployer.json"]


def test_a_directory_that_changes_for_a_moment_is_copied_whole(stager: Stager) -> None:
    """Files appear and vanish at first: the copy is tried again and is the directory as it came to rest."""
    for number in range(300):
        write(stager.directory / f"{number}.py", str(number))
    over = threading.Event()

    def churn() -> None:
        for turn in range(40):
            (stager.directory / f"tmp{turn}").write_text("x")
            (stager.directory / f"tmp{turn}").unlink()
        over.set()

    child = stager.start(stager.request(HERE))
    thread = threading.Thread(target=churn)
    thread.start()
    done = stager.finish(child)
    thread.join()
    assert over.is_set()
    assert done.exit == 0
    assert tree_digest(stager.release()) == tree_digest(stager.directory)


def test_the_same_tree_is_not_staged_again(stager: Stager) -> None:
    """Unless it is forced, or what the workers run with has changed."""
    write(stager.directory / "app.py")
    first = stager.run(HERE).result
    assert first is not None
    live = {"live_digest": first["tree_digest"], "live_settings": first["settings_digest"]}
    os.utime(stager.directory / "app.py", (1, 1))
    same = stager.run(HERE, "v2", **live)
    assert same.result is not None
    assert same.result["outcome"] == "same"
    assert same.result["tree_digest"] == first["tree_digest"]
    stager.assert_nothing_left(releases=("v1",))
    other = msgspec.structs.replace(CONFIG, worker=Worker(command="serve --fast {fd}"))
    changed = stager.run(HERE, "v2", host_config=other, **live).result
    forced = stager.run(HERE, "v3", force=True, **live).result
    assert changed is not None
    assert forced is not None
    assert (changed["outcome"], forced["outcome"]) == ("staged", "staged")


def test_a_release_brings_its_own_configuration(stager: Stager) -> None:
    """Its deployer.toml overrides what is a release's to decide; env files are read beside the host's file."""
    write(stager.directory / "app/deployer.toml", '[worker]\ncommand = "new {fd}"\nenv_file = [".env"]\n')
    write(stager.directory / ".env", "COLOUR=blue\n")
    done = stager.run(Directory(path="app"))
    assert done.result is not None
    assert done.result["config"]["worker"]["command"] == "new {fd}"
    assert done.result["config"]["name"] == CONFIG.name
    assert done.result["env"] == {"COLOUR": "blue"}
    assert msgspec.convert(done.result["config"], Config).worker.env_file == [".env"]


@pytest.mark.parametrize("text", ['[worker]\ncomand = "x"\n', "[worker\n", "[worker]\ncommand = 3\n"])
def test_a_release_with_a_wrong_configuration_is_refused(stager: Stager, text: str) -> None:
    """Exit 78, named by the release and not by its temporary place."""
    write(stager.directory / "deployer.toml", text)
    done = stager.run(HERE)
    assert done.exit == 78
    assert "deployer.toml" in done.told
    assert ".partial" not in done.told
    stager.assert_nothing_left()


def test_a_missing_env_file_is_a_configuration_error(stager: Stager) -> None:
    """The environment is frozen with the release."""
    config = Config(name="shop", worker=Worker(command="x {fd}", env_file=["nowhere.env"]))
    done = stager.run(HERE, host_config=config)
    assert done.exit == 78
    assert "nowhere.env" in done.told
    stager.assert_nothing_left()


def test_a_release_that_exists_is_not_touched(stager: Stager) -> None:
    """Ids are never reused."""
    write(stager.release() / "precious")
    done = stager.run(HERE)
    assert done.exit == 6
    assert "v1 exists already" in done.told
    assert os.listdir(stager.release()) == ["precious"]


def test_what_is_no_request_is_refused(stager: Stager) -> None:
    """Usage error, one line of JSON, no traceback."""
    child = stager.start(stager.request(HERE))
    stager.finish(child)
    shutil.rmtree(stager.release())
    bad = stager.request(HERE, name="../v1")
    assert stager.run(HERE, name=bad.name).exit == 2
    assert os.listdir(stager.layout.releases) == [".v1.index"], "of the release that was there"


def test_refuses_to_run_for_a_parent_that_is_gone(stager: Stager) -> None:
    """The manager died between the start and the request: nobody would see the result."""
    child = stager.start(stager.request(HERE, parent=1))
    stdout, _ = child.communicate(timeout=60)
    assert (child.returncode, stdout) == (143, b"")
    assert not stager.layout.releases.exists()
