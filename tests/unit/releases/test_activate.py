"""The variables of a worker that has a Python environment."""

from __future__ import annotations

from pathlib import Path

from deployer.config.model import Config, Worker
from deployer.releases.release import Release, activate
from deployer.workers import order


def test_the_environment_comes_first_on_the_path() -> None:
    """As its bin/activate would do it, also without any PATH and over a manager that runs in another environment."""
    active = activate({"PATH": "/usr/bin", "VIRTUAL_ENV": "/other", "PYTHONHOME": "/x", "A": "1"}, Path("/root/envs/a"))
    assert active == {"PATH": "/root/envs/a/bin:/usr/bin", "VIRTUAL_ENV": "/root/envs/a", "A": "1"}
    assert activate({}, Path("/e"))["PATH"].startswith("/e/bin:/")
    assert activate({"A": "1"}, None) == {"A": "1"}


def test_a_workers_environment_is_built_from_its_release(tmp_path: Path) -> None:
    """The release's variables over the manager's, its Python before a PATH that the release sets, ours last."""
    release = Release("v1", tmp_path, Config(name="a", worker=Worker(command="x")), {"PATH": "/mine"}, Path("/e"))
    env = order.environment({"PATH": "/usr/bin", "LISTEN_FDS": "9"}, release, {"DEPLOYER_RELEASE": "v1"}, ["web"])
    assert env["PATH"] == "/e/bin:/mine"
    assert (env["LISTEN_FDS"], env["LISTEN_FDNAMES"], env["DEPLOYER_RELEASE"]) == ("1", "web", "v1")
    assert "PATH" not in order.environment({}, None, {}, ())
