"""The repository's hooks for git, with git itself: push to deploy on a real cluster, and the check before a commit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster

HOOKS = Path(__file__).resolve().parents[3] / "hooks"
BIN = Path(sys.executable).parent
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DEPLOYER_", "GITHUB_", "CI"))}
ENV = CLEAN | {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}


def git(where: Path, *words: str, code: int = 0, **env: str) -> str:
    done = subprocess.run(["git", *words], cwd=where, env=ENV | env, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"git {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Pushed(Cluster):
    """A cluster, a bare repository on its host, and a working copy that is pushed from."""

    def __init__(self) -> None:
        super().__init__(count=2)
        self.bare, self.copy = self.base / "shop.git", self.base / "copy"
        self.up()
        git(self.base, "init", "-q", "--bare", "--initial-branch=main", str(self.bare))
        git(self.base, "init", "-q", "--initial-branch=main", str(self.copy))
        (self.bare / "hooks" / "post-receive").symlink_to(HOOKS / "post-receive")
        self.git("remote", "add", "server", str(self.bare))
        self.setting("deployer.config", str(self.directory / "deployer.toml"))

    def git(self, *words: str) -> str:
        return git(self.copy, *words)

    def setting(self, key: str, value: str) -> None:
        git(self.bare, "config", key, value)

    def commit(self, behaviour: str = "good", label: str = "pushed") -> str:
        """The release's files as a commit; its id."""
        self.write(behaviour, label)
        for path in self.directory.iterdir():
            if path.is_file() and path.name != "deployer.toml":
                (self.copy / path.name).write_bytes(path.read_bytes())
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", label)
        return self.git("rev-parse", "HEAD").strip()

    def push(self, *words: str) -> list[str]:
        """What the pusher reads from the server."""
        text = self.git("push", "server", *(words or ("main",)))
        said = [line.removeprefix("remote: ").rstrip() for line in text.splitlines() if line.startswith("remote:")]
        print("\n".join(said))
        return said


@pytest.fixture
def pushed() -> Iterator[Pushed]:
    with Pushed() as cluster:
        yield cluster


def test_a_push_of_the_branch_deploys_its_commit_and_streams_the_rollout(pushed: Pushed) -> None:
    commit = pushed.commit()
    said = pushed.push()
    assert said[0] == f"deploying main {commit[:10]}"
    assert any("staged v2" in line for line in said)
    assert any("slot 2" in line for line in said)
    assert said[-1] == f"OK: main {commit[:10]} is live as v2"
    assert pushed.release_served() == "v2"
    assert b"pushed" in pushed.get()[2]


def test_who_pushes_a_broken_release_is_told_that_it_was_put_back(pushed: Pushed) -> None:
    commit = pushed.commit("raises_at_import", "broken")
    said = pushed.push()
    assert any("this release is broken on purpose (broken)" in line for line in said)
    assert said[-1] == f"REVERTED: main {commit[:10]} was pushed but is not live; v1 serves"
    assert pushed.release_served() == "v1"
    assert git(pushed.bare, "rev-parse", "main").strip() == commit, "the push itself is taken"


def test_other_branches_and_deleted_ones_deploy_nothing(pushed: Pushed) -> None:
    pushed.commit()
    assert pushed.push("main:feature") == ["refs/heads/feature is not deployed: only main is"]
    pushed.setting("deployer.branch", "production")
    assert pushed.push("main") == ["refs/heads/main is not deployed: only production is"]
    pushed.push("main:production")
    assert pushed.release_served() == "v2"
    git(pushed.bare, "config", "receive.denyDeletes", "false")
    assert pushed.push(":production") == ["production was deleted: what is live stays"]
    assert pushed.release_served() == "v2"


def test_the_commit_that_was_pushed_is_deployed_and_not_what_came_after_it(pushed: Pushed) -> None:
    first = pushed.commit(label="first")
    pushed.commit(label="second")
    pushed.push(f"{first}:refs/heads/main")
    assert b"first" in pushed.get()[2]


def test_without_a_cluster_the_pusher_is_told_how_to_get_one(pushed: Pushed) -> None:
    pushed.commit()
    pushed.run("down", code=0)
    said = pushed.push()
    assert said[-1] == "NOT DEPLOYED: no supervisor runs on the server: deployer up"


def test_without_its_setting_nothing_is_deployed(pushed: Pushed) -> None:
    git(pushed.bare, "config", "--unset", "deployer.config")
    pushed.commit()
    said = pushed.push()
    assert said[0] == "error: no deployer.toml is named; nothing is deployed"
    assert pushed.release_served() == "v1"


# pre-commit

GOOD = (
    'name = "shop"\nroot = "/var/lib/shop"\n[worker]\ncommand = "python server.py {fd}"\n'
    '[[listen]]\naddress = "unix:./shop.sock"\n'
)
BAD = GOOD.replace("command", "comand")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "--initial-branch=main", ".")
    (tmp_path / ".git" / "hooks" / "pre-commit").symlink_to(HOOKS / "pre-commit")
    return tmp_path


@pytest.mark.parametrize("name", ["deployer.toml", "apps/my shop/deployer.toml"])
def test_a_configuration_that_cannot_be_used_is_not_committed(copy: Path, name: str) -> None:
    path = copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(BAD)
    git(copy, "add", name)
    said = git(copy, "commit", "-m", "x", code=1)
    assert "error: deployer.toml:4:" in said
    assert "command" in said
    path.write_text(GOOD)
    git(copy, "add", name)
    git(copy, "commit", "-m", "x")
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".deployer.toml")] == []


def test_what_is_staged_counts_and_not_what_lies_on_disk(copy: Path) -> None:
    path = copy / "deployer.toml"
    path.write_text(GOOD)
    git(copy, "add", ".")
    path.write_text(BAD)
    git(copy, "commit", "-m", "x")
    git(copy, "add", ".")
    path.write_text(GOOD)
    git(copy, "commit", "-m", "y", code=1)


def test_commits_of_other_files_are_none_of_its_business(copy: Path) -> None:
    (copy / "deployer.toml").write_text(BAD)
    (copy / "readme").write_text("x")
    git(copy, "add", "readme")
    assert "error" not in git(copy, "commit", "-m", "x")


def test_a_machine_that_could_not_run_the_app_may_commit_its_configuration(copy: Path) -> None:
    (copy / "deployer.toml").write_text(GOOD.replace("python server.py", "no-such-server"))
    git(copy, "add", ".")
    git(copy, "commit", "-m", "x")


def test_without_deployer_it_warns(copy: Path) -> None:
    (copy / "deployer.toml").write_text(BAD)
    git(copy, "add", ".")
    assert "committed without a check" in git(copy, "commit", "-m", "x", DEPLOYER="no-such-deployer")
