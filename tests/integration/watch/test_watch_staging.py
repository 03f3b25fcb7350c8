"""Snapshots that the watching child stages: of one moment, shared with the one before, checked, cancelled, killed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from deployer.config.model import Config
from deployer.config.model import Watch as WatchTable
from deployer.errors import Exit
from deployer.osutil.process import descendants
from deployer.releases.request import Development
from deployer.watch.protocol import Error, Progress, Result, Saved, Stage
from tests.integration.watch.watchkit import CONFIG, Child, tree, wait_until

Watch = Callable[..., Child]
GIT = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "advice.detachedHead=false")
FILES = 2000


def git(top: Path, *arguments: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    subprocess.run([*GIT, *arguments], cwd=top, env=env, check=True, capture_output=True)


def building(command: str) -> Config:
    return msgspec.structs.replace(CONFIG, watch=WatchTable(build=[command]))


def test_unchanged_files_are_shared_with_the_save_before(watch: Watch, source: Path) -> None:
    child = watch()
    assert child.stage().outcome == "staged"
    (source / "app.py").write_text("app = 2\n")
    child.expect(Saved)
    child.stage()
    old, new = child.release("dev-1"), child.release("dev-2")
    assert os.stat(old / "views/start.py").st_ino == os.stat(new / "views/start.py").st_ino
    assert (old / "app.py").read_text() == "app = 1\n"
    assert (new / "app.py").read_text() == "app = 2\n"


def test_what_is_live_already_is_not_staged_again(watch: Watch) -> None:
    child = watch()
    first = child.stage()
    again = child.stage(live_digest=first.tree_digest, live_settings=first.settings_digest)
    assert again.outcome == "same"
    assert not child.release().exists()


def test_a_save_is_shaped_for_development(watch: Watch) -> None:
    child = watch()
    result = child.stage(development=Development(stop_signal="SIGINT", reload="http://127.0.0.1:1/events"))
    assert result.config.worker.stop_signal == "SIGINT"
    assert not result.config.worker.preload
    assert result.config.rollout.soak == "0s"
    assert result.env["DEPLOYER_RELOAD"] == "http://127.0.0.1:1/events"
    assert (child.release() / ".deployer.json").stat().st_mode & 0o777 == 0o644


def test_a_release_that_heals_is_one_like_any_other(watch: Watch, source: Path) -> None:
    child = watch()
    child.stage()
    (source / "app.py").write_text("app = 2\n")
    child.stage(name="v1", development=None)
    assert tree(child.release("v1")) == tree(source)
    # Nobody has brought the save to the disk: a release has its own files.
    assert os.stat(child.release("v1") / "data.json").st_ino != os.stat(child.release("dev-1") / "data.json").st_ino
    (source / "app.py").write_text("def f(:\n")
    problem = child.fail(name="v2", development=None)
    assert (problem.reason, problem.what) == ("syntax", "app.py does not compile")


def test_a_file_that_does_not_compile_is_no_snapshot(watch: Watch, source: Path) -> None:
    child = watch()
    child.stage()
    (source / "views/start.py").write_text("def start():\nreturn 1\n")
    child.expect(Saved)
    problem = child.fail()
    assert (problem.reason, problem.exit) == ("syntax", Exit.NOT_STARTED)
    assert problem.what == "views/start.py does not compile"
    assert problem.cause is not None
    assert problem.cause.startswith("line 2: expected an indented block")
    assert problem.tail[0] == '  File "views/start.py", line 2'
    assert not child.release().exists()
    (source / "views/start.py").write_text("def start():\n    return 3\n")
    child.expect(Saved)
    assert child.stage().outcome == "staged"


def test_the_worker_finds_bytecode_of_what_changed_and_of_what_did_not(watch: Watch, source: Path) -> None:
    child = watch()
    child.stage()
    for number in range(2, 4):
        (source / "app.py").write_text(f"import views.start\napp = {number}\n")
        child.expect(Saved)
        child.stage()
        imported = subprocess.run(
            [sys.executable, "-v", "-B", "-c", "import app; print(app.app, app.__file__)"],
            cwd=child.release(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert imported.stdout == f"{number} {child.release()}/app.py\n"
        for name in ("app.py", "views/start.py"):
            cached = importlib.util.cache_from_source(str(child.release() / name))
            assert f"matches {child.release() / name}" in imported.stderr, cached
        assert f"# code object from '{child.release()}/app.py'" not in imported.stderr


def test_a_build_of_the_watch_runs_in_the_release(watch: Watch, source: Path) -> None:
    child = watch()
    child.stage(host_config=building("cp app.py built.py && echo >> data.json"))
    assert (child.release() / "built.py").read_text() == "app = 1\n"
    child.stage(host_config=building("echo >> data.json"))
    assert (child.release("dev-1") / "data.json").read_text() == "{}\n\n"
    assert (source / "data.json").read_text() == "{}\n"
    problem = child.fail(host_config=building("echo no luck; exit 3"))
    assert (problem.reason, problem.tail[-1]) == ("build", "no luck")


def test_a_checkout_of_thousands_of_files_is_one_save_of_one_moment(watch: Watch, source: Path) -> None:
    def write(text: str) -> None:
        for number in range(FILES):
            path = source / f"lib/p{number % 40}/m{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text} = {number}\n")

    (source / ".gitignore").write_text(".deployer\n")
    git(source, "init", "--quiet", "--initial-branch=main")
    for text in ("old", "new"):
        write(text)
        git(source, "add", "--all")
        git(source, "commit", "--quiet", "--message", text)
        git(source, "tag", text)
    child = watch(settle_s=0.1)
    child.stage()
    git(source, "checkout", "--quiet", "old")
    saved = child.expect(Saved)
    assert saved.count >= FILES
    child.nothing_saved()
    child.stage()
    assert tree(child.release()) == tree(source)
    # And while one goes on: nothing of both.
    checkout = threading.Thread(target=git, args=(source, "checkout", "--quiet", "new"))
    checkout.start()
    child.stage()
    checkout.join()
    texts = {path.read_text().split()[0] for path in (child.release() / "lib").rglob("*.py")}
    assert len(texts) == 1


def test_a_compiler_that_writes_into_the_tree_is_waited_for(watch: Watch, source: Path) -> None:
    child = watch(settle_s=0.1)
    child.stage()
    script = "for i in $(seq 60); do echo $i > a.js; echo $i > b.js; sleep 0.02; done"
    compiler = subprocess.Popen(["/bin/sh", "-c", script], cwd=source)
    wait_until((source / "b.js").exists)
    child.stage()
    assert compiler.poll() == 0
    assert (child.release() / "a.js").read_text() == (child.release() / "b.js").read_text() == "60\n"


def test_files_that_change_all_the_time_are_told(watch: Watch, source: Path) -> None:
    for number in range(500):
        (source / f"views/{number}.py").write_text(f"x = {number}\n")  # so that a copy takes its time
    child = watch(settle_s=0.5)
    script = "while :; do echo x > out.js; done"
    writers = [subprocess.Popen(["/bin/sh", "-c", script], cwd=source) for _ in range(2)]
    try:
        problem = child.fail()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert (problem.reason, problem.what) == ("source", "files change all the time")
    assert problem.cause is not None
    assert problem.cause.startswith("out.js was written")
    child.stage()
    assert tree(child.release()) == tree(source)


def test_saves_are_told_while_a_staging_is_under_way(watch: Watch, source: Path) -> None:
    child = watch()
    child.send(Stage(request=child.request(host_config=building("sleep 30"))))
    child.expect(Progress)
    wait_until(lambda: len(child.processes()) > 2)
    (source / "app.py").write_text("app = 2\n")
    assert child.expect(Saved).files == ["app.py"]
    child.cancel()
    assert child.expect(Error).error.reason == "aborted"
    assert not list((child.root / "releases").iterdir())
    child.stage()
    assert (child.release() / "app.py").read_text() == "app = 2\n"


def test_a_cancel_that_comes_too_late_or_for_nothing(watch: Watch) -> None:
    child = watch()
    child.cancel()
    for _ in range(20):
        child.send(Stage(request=child.request()))
        child.cancel()
        word = child.answer()
        if not hasattr(word, "reason"):
            assert child.release().exists()
        else:
            assert word.reason == "aborted"
            assert not child.release().exists()
        assert not list((child.root / "releases").glob(".*.partial"))
    child.stage()


def test_the_end_of_its_orders_ends_all(source: Path, tmp_path: Path) -> None:
    with Child(source, tmp_path / "root") as child:
        child.send(Stage(request=child.request(host_config=building("sleep 60 & sleep 60"))))
        child.expect(Progress)
        wait_until(lambda: len(child.processes()) >= 4)
    assert not list((tmp_path / "root/releases").iterdir())


@pytest.mark.parametrize("victim", ["child", "fork"])
def test_killed_at_any_moment(source: Path, tmp_path: Path, victim: str) -> None:
    """Nothing runs on, no half of a release has a release's name, and the next one goes on."""
    for number in range(300):
        (source / f"views/{number}.py").write_text(f"x = {number}\n")
    root = tmp_path / "root"
    for turn in range(12):
        with Child(source, root) as child:
            (source / "app.py").write_text(f"app = {turn}\n")
            child.send(Stage(request=child.request()))
            time.sleep(turn * 0.004)
            pids = child.processes()
            if victim == "child":
                child.kill()
            else:
                for pid in pids[1:]:
                    try:
                        os.kill(pid, 9)
                    except ProcessLookupError:
                        pass
                word = child.answer()
                assert hasattr(word, "tree_digest") or word.reason == "source", word
                assert descendants(child.process.pid) == [child.process.pid] or hasattr(word, "tree_digest")
                (source / "app.py").write_text(f"app = {turn} # again\n")
                child.expect(Saved)
                child.stage()
                assert tree(child.release()) == tree(source)
        for release in (root / "releases").glob("dev-*"):
            assert (release / ".deployer.json").is_file()
    with Child(source, root) as child:
        child.stage()
        assert tree(child.release()) == tree(source)


def test_a_result_is_one_line_also_with_much_in_it(watch: Watch, source: Path) -> None:
    child = watch()
    (source / "deployer.toml").write_text('[worker]\nenv = { LONG = "' + "x" * 300_000 + '" }\n')
    child.send(Stage(request=child.request()))
    assert len(child.expect(Result).result.env["LONG"]) == 300_000


def test_a_broken_deployer_toml_names_its_line(watch: Watch, source: Path) -> None:
    child = watch()
    (source / "deployer.toml").write_text('[worker]\napp = "x:y\n')
    problem = child.fail()
    assert problem.reason == "config"
    assert "deployer.toml" in problem.what


def test_a_hundred_saves_leave_no_descriptors_and_no_memory(watch: Watch, source: Path) -> None:
    def used() -> tuple[int, int]:
        process = Path(f"/proc/{child.process.pid}")
        return len(list((process / "fd").iterdir())), int((process / "statm").read_text().split()[1])

    def save(number: int) -> None:
        (source / "app.py").write_text(f"app = {number}\n" if number % 3 else "def (\n")
        child.expect(Saved)
        child.send(Stage(request=child.request()))
        child.answer()

    child = watch()
    child.stage()
    for number in range(20):
        save(number)
    wait_until(lambda: len(child.processes()) == 1)
    descriptors, pages = used()
    for number in range(20, 120):
        save(number)
    wait_until(lambda: len(child.processes()) == 1)
    after = used()
    assert after[0] == descriptors
    assert after[1] < pages + 100  # 400 KB
