"""git over ssh: a real sshd on the loopback, the user's own ssh with the user's own configuration."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stagekit import COMMAND, Done, Repository, Stager

from deployer.releases.request import Git, encode_request
from tests import remotes


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[remotes.Sshd]:
    with remotes.sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
def url(sshd: remotes.Sshd, repository: Repository) -> str:
    return f"ssh://{sshd.host}{repository.path}"


def use_ssh(stager: Stager, key: Path, known: str) -> None:
    """What a user has in ~/.ssh, in a file of the test's: ssh looks for that by the password file, not by HOME."""
    hosts, config = key.with_name("known_hosts"), key.with_name("ssh_config")
    hosts.write_text(known)
    settings = {
        "IdentityFile": key,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": hosts,
        "GlobalKnownHostsFile": "/dev/null",
    }
    config.write_text("Host 127.0.0.1\n" + "".join(f"  {name} {value}\n" for name, value in settings.items()))
    stager.env["GIT_SSH_COMMAND"] = f"ssh -F {shlex.quote(str(config))}"


def refused(stager: Stager, done: Done, *texts: str) -> None:
    assert done.exit == 6, done
    assert (done.error or {})["reason"] == "source"
    for text in texts:
        assert text in done.told
    stager.assert_nothing_left()


def test_a_key_that_the_server_knows(stager: Stager, repository: Repository, sshd: remotes.Sshd, url: str) -> None:
    """A release of the remote's HEAD, then one of a branch that was pushed since."""
    use_ssh(stager, sshd.key, sshd.known())
    done = stager.run(Git(url=url))
    assert done.result is not None, done.error
    assert (stager.release() / "app.py").read_text() == "1"
    repository.git("checkout", "--quiet", "-b", "next")
    commit = repository.commit("Second", app__py="2")
    done = stager.run(Git(url=url, ref="next"), "v2")
    assert done.result is not None, done.error
    assert (done.result["commit"], done.result["source"]) == (commit, f"git {url}")
    assert (stager.release("v2") / "app.py").read_text() == "2"
    assert sshd.log.read_text().count("Accepted publickey") >= 2
    stager.assert_nothing_left(releases=("v1", "v2"), mirror=True)


def test_a_submodule_beside_it_comes_over_ssh_too(
    stager: Stager, repository: Repository, sshd: remotes.Sshd, url: str
) -> None:
    """ "../library" is a repository of that server."""
    Repository(repository.path.with_name("library")).commit("Library", lib__py="lib")
    repository.git("submodule", "--quiet", "add", "../library", "library")
    repository.commit("With a library")
    use_ssh(stager, sshd.key, sshd.known())
    assert stager.run(Git(url=url)).exit == 0
    assert (stager.release() / "library/lib.py").read_text() == "lib"


def test_a_key_that_the_server_does_not_know(stager: Stager, sshd: remotes.Sshd, url: str, tmp_path: Path) -> None:
    """What sshd says is the cause, the command to try by hand the hint; no password is asked for."""
    use_ssh(stager, remotes.ssh_key(tmp_path / "stranger"), sshd.known())
    done = stager.run(Git(url=url))
    refused(stager, done, f"cannot fetch from {url}", "Permission denied (publickey)", f"git ls-remote -- {url}")


def test_a_host_that_the_user_has_not_met(stager: Stager, sshd: remotes.Sshd, url: str) -> None:
    """Nobody is there to be asked: the hint says where a person is. ssh got as far as no login."""
    use_ssh(stager, sshd.key, "")
    done = stager.run(Git(url=url))
    user = sshd.host.partition("@")[0]
    refused(stager, done, "Host key verification failed", f"{user} has not met this host", f"git ls-remote -- {url}")
    assert "Accepted" not in sshd.log.read_text()


def test_a_host_whose_key_has_changed(stager: Stager, sshd: remotes.Sshd, url: str, tmp_path: Path) -> None:
    """Another machine may be answering in its place: the hint does not say to go on."""
    use_ssh(stager, sshd.key, sshd.known().replace(sshd.host_key.read_text(), f"{_public(tmp_path / 'old')}\n"))
    done = stager.run(Git(url=url))
    refused(stager, done, "Host key verification failed", "is not the one that", "ssh-keygen -R")
    assert "git ls-remote" not in done.told


def _public(key: Path) -> str:
    return remotes.ssh_key(key).with_name(f"{key.name}.pub").read_text().strip()


def test_a_supervisor_on_a_terminal_is_not_asked_either(stager: Stager, sshd: remotes.Sshd, url: str) -> None:
    """`deployer up` in the foreground: its terminal is not git's. ssh would ask there, and wait for good."""
    use_ssh(stager, sshd.key, "")
    master, terminal = pty.openpty()
    try:
        # A session whose terminal this is, as a login has: opened without O_NOCTTY by its leader.
        script = 'exec 3<>"$1"; shift; "$@"; exit $?'
        stage = ["setsid", "--wait", "bash", "-c", script, "bash", os.ttyname(terminal)]
        child = subprocess.run(
            [*stage, *_command(stager, Git(url=url))],
            cwd=stager.layout.root,
            env=stager.env,
            capture_output=True,
            timeout=60,
            check=False,
        )
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):  # nothing was asked
            os.read(master, 1000)
    finally:
        os.close(terminal)
        os.close(master)
    assert child.returncode == 6, child
    assert b"Host key verification failed" in child.stdout


def _command(stager: Stager, source: Git) -> list[str]:
    """The child with its request, for another parent than this process."""
    request = stager.layout.root.with_name("request")
    request.write_bytes(encode_request(stager.request(source, parent=None)))
    return ["bash", "-c", 'request="$1"; shift; "$@" < "$request"', "bash", str(request), *COMMAND]
