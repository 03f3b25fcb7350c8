"""A real cluster whose release has a Python environment, a build and shared paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from deployer.releases import envs
from tests.cluster import wait_until
from tests.e2e.shop import Edit, Shop

MAKE = Callable[..., Shop]
OWN_PYTHON: Edit = ("deployer.toml", f"{sys.executable} -S -E server.py", "python server.py")
BUILD = '\n[build]\npython = "uv"\n'


def write(shop: Shop, six: str, label: str = "hello", more: str = "") -> None:
    """A release that says which six it runs with."""
    shop.write(label=label)
    (shop.directory / "requirements.txt").write_text(f"six=={six}\n")
    with (shop.directory / "behaviour.py").open("a") as file:
        file.write("import six\nLABEL = f'{LABEL} six {six.__version__}'\n" + more)


def says(shop: Shop) -> str:
    return shop.get()[2].decode().partition(" release")[0]


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_workers_run_on_the_releases_own_environment_and_a_rollback_restores_it(shop: MAKE, tool: str) -> None:
    """`command = "python server.py"` is the environment's; the old lock file's comes back with the old release."""
    made = shop(edits=[OWN_PYTHON], extra=f'\n[build]\npython = "{tool}"\n')
    write(made, "1.16.0")
    made.run("up", code=0)
    made.assert_serves("v1")
    assert says(made) == "hello six 1.16.0"
    pid = made.pids()[0]
    (environment,) = (path for path in (made.root / "envs").iterdir() if path.is_symlink())
    env = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"VIRTUAL_ENV={environment}".encode() in env
    write(made, "1.15.0", "second")
    made.run("deploy", code=0)
    made.assert_serves("v2")
    assert says(made) == "second six 1.15.0"
    began = time.monotonic()
    made.run("rollback", code=0)
    spent = time.monotonic() - began
    made.assert_serves("v1")
    assert says(made) == "hello six 1.16.0"
    print(f"rollback over two environments: {spent:.2f} s")
    made.kill_manager()
    killed = made.pids()[0]
    os.kill(killed, 9)
    wait_until(lambda: killed not in made.pids(), "it is noticed")
    made.settled()
    assert says(made) == "hello six 1.16.0"


def test_the_releases_own_program_is_found(shop: MAKE) -> None:
    """A console script that only the release's requirements bring: `command = "gunicorn ..."`."""
    made = shop(server="gunicorn", extra=BUILD)
    app = made.write()
    program = app.command.split()[0]
    made.edit("deployer.toml", program, "gunicorn")
    (made.directory / "requirements.txt").write_text(f"gunicorn=={version('gunicorn')}\n")
    made.run("up", code=0)
    made.assert_serves("v1")
    script = Path(f"/proc/{made.pids()[0]}/cmdline").read_bytes().split(b"\0")[1].decode()
    assert Path(script).resolve().is_relative_to(made.root / "envs")


def test_a_failing_build_stops_the_deploy_before_any_worker_with_its_last_lines(shop: MAKE) -> None:
    """Exit 6, reason build, 30 lines of output and the log's path; the old release serves untouched."""
    made = shop()
    made.up()
    pids = made.assert_serves("v1")
    made.edit("deployer.toml", "[rollout]", '[build]\nrun = ["seq 1 100; echo no such asset; exit 7"]\n[rollout]')
    (made.directory / "more.txt").write_text("x")
    done = made.run("deploy", code=6)
    assert "no such asset" in done.err
    assert "| 72" in done.err.replace("│", "|")
    assert "last output of the build" in done.err
    assert "failed: exit code 7" in done.err
    assert "build-v2.log" in done.err
    assert "stage: 100" in done.err  # live
    log = made.root / "logs" / "build-v2.log"
    assert "no such asset" in log.read_text()
    made.assert_serves("v1", pids)
    assert os.listdir(made.root / "releases").count("v2") == 0
    (last, *_) = [event for event in made.events("rollout.finished") if event["exit_code"] == 6]
    assert (last["reason"], len(last["tail"])) == ("build", 30)


def test_a_new_environment_is_built_for_its_own_release(shop: MAKE) -> None:
    """--env-only: the same source, built again where it lies; without the Python environment of v1 no way back."""
    made = shop(
        edits=[OWN_PYTHON],
        worker_extra='env_file = ["app.env"]',
        extra='\n[build]\npython = "uv"\nrun = ["pwd > where"]\n',
    )
    write(made, "1.16.0")
    (made.directory / "app.env").write_text("LEVEL=1\n")
    made.run("up", code=0)
    (made.directory / "app.env").write_text("LEVEL=2\n")
    made.run("deploy", "--env-only", code=0)
    made.assert_serves("v2")
    for name in ("v1", "v2"):
        release = made.root / "releases" / name
        assert (release / "where").read_text() == f"{release}\n"
        assert not (release / "app.env").exists()
    known = made.releases()
    assert known["v1"]["tree_digest"] == known["v2"]["tree_digest"]
    write(made, "1.15.0", "third")
    (made.directory / "app.env").write_text("LEVEL=2\n")
    made.run("deploy", code=0)
    made.assert_serves("v3")
    first = json.loads((made.root / "releases" / "v1" / ".deployer.json").read_text())["environment"]
    envs.remove(made.root / "envs" / first)
    assert "its Python environment is gone" in made.run("rollback", "v1", code=2).err
    assert "its Python environment is gone" in made.run("rollback", code=2).err
    made.assert_serves("v3")


def test_shared_paths_live_through_a_deploy_and_a_rollback_and_are_warned_of(shop: MAKE) -> None:
    """What visitors left in uploads is in every release; a release that ships uploads too is told so at the end."""
    made = shop(extra='\n[release]\nshared = ["uploads"]\n')
    made.write()
    (made.directory / "uploads").mkdir()
    (made.directory / "uploads" / "seed.txt").write_text("seed")
    made.run("up", code=0)
    made.assert_serves("v1")
    (made.root / "current" / "uploads" / "visitor.txt").write_text("hello")
    made.write(label="second")
    (made.directory / "uploads").mkdir()
    (made.directory / "uploads" / "seed.txt").write_text("another seed")
    done = made.run("deploy", code=0)
    assert "uploads" in done.err.rpartition("warning:")[2]
    made.assert_serves("v2")
    for name in ("v1", "v2"):
        assert sorted(os.listdir(made.root / "releases" / name / "uploads")) == ["seed.txt", "visitor.txt"]
    made.run("rollback", code=0)
    made.assert_serves("v1")
    assert (made.root / "current" / "uploads" / "seed.txt").read_text() == "seed"
    assert json.loads((made.root / "current" / ".deployer.json").read_text())["release"] == "v1"


def test_a_manager_killed_in_the_middle_of_a_build_is_followed_by_one_that_builds_anew(shop: MAKE) -> None:
    """SIGKILL: the command dies with its manager, the rollout goes on with the next one, once."""
    made = shop()
    made.up()
    marks = made.base / "marks"
    command = f"echo $$ >> {marks}; test -e {made.base}/go || sleep 60"
    made.edit("deployer.toml", "[rollout]", f"[build]\nrun = ['{command}']\n[rollout]")
    child = made.start("deploy")
    wait_until(lambda: marks.exists() and marks.read_text().strip(), "the build runs")
    first = int(marks.read_text().split()[0])
    (made.base / "go").touch()
    made.kill_manager()
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert len(marks.read_text().split()) == 2
    assert subprocess.run(["kill", "-0", str(first)], check=False, capture_output=True).returncode != 0
    made.assert_serves("v2")
    assert not list((made.root / "releases").glob(".*.building"))


def test_everything_killed_in_the_middle_of_a_build_leaves_what_the_next_up_cleans(shop: MAKE) -> None:
    """Keeper, manager, workers, staging and the command: `up` serves the old release and finishes the rollout."""
    made = shop()
    made.up()
    began, go = made.base / "began", made.base / "go"
    made.edit(
        "deployer.toml", "[rollout]", f"[build]\nrun = ['echo $$ > {began}; test -e {go} || sleep 60']\n[rollout]"
    )
    child = made.start("deploy")
    wait_until(lambda: began.exists() and began.read_text().strip(), "the build runs")
    made.kill_everything()
    assert (made.root / "releases" / ".v2.building").exists()
    child.kill()
    child.communicate(timeout=60)
    go.touch()
    made.run("up", code=0)
    wait_until(lambda: made.status()["release"] == "v2", "the rollout was finished")
    made.assert_serves("v2")
    assert not list((made.root / "releases").glob(".*.building"))
