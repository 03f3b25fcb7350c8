"""Submodules, Git LFS, and mirrors that fetch only what is wanted."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stagekit import Repository, Stager

from deployer.releases.request import Directory, Git
from tests.remotes import files, serve


def stage(stager: Stager, name: str, source: Git) -> dict[str, Any]:
    done = stager.run(source, name)
    assert done.result is not None, done.error
    return done.result


def commits(stager: Stager) -> int:
    git = ("git", f"--git-dir={stager.layout.mirror}", "rev-list", "--all", "--count")
    return int(subprocess.run(git, capture_output=True, check=True).stdout)


@pytest.fixture
def nested(tmp_path: Path) -> Repository:
    """app holds libs/one by a relative URL, which holds two by an absolute one."""
    two = Repository(tmp_path / "repos/two")
    two.commit("Two", two__txt="2")
    one = Repository(tmp_path / "repos/one")
    one.git("submodule", "--quiet", "add", str(two.path), "deep/two")
    one.commit("One", one__txt="1")
    app = Repository(tmp_path / "repos/app")
    app.git("submodule", "--quiet", "add", "../one", "libs/one")
    app.commit("App", app__py="app")
    return app


def test_submodules_as_deep_as_they_go(stager: Stager, nested: Repository) -> None:
    """The pinned commits, not the newest; each mirrored once; `submodules = false` and `exclude` leave them empty."""
    one = Repository.__new__(Repository)
    one.path = nested.path.parent / "one"
    one.commit("Newer, not pinned", one__txt="newer")
    stage(stager, "v1", Git(url=str(nested.path)))
    release = stager.release()
    assert (release / "libs/one/one.txt").read_text() == "1"
    assert (release / "libs/one/deep/two/two.txt").read_text() == "2"
    assert not list(release.rglob(".git"))
    assert len(list((stager.layout.root / "mirrors").iterdir())) == 2
    stage(stager, "v2", Git(url=str(nested.path), submodules=False))
    assert list((stager.release("v2") / "libs/one").iterdir()) == []
    stage(stager, "v3", Git(url=str(nested.path), exclude=["/libs/one/deep"]))
    assert sorted(path.name for path in (stager.release("v3") / "libs/one").iterdir()) == [".gitmodules", "one.txt"]


def test_a_submodule_that_cannot_be_had_is_named(stager: Stager, nested: Repository) -> None:
    """Its repository is gone: nothing is left of the release."""
    shutil.rmtree(nested.path.parent / "two")
    done = stager.run(Git(url=str(nested.path)))
    assert done.exit == 6
    assert "submodule libs/one/deep/two" in done.told
    assert not stager.release().exists()


def test_a_repository_from_elsewhere_names_none_of_this_machine(stager: Stager, nested: Repository) -> None:
    """By a URL, a path in .gitmodules is the remote's wish to read what is here."""
    from deployer.errors import SourceError
    from deployer.releases.sources.gittree import Tree
    from deployer.releases.sources.mirror import Mirror
    from deployer.releases.sources.remote import Remote
    from deployer.releases.sources.submodules import _absolute, _locate

    elsewhere = Remote("https://host/group/app.git", None)
    parent = Tree(Mirror(stager.layout.mirror, elsewhere.url), elsewhere, "0" * 40, "")
    for url in ("/srv/private", "file:///srv/private"):
        with pytest.raises(SourceError, match="names a repository of this machine"):
            _locate(parent, url, "libs/x")
    assert _locate(parent, "../x.git", "libs/x").url == "https://host/group/x.git"
    assert _absolute("git@host:group/app.git", "../x.git") == "git@host:group/x.git"
    assert _absolute("ssh://git@host/group/app.git", "./x.git") == "ssh://git@host/group/app.git/x.git"


def pointer(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"


def test_lfs_pointers_are_refused_by_name(stager: Stager, repository: Repository) -> None:
    """A pointer in the place of a picture is a broken release."""
    for number in range(7):
        (repository.path / f"picture{number}.png").write_text(pointer(b"png"))
    repository.commit("Pictures")
    done = stager.run(Git(url=str(repository.path)))
    assert done.exit == 6
    for text in ("Git LFS pointers", "picture0.png", "and 2 more", "lfs = true"):
        assert text in done.told
    stager.assert_nothing_left(mirror=True)
    assert stager.run(Git(url=str(repository.path), exclude=["*.png"])).exit == 0


def test_a_new_mirror_of_a_url_gets_no_history(stager: Stager, repository: Repository) -> None:
    """Then what comes since; a tag and a full id by themselves; all of it for the first digits of an id."""
    first = repository.git("rev-parse", "HEAD")
    for number in range(20):
        repository.commit(f"Commit {number}", app__py=str(number))
    repository.git("tag", "old", "HEAD~5")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    url = f"file://{repository.path}"
    assert stage(stager, "v1", Git(url=url))["subject"] == "Commit 19"
    assert commits(stager) == 1
    repository.commit("New", app__py="new")
    assert stage(stager, "v2", Git(url=url, ref="main"))["subject"] == "New"
    assert commits(stager) == 2
    assert stage(stager, "v3", Git(url=url, ref="old"))["subject"] == "Commit 14"
    assert commits(stager) == 3
    assert stage(stager, "v4", Git(url=url, ref=first))["subject"] == "First"
    assert (stager.layout.mirror / "shallow").is_file()
    assert stage(stager, "v5", Git(url=url, ref=repository.git("rev-parse", "HEAD~10")[:12]))["subject"] == "Commit 10"
    assert commits(stager) == 22
    assert "did you mean main?" in stager.run(Git(url=url, ref="mian"), "v6").told


def test_an_id_that_a_server_does_not_give_alone(stager: Stager, repository: Repository) -> None:
    """Then the history is fetched."""
    first = repository.git("rev-parse", "HEAD")
    repository.commit("Second", app__py="2")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "false")
    assert stage(stager, "v1", Git(url=f"file://{repository.path}", ref=first))["subject"] == "First"


def test_the_users_own_ssh_is_used(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """GIT_SSH_COMMAND reaches git: keys, agents and known hosts are the user's."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nshift\nwhile [ $# -gt 1 ]; do shift; done\nexec sh -c "$1"\n'
    )
    ssh.chmod(0o755)
    stager.env["GIT_SSH_COMMAND"] = str(ssh)
    assert stage(stager, "v1", Git(url=f"git@example.org:{repository.path}"))["subject"] == "First"
    assert "git@example.org" in (tmp_path / "called").read_text()


def test_unchanged_files_are_shared_between_commits(stager: Stager, repository: Repository) -> None:
    """Whatever the release before was made of; and the digest is that of the directory."""
    (repository.path / "sub").mkdir()
    (repository.path / "sub/same").write_text("same")
    (repository.path / "large").write_bytes(b"0123456789abcdef" * 200_000)
    repository.commit("Second")
    stage(stager, "v1", Git(url=str(repository.path)))
    repository.commit("Third", app__py="3")
    result = stage(stager, "v2", Git(url=str(repository.path)))
    for name in ("sub/same", "large"):
        assert (stager.release("v1") / name).stat().st_ino == (stager.release("v2") / name).stat().st_ino
    assert (stager.release("v1") / "app.py").read_text() == "1"
    again = stager.run(Directory(path=str(repository.path)), "v3").result
    assert again is not None
    assert again["tree_digest"] == result["tree_digest"]


def test_a_repository_of_plain_files_behind_http(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """A server without git ("dumb http") can give no shallow copy: the history comes along."""
    repository.commit("Second", app__py="2")
    bare = tmp_path / "site/shop.git"
    bare.parent.mkdir()
    subprocess.run(["git", "clone", "--quiet", "--bare", repository.path, bare], check=True)
    subprocess.run(["git", "update-server-info"], cwd=bare, check=True)
    with serve(files(bare.parent)) as (_, url):
        assert stage(stager, "v1", Git(url=f"{url}/shop.git"))["subject"] == "Second"
    assert commits(stager) == 2
