"""Git LFS by the real git-lfs: from an LFS server over http beside git's own http backend, and from a repository on
this machine (git-lfs's adapter for files)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stagekit import Repository, Stager

from deployer.releases.request import Git
from tests import remotes

PICTURES = {"first.png": b"the first picture", "second.png": b"the second picture" * 20_000}
LOGIN = "ci:s3cret"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def bare(repository: Repository, tmp_path: Path) -> Path:
    """What a server has: pointers in the commit, no object beside them."""
    remotes.need("git-lfs", "fetching LFS objects")
    (repository.path / ".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    for name, content in PICTURES.items():
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n"
        (repository.path / name).write_text(text)
    repository.commit("Pictures")
    repository.git("clone", "--quiet", "--bare", ".", str(tmp_path / "served/shop.git"))
    return tmp_path / "served/shop.git"


@pytest.fixture
def served(bare: Path) -> Iterator[tuple[remotes.Repositories, str]]:
    """The LFS server with all objects, and the repository's URL."""
    made = remotes.Repositories(bare.parent, {sha256(content): content for content in PICTURES.values()})
    with remotes.serve(made.handler()) as (server, url):
        yield made, f"{url}/shop.git"
    assert server.errors == []


def assert_pictures(stager: Stager, name: str = "v1") -> None:
    for picture, content in PICTURES.items():
        assert (stager.release(name) / picture).read_bytes() == content


def refused(stager: Stager, source: Git, *texts: str, mirror: bool = True) -> None:
    done = stager.run(source)
    assert done.exit == 6, done
    assert (done.error or {})["reason"] == "source"
    for text in texts:
        assert text in done.told
    stager.assert_nothing_left(mirror=mirror)


def test_objects_come_from_the_lfs_server_once(stager: Stager, served: tuple[remotes.Repositories, str]) -> None:
    """All of a commit with one question; the next release of it finds them in the mirror."""
    repositories, url = served
    assert stager.run(Git(url=url, lfs=True)).exit == 0
    assert_pictures(stager)
    assert sorted(repositories.downloads) == sorted(repositories.objects)
    assert [len(batch["objects"]) for batch in repositories.batches] == [2]
    assert stager.run(Git(url=url, lfs=True), "v2").exit == 0
    assert_pictures(stager, "v2")
    assert len(repositories.downloads) == 2
    stager.assert_nothing_left(releases=("v1", "v2"), mirror=True)


def test_the_login_of_the_url_is_the_lfs_servers_too(stager: Stager, served: tuple[remotes.Repositories, str]) -> None:
    """git-lfs writes into the mirror's configuration how it got in: no file in ROOT holds the password."""
    repositories, url = served
    repositories.login = LOGIN
    done = stager.run(Git(url=url.replace("http://", f"http://{LOGIN}@"), lfs=True))
    assert done.result is not None, done.error
    assert_pictures(stager)
    assert "s3cret" not in str(done)
    files = [path for path in stager.layout.root.rglob("*") if path.is_file()]
    assert not [path for path in files if b"s3cret" in path.read_bytes()]
    stranger = Stager(stager.directory, stager.layout.root.with_name("stranger"))
    refused(stranger, Git(url=url, lfs=True), "cannot fetch from", "terminal prompts disabled", mirror=False)


def test_an_object_that_the_server_lost_is_refused_by_its_files_name(
    stager: Stager, served: tuple[remotes.Repositories, str]
) -> None:
    """What git-lfs says of the object is the cause. What is left out of the release need not be there."""
    repositories, url = served
    lost = sha256(PICTURES["second.png"])
    content = repositories.objects.pop(lost)
    refused(
        stager,
        Git(url=url, lfs=True),
        *("the LFS object of second.png cannot be had", lost, "Object does not exist", "git lfs push --all origin"),
    )
    assert stager.run(Git(url=url, lfs=True, exclude=["second.png"])).exit == 0
    repositories.objects[lost] = content
    assert stager.run(Git(url=url, lfs=True), "v2").exit == 0
    assert_pictures(stager, "v2")


def test_an_object_with_other_bytes_than_the_pointer_says_is_refused(
    stager: Stager, served: tuple[remotes.Repositories, str]
) -> None:
    repositories, url = served
    repositories.objects[sha256(PICTURES["first.png"])] = b"another picture!!"
    refused(stager, Git(url=url, lfs=True), "the LFS object of first.png cannot be had")


def test_an_object_that_a_power_cut_left_empty_is_fetched_again(
    stager: Stager, served: tuple[remotes.Repositories, str]
) -> None:
    """A release with an empty picture would be worse than none."""
    _, url = served
    assert stager.run(Git(url=url, lfs=True)).exit == 0
    objects = [path for path in (stager.layout.mirror / "lfs/objects").rglob("*") if path.is_file()]
    assert len(objects) == 2
    for path in objects:
        path.chmod(0o644)
        path.write_bytes(b"")
    assert stager.run(Git(url=url, lfs=True), "v2").exit == 0
    assert_pictures(stager, "v2")


def test_pointers_are_refused_without_lfs_and_without_git_lfs(
    stager: Stager, served: tuple[remotes.Repositories, str], tmp_path: Path
) -> None:
    """Each says what to do; the server is asked for no object."""
    repositories, url = served
    refused(stager, Git(url=url), "Git LFS pointers", "first.png, second.png", "lfs = true")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").symlink_to(shutil.which("git") or "")
    stager.env["PATH"] = str(tools)
    refused(stager, Git(url=url, lfs=True), "git-lfs is not installed", "apt-get install git-lfs")
    assert (repositories.batches, repositories.downloads) == ([], [])


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["path", "file URL"])
def test_objects_of_a_repository_on_this_machine(stager: Stager, bare: Path, scheme: str) -> None:
    """git-lfs takes them from its directory; one that is not there is refused by name."""
    for content in PICTURES.values():
        place = bare / "lfs/objects" / sha256(content)[:2] / sha256(content)[2:4] / sha256(content)
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    assert stager.run(Git(url=f"{scheme}{bare}", lfs=True)).exit == 0
    assert_pictures(stager)
    place.unlink()
    other = Stager(stager.directory, stager.layout.root.with_name("other"))
    refused(other, Git(url=f"{scheme}{bare}", lfs=True), "the LFS object of second.png cannot be had")


def test_objects_over_ssh(stager: Stager, bare: Path, served: tuple[remotes.Repositories, str], tmp_path: Path) -> None:
    """As forges do it: the server's `git-lfs-authenticate`, asked by ssh, says where the LFS server is."""
    repositories, url = served
    with remotes.sshd(tmp_path / "sshd") as sshd:
        answer = f'{{"href": "{url}/info/lfs"}}'
        script = tmp_path / "forced"
        script.write_text(
            f'#!/bin/sh\ncase "$SSH_ORIGINAL_COMMAND" in\n'
            f"git-lfs-authenticate*) echo '{answer}' ;;\n"
            f'git-lfs-transfer*) exit 1 ;;\n*) exec sh -c "$SSH_ORIGINAL_COMMAND" ;;\nesac\n'
        )
        script.chmod(0o755)
        keys = sshd.key.with_name("authorized_keys")
        keys.write_text(f'command="{script}" {keys.read_text()}')
        known = tmp_path / "known_hosts"
        known.write_text(sshd.known())
        options = f"-o IdentitiesOnly=yes -o IdentityAgent=none -o UserKnownHostsFile={known}"
        stager.env["GIT_SSH_COMMAND"] = f"ssh -F /dev/null -i {sshd.key} {options}"
        done = stager.run(Git(url=f"ssh://{sshd.host}{bare}", lfs=True))
    assert done.result is not None, done.error
    assert_pictures(stager)
    assert sorted(repositories.downloads) == sorted(repositories.objects)


def test_the_real_git_lfs_pushes_what_deployer_fetches(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """No pointer of our own making: `git lfs track`, commit, push to a bare repository, deploy that."""
    remotes.need("git-lfs", "fetching LFS objects")
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
    repository.git("lfs", "install", "--local")
    repository.git("lfs", "track", "*.png")
    (repository.path / "first.png").write_bytes(PICTURES["first.png"])
    repository.commit("Tracked")
    repository.git("push", "--quiet", f"file://{bare}", "main")
    assert repository.git("show", "HEAD:first.png").startswith("version https://git-lfs")
    done = stager.run(Git(url=f"file://{bare}", lfs=True))
    assert done.result is not None, done.error
    assert (stager.release() / "first.png").read_bytes() == PICTURES["first.png"]
