"""[build]: the environment of a lock file is built once and only ever trusted whole; commands fail loudly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stagekit
from stagekit import CONFIG, Done, Stager, alive, wait_until

from deployer.config.model import Build, Config, Worker
from deployer.releases import envs
from deployer.releases.interpreter import uv_binary
from deployer.releases.request import Directory

SIX = "six==1.16.0\n"


def config(**build: Any) -> Config:
    return msgspec.structs.replace(CONFIG, build=Build(**build))


class Shop:
    """A source directory with a lock file, and the ROOT that it is staged into."""

    def __init__(self, stager: Stager) -> None:
        self.stager = stager
        self.source = stager.directory / "shop"
        self.source.mkdir()
        (self.source / "app.py").write_text("1")
        self.lock(SIX)

    def lock(self, text: str, name: str = "requirements.txt") -> None:
        (self.source / name).write_text(text)

    def stage(self, name: str = "v1", *, build: dict[str, Any] | None = None, **more: Any) -> Done:
        return self.stager.run(Directory(path="shop"), name, **self._options(build, more))

    def start(self, name: str = "v1", *, build: dict[str, Any] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        return self.stager.start(self.stager.request(Directory(path="shop"), name, **self._options(build, more)))

    def _options(self, build: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
        return {"host_config": config(**(build or {"python": "uv"}))} | more

    @property
    def envs(self) -> Path:
        return self.stager.layout.envs

    def whole(self) -> list[str]:
        return sorted(path.name for path in self.envs.iterdir() if path.is_symlink())

    def homes(self) -> list[str]:
        return sorted(path.name for path in self.envs.iterdir() if path.is_dir() and not path.is_symlink())

    def log(self, name: str = "v1") -> str:
        return self.stager.layout.build_log(name).read_text()

    def imports(self, environment: str, module: str = "six") -> str:
        python = self.envs / environment / "bin" / "python"
        done = subprocess.run(
            [python, "-c", f"import {module}; print({module}.__version__)"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()


@pytest.fixture
def shop(stager: Stager, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(stagekit, "BOUND_S", 120.0)  # installers load from an index, and ensurepip takes its time
    return Shop(stager)


def environment_of(done: Done) -> str:
    assert done.error is None, done.told
    assert done.result is not None
    name = done.result["environment"]
    assert isinstance(name, str)
    return name


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_the_environment_of_the_lock_file_holds_what_it_names(shop: Shop, tool: str) -> None:
    """Built by either tool, it is found under the name that the result tells, and imports the package."""
    name = environment_of(shop.stage(build={"python": tool}))
    assert shop.whole() == [name]
    assert shop.imports(name) == "1.16.0"
    assert "install" in shop.log()


def test_an_unchanged_lock_file_builds_nothing_and_a_changed_one_builds_beside_it(shop: Shop) -> None:
    """The same directory serves the second release; the first keeps its own when the lock changes."""
    first = environment_of(shop.stage("v1"))
    inode = (shop.envs / first).stat().st_ino
    (shop.source / "app.py").write_text("2")
    again = shop.stage("v2")
    assert environment_of(again) == first
    assert (shop.envs / first).stat().st_ino == inode
    assert not shop.stager.layout.build_log("v2").exists()
    shop.lock("six==1.15.0\n")
    second = environment_of(shop.stage("v3"))
    assert second != first
    assert (shop.imports(first), shop.imports(second)) == ("1.16.0", "1.15.0")
    assert (shop.envs / first).stat().st_ino == inode


def test_a_lock_file_that_another_one_includes_counts(shop: Shop) -> None:
    """`-r base.txt`: a change in base.txt is a change of the environment."""
    shop.lock("-r base.txt\n")
    shop.lock(SIX, "base.txt")
    first = environment_of(shop.stage("v1"))
    shop.lock("six==1.15.0\n", "base.txt")
    second = environment_of(shop.stage("v2"))
    assert (shop.imports(first), shop.imports(second)) == ("1.16.0", "1.15.0")


def test_uv_lock_and_pylock_are_preferred_to_requirements(shop: Shop) -> None:
    """uv.lock, then pylock.toml, then requirements.txt; the project itself is not installed."""
    uv = uv_binary()
    shop.lock("six==1.15.0\n")
    subprocess.run(
        [
            uv,
            "pip",
            "compile",
            "-q",
            "--preview-features",
            "pylock",
            "--format",
            "pylock.toml",
            "-o",
            "pylock.toml",
            "-",
        ],
        input=b"six==1.16.0",
        cwd=shop.source,
        check=True,
        capture_output=True,
    )
    assert shop.imports(environment_of(shop.stage("v1"))) == "1.16.0"
    project = '[project]\nname = "shop"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["six==1.17.0"]\n'
    shop.lock(project, "pyproject.toml")
    subprocess.run([uv, "lock", "-q", "--python", "3.11"], cwd=shop.source, check=True, capture_output=True)
    name = environment_of(shop.stage("v2"))
    assert shop.imports(name) == "1.17.0"
    assert not list((shop.envs / name).glob("lib/*/site-packages/shop*"))


def test_a_missing_lock_file_is_told_with_the_names_looked_for(shop: Shop) -> None:
    """Exit 6, reason build, and nothing is left."""
    (shop.source / "requirements.txt").unlink()
    done = shop.stage()
    assert done.error is not None
    assert (done.exit, done.error["reason"]) == (6, "build")
    assert "uv.lock, pylock.toml or requirements.txt" in done.told
    shop.stager.assert_nothing_left()


def test_a_package_that_is_not_there_fails_with_the_installers_words(shop: Shop) -> None:
    """The tail holds what uv said, the log too, and no environment can be found."""
    shop.lock("six==99.0\n")
    done = shop.stage()
    assert done.error is not None
    assert done.exit == 6
    assert any("six==99.0" in line for line in done.error["tail"])
    assert "six==99.0" in shop.log()
    assert (shop.whole(), shop.homes()) == ([], [])
    assert os.listdir(shop.stager.layout.releases) == []


def test_a_killed_build_of_an_environment_leaves_nothing_that_is_trusted(shop: Shop, tmp_path: Path) -> None:
    """SIGKILL in the middle of the installer: it dies too, and the next staging builds the environment whole."""
    pause = slow_package(shop, tmp_path)
    child = shop.start("v1")
    wait_until(lambda: pause.exists())
    building = int(pause.read_text())
    child.kill()
    child.communicate()
    wait_until(lambda: not alive(building))
    assert shop.whole() == []
    assert len(shop.homes()) == 1
    (tmp_path / "go").touch()
    name = environment_of(shop.stage("v2"))
    assert shop.imports(name, "slow") == "1"
    assert len(shop.homes()) == 1
    assert envs.unused(shop.envs, [name]) == []


def test_two_builds_of_one_environment_at_once_make_it_once(shop: Shop, tmp_path: Path) -> None:
    """The second waits for the first, and uses what that made."""
    pause = slow_package(shop, tmp_path)
    one, two = shop.start("v1"), shop.start("v2")
    wait_until(lambda: pause.exists())
    (tmp_path / "go").touch()
    done = [shop.stager.finish(child) for child in (one, two)]
    assert environment_of(done[0]) == environment_of(done[1])
    assert shop.whole() == [environment_of(done[0])]
    assert len(shop.homes()) == 1
    built = [any(line.startswith("built environment") for line in one.progress) for one in done]
    assert sorted(built) == [False, True]


def test_an_unchanged_lock_file_costs_less_than_20_ms(shop: Shop) -> None:
    """What a deploy spends on an environment that is there: of the processor, in the process, without its start."""
    environment_of(shop.stage("v1"))
    code = (
        "import sys, time; from pathlib import Path; from deployer.releases import python\n"
        "began = time.process_time()\n"
        "plan = python.plan(Path(sys.argv[1]), 'uv', Path(sys.argv[2]))\n"
        "made = python.make(plan, Path(sys.argv[1]), Path(sys.argv[2]), runner=None, env={}, tell=lambda text: None)\n"
        "print(made, time.process_time() - began)"
    )
    best = 1.0
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", code, str(shop.source), str(shop.envs)], capture_output=True, text=True, check=True
        ).stdout
        made, spent = out.split()
        assert made == "False"
        best = min(best, float(spent))
    print(f"unchanged lock file: {best * 1000:.2f} ms")
    assert best < 0.020


def test_run_commands_see_the_release_its_environment_and_its_variables(shop: Shop) -> None:
    """In the release's final directory, with its Python first; deployer's own variables are those of the release."""
    (shop.stager.directory / ".env").write_text("TOKEN=topsecret99\n")
    run = ["python -c 'import six; print(six.__file__)' > where", "pwd > pwd; env > env", "echo token is $TOKEN"]
    settings = msgspec.structs.replace(
        config(python="uv", run=run), worker=Worker(command="x", env_file=[".env"], env={"LEVEL": "info"})
    )
    done = shop.stage(host_config=settings)
    name, release = environment_of(done), shop.stager.release("v1")
    assert f"/envs/{name}" in (release / "where").read_text()
    assert (release / "pwd").read_text().strip() == str(release)
    env = dict(line.split("=", 1) for line in (release / "env").read_text().splitlines() if "=" in line)
    assert env["DEPLOYER_RELEASE_DIR"] == str(release)
    assert (env["DEPLOYER_RELEASE"], env["DEPLOYER_APP"], env["LEVEL"]) == ("v1", "shop", "info")
    assert env["VIRTUAL_ENV"] == str(shop.envs / name)
    assert "topsecret99" not in shop.log()
    assert "token is ***" in shop.log()
    assert not any("topsecret99" in line for line in done.progress)


def test_a_failing_command_tells_its_last_lines_and_leaves_no_release(shop: Shop) -> None:
    """Exit 6, the last 30 lines, the log's path; neither release nor mark stays."""
    done = shop.stage(build={"run": ["true", "seq 1 100; echo broken >&2; exit 3"]})
    assert done.error is not None
    assert (done.exit, done.error["reason"]) == (6, "build")
    assert done.error["tail"] == [*(str(number) for number in range(72, 101)), "broken"]
    assert "failed: exit code 3" in done.error["what"]
    assert done.error["hint"] == f"less {shop.stager.layout.build_log('v1')}"
    assert os.listdir(shop.stager.layout.releases) == []


def test_a_hanging_command_is_killed_with_all_it_started(shop: Shop, tmp_path: Path) -> None:
    """The timeout is the whole build's, the group goes with it."""
    pids = tmp_path / "pids"
    began = time.monotonic()
    done = shop.stage(build={"run": [f"sleep 60 & echo $! > {pids}; trap '' TERM; sleep 60"], "timeout": "2s"})
    assert time.monotonic() - began < 40
    assert done.error is not None
    assert "[build] timeout = 2s" in done.error["what"]
    assert not alive(int(pids.read_text()))
    assert os.listdir(shop.stager.layout.releases) == []


def test_a_background_process_does_not_outlive_its_command(shop: Shop, tmp_path: Path) -> None:
    """It holds the output open, and is ended all the same, without waiting for it."""
    pids = tmp_path / "pids"
    done = shop.stage(build={"run": [f"sleep 60 & echo $! > {pids}"], "timeout": "20s"})
    assert done.exit == 0, done.told
    assert not alive(int(pids.read_text()))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ending_the_staging_ends_the_command_and_the_next_staging_cleans_up(
    shop: Shop, tmp_path: Path, how: signal.Signals
) -> None:
    """Also by SIGKILL: the command's group dies, and its half-built release is never taken for one."""
    pids = tmp_path / "pids"
    child = shop.start(build={"run": [f"(sleep 60 & echo $! > {pids}.new; mv {pids}.new {pids}; wait); true"]})
    wait_until(pids.exists)
    assert shop.stager.layout.building("v1").exists()
    os.killpg(child.pid, how)
    child.communicate()
    wait_until(lambda: not alive(int(pids.read_text())))
    assert shop.stager.layout.building("v1").exists() == (how is signal.SIGKILL)
    done = shop.stage(build={"run": ["touch built"]})
    assert done.exit == 0, done.told
    assert (shop.stager.release() / "built").exists()
    assert not shop.stager.layout.building("v1").exists()


def test_a_stop_at_the_very_start_of_a_command_leaves_nothing_running(shop: Shop, tmp_path: Path) -> None:
    """The moment between the fork and the first wait: killed there, the staging has not yet seen its own child."""
    for number in range(1, 11):
        pids = tmp_path / f"pids{number}"
        child = shop.start(f"v{number}", build={"run": [f"sleep 60 & echo $! > {pids}; wait"]})
        wait_until(pids.exists)
        os.killpg(child.pid, signal.SIGTERM if number % 2 else signal.SIGKILL)
        child.communicate()
        # An empty file: the shell was killed before it could write, and with it what it had started.
        wait_until(lambda pids=pids: not any(alive(int(pid)) for pid in pids.read_text().split()))  # type: ignore[misc]


def test_much_output_is_told_in_few_lines_and_logged_whole(shop: Shop) -> None:
    """A build of 200,000 lines makes a handful of progress lines, with the last ones in them."""
    done = shop.stage(build={"run": ["seq 1 200000"]})
    assert done.exit == 0, done.told
    assert len(done.progress) < 60
    assert any("200000" in text for text in done.progress)
    assert shop.log().count("\n") > 200_000


def test_the_manifest_tells_what_the_release_is_and_no_secret(shop: Shop) -> None:
    """Readable by all, the last file written, not part of the digest: names of variables, never their values."""
    (shop.stager.directory / ".env").write_text("TOKEN=topsecret99\n")
    settings = msgspec.structs.replace(
        config(python="uv"), worker=Worker(command="x", env_file=[".env"], env={"LEVEL": "verysecret"})
    )
    done = shop.stage(host_config=settings)
    assert done.result is not None
    path = shop.stager.release() / ".deployer.json"
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_text()
    assert "topsecret99" not in text
    assert "verysecret" not in text
    told = json.loads(text)
    assert told["environment_keys"] == ["LEVEL", "TOKEN"]
    assert told["tree_digest"] == done.result["tree_digest"]
    assert (told["lock_file"], told["environment"]) == ("requirements.txt", environment_of(done))
    assert shop.stage("v2", host_config=settings).result["tree_digest"] == told["tree_digest"]  # type: ignore[index]


def test_what_is_live_is_not_staged_again_unless_the_lock_or_the_commands_changed(shop: Shop) -> None:
    """The settings digest covers the environment's name and the commands."""
    first = shop.stage("v1").result
    assert first is not None
    live = {"live_digest": first["tree_digest"], "live_settings": first["settings_digest"]}
    again, other = shop.stage("v2", **live).result, shop.stage("v2", build={"python": "none"}, **live).result
    assert again is not None
    assert other is not None
    assert (again["outcome"], other["outcome"]) == ("same", "staged")
    envs.remove(shop.envs / first["environment"])
    gone = shop.stage("v3", **live).result
    assert gone is not None
    assert gone["outcome"] == "staged"
    assert shop.imports(gone["environment"]) == "1.16.0"


def slow_package(shop: Shop, tmp_path: Path) -> Path:
    """A requirement whose build waits for the file `go`; the path that it writes its process id to."""
    package, pause = shop.source / "slow", tmp_path / "building"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1"\n'
    )
    (package / "backend.py").write_text(
        "import os, time, zipfile\n"
        "def build_wheel(directory, settings=None, metadata=None):\n"
        f"    open({str(pause)!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"    os.rename({str(pause)!r} + '.new', {str(pause)!r})\n"
        f"    while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "    name = 'slow-1-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(os.path.join(directory, name), 'w') as wheel:\n"
        "        wheel.writestr('slow.py', '__version__ = \"1\"')\n"
        "        wheel.writestr('slow-1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: slow\\nVersion: 1\\n')\n"
        "        tags = 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'\n"
        "        wheel.writestr('slow-1.dist-info/WHEEL', tags)\n"
        "        wheel.writestr('slow-1.dist-info/RECORD', '')\n"
        "    return name\n"
    )
    shop.lock("./slow\n")
    return pause
