"""Staging from git: real repositories, the real child process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from stagekit import Done, Repository, Stager, alive, wait_until

from deployer.releases.digest import tree_digest
from deployer.releases.request import Directory, Git


def app(stager: Stager, name: str = "v1") -> str:
    return (stager.release(name) / "app.py").read_text()


def stage(stager: Stager, repository: Repository, ref: str | None = None, name: str = "v1") -> Done:
    return stager.run(Git(url=str(repository.path), ref=ref), name)


def assert_refused(done: Done, *texts: str) -> None:
    assert done.exit == 6, done
    assert done.error is not None
    assert done.error["reason"] == "source"
    for text in texts:
        assert text in done.told


def test_branch_tag_sha_short_sha_and_default(stager: Stager, repository: Repository) -> None:
    """Every way to name a version, with commit, subject and author."""
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "light")
    repository.git("tag", "--annotate", "--message", "One", "v1.0")
    second = repository.commit("Second: grün", app__py="2")
    repository.git("branch", "feature/x", first)
    wanted = {
        "main": (second, "main", "2"),
        "feature/x": (first, "feature/x", "1"),
        "refs/heads/feature/x": (first, "feature/x", "1"),
        "light": (first, "light", "1"),
        "v1.0": (first, "v1.0", "1"),
        first: (first, None, "1"),
        first[:8]: (first, None, "1"),
        second.upper(): (second, None, "2"),
        "HEAD": (second, "main", "2"),
        None: (second, "main", "2"),
    }
    for number, (ref, (commit, named, text)) in enumerate(wanted.items(), 1):
        done = stage(stager, repository, ref, f"v{number}")
        assert done.result is not None, done.error
        assert (done.result["commit"], done.result["ref"]) == (commit, named)
        assert app(stager, f"v{number}") == text
        assert done.result["subject"] == ("First" if commit == first else "Second: grün")
        assert done.result["author"] == "Ada Lovelace"
    assert not (stager.release("v1") / ".git").exists()
    stager.assert_nothing_left(releases=tuple(f"v{n}" for n in range(1, len(wanted) + 1)), mirror=True)


def test_a_branch_comes_before_a_tag_of_the_same_name(stager: Stager, repository: Repository) -> None:
    """`release` the branch moves on; `release` the tag is history."""
    repository.git("tag", "release")
    repository.git("checkout", "--quiet", "-b", "release")
    moved = repository.commit("Moved", app__py="2")
    done = stage(stager, repository, "release")
    assert done.result is not None
    assert done.result["commit"] == moved


def test_a_moved_branch_is_seen_also_when_forced(stager: Stager, repository: Repository) -> None:
    """Forward, backwards and sideways; a tag too; a removed branch is unknown."""
    first = repository.git("rev-parse", "HEAD")
    stage(stager, repository, "main")
    repository.git("tag", "moving")
    repository.git("branch", "old")
    repository.commit("Second", app__py="2")
    assert stage(stager, repository, "main", "v2").exit == 0
    assert app(stager, "v2") == "2"
    repository.git("reset", "--quiet", "--hard", first)
    repository.commit("Other second", app__py="3")
    repository.git("tag", "--force", "moving")
    repository.git("branch", "--delete", "--force", "old")
    repository.git("branch", "old/er")  # a directory where a branch was
    for name, ref in (("v3", "main"), ("v4", "moving"), ("v5", "old/er")):
        assert stage(stager, repository, ref, name).exit == 0
        assert app(stager, name) == "3"
    assert_refused(stage(stager, repository, "old", "v6"), "unknown ref 'old'", "old/er")


def test_a_commit_that_no_branch_reaches(stager: Stager, repository: Repository) -> None:
    """A full id that was forced away before we ever fetched is asked for by itself."""
    lost = repository.commit("Lost", app__py="lost")
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    done = stage(stager, repository, lost)
    assert done.result is not None, done.error
    assert app(stager) == "lost"


def test_the_default_branch_is_the_remotes(stager: Stager, repository: Repository) -> None:
    """A bare remote's HEAD, a detached HEAD, and a HEAD that names nothing."""
    repository.git("branch", "trunk")
    first = repository.git("rev-parse", "HEAD")
    repository.commit("On main", app__py="2")
    bare = repository.path.with_name("bare.git")
    repository.git("clone", "--quiet", "--bare", ".", str(bare))
    subprocess.run(["git", "symbolic-ref", "HEAD", "refs/heads/trunk"], cwd=bare, check=True)
    source = Git(url=f"file://{bare}")
    assert (stager.run(source, "v1").result or {})["ref"] == "trunk"
    repository.git("checkout", "--quiet", "--detach", first)
    assert (stage(stager, repository, None, "v2").result or {})["commit"] == first
    subprocess.run(["git", "symbolic-ref", "HEAD", "refs/heads/gone"], cwd=bare, check=True)
    assert_refused(stager.run(source, "v3"), "has no default branch", "main, trunk")
    subprocess.run(["git", "branch", "--delete", "--force", "trunk"], cwd=bare, check=True, capture_output=True)
    only = stager.run(source, "v3")
    assert (only.result or {})["ref"] == "main"
    assert any("its only one" in line for line in only.progress)


def test_an_unknown_ref_names_the_nearest(stager: Stager, repository: Repository) -> None:
    """A typing error is repaired by reading the hint; nothing is left but the mirror."""
    repository.git("tag", "v1.0")
    assert_refused(stage(stager, repository, "mian"), "unknown ref 'mian'", str(repository.path), "did you mean main?")
    assert_refused(stage(stager, repository, "zzz"), "it has main, v1.0")
    assert_refused(stage(stager, repository, "f" * 40), "unknown ref")
    assert_refused(stage(stager, repository, "main^"), "unknown ref")
    stager.assert_nothing_left(mirror=True)


@pytest.mark.parametrize("ref", ["-x", "--upload-pack=touch /tmp/owned", "", " ", "a\nb"])
def test_a_ref_that_git_could_take_for_an_option_is_refused(stager: Stager, repository: Repository, ref: str) -> None:
    """Before git runs at all."""
    assert_refused(stage(stager, repository, ref), "is not a branch, tag or commit")
    stager.assert_nothing_left()


@pytest.mark.parametrize("url", ["ext::sh -c 'touch owned'", "--upload-pack=touch owned", "fd::17", ""])
def test_a_url_that_runs_programs_is_refused(stager: Stager, url: str) -> None:
    """Also where the user's git allows it."""
    assert_refused(stager.run(Git(url=url, ref="main")), "is not a repository that deployer fetches from")
    stager.assert_nothing_left()


def test_an_ambiguous_short_id_asks_for_more(stager: Stager, repository: Repository) -> None:
    """Many commits: some two share four digits."""
    seen: dict[str, str] = {}
    script = "".join(
        f"commit refs/heads/many\ncommitter A <a@b> {1_000_000_000 + n} +0000\ndata 1\nx\n" for n in range(2000)
    )
    subprocess.run(["git", "fast-import", "--quiet"], input=script.encode(), cwd=repository.path, check=True)
    shared = next(
        commit[:4]
        for commit in repository.git("rev-list", "many").split()
        if seen.setdefault(commit[:4], commit) != commit
    )
    assert_refused(stage(stager, repository, shared), "is ambiguous", "more of its digits")


def test_an_unreachable_remote(stager: Stager) -> None:
    """A missing path, and a port where nobody listens: git's own reason, the next step, nothing left."""
    assert_refused(stager.run(Git(url="../missing")), "does not exist", str(stager.directory.parent / "missing"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        done = stager.run(Git(url=f"http://user:s3cret@127.0.0.1:{port}/x.git", ref="main"))
    assert_refused(
        done, f"cannot fetch from http://***@127.0.0.1:{port}/x.git", "Failed to connect", "git ls-remote -- "
    )
    assert "s3cret" not in str(done)
    stager.assert_nothing_left()


def test_a_failed_fetch_keeps_the_mirror_of_another_remote(stager: Stager, repository: Repository) -> None:
    """The old one serves the next deploy from there; a new remote's commits never come from it."""
    commit = repository.git("rev-parse", "HEAD")
    stage(stager, repository)
    assert_refused(stager.run(Git(url="http://127.0.0.1:1/x.git"), "v2"), "cannot fetch")
    other = Repository(repository.path.with_name("other"))
    other.commit("Another project", app__py="other")
    assert stage(stager, other, "main", "v2").exit == 0
    assert app(stager, "v2") == "other"
    assert_refused(stage(stager, other, commit[:10], "v3"), "unknown ref")
    stager.assert_nothing_left(releases=("v1", "v2"), mirror=True)


def test_credentials_are_not_written_to_disk(stager: Stager, repository: Repository) -> None:
    """The mirror's config names the remote without them."""
    bare = repository.path.with_name("bare.git")
    repository.git("clone", "--quiet", "--bare", ".", str(bare))
    source = Git(url=f"https://user:s3cret@localhost{bare}")
    stager.env |= {"HOME": str(stager.directory)}
    rewrite = f'[url "file://{bare}"]\n\tinsteadOf = "https://user:s3cret@localhost{bare}"\n'
    (stager.directory / ".gitconfig").write_text(rewrite)
    done = stager.run(source)
    assert done.exit == 0, done.error
    assert "s3cret" not in str(done)
    assert "s3cret" not in (stager.layout.mirror / "config").read_text()


def test_what_is_no_repository(stager: Stager, repository: Repository) -> None:
    """A plain directory, also one inside a repository's work tree; a file."""
    (stager.directory / "plain").mkdir()
    assert_refused(stager.run(Git(url="plain")), "is not a git repository", "deployer deploy --path")
    (repository.path / "sub").mkdir()
    assert_refused(stager.run(Git(url=str(repository.path / "sub"))), "is not a git repository")
    assert_refused(stager.run(Git(url=str(repository.path / "app.py"))), "does not exist")
    stager.assert_nothing_left()


def test_an_empty_repository(stager: Stager) -> None:
    """With a ref and without."""
    empty = Repository(stager.directory / "empty")
    for ref in (None, "main"):
        assert_refused(stage(stager, empty, ref), "is empty", "commit something")


def test_a_dirty_work_tree_is_refused_and_named(stager: Stager, repository: Repository) -> None:
    """What is there but not committed would not be deployed: say so. Ignored files do not count."""
    (repository.path / ".gitignore").write_text("*.log\n")
    repository.commit("Ignore", **{f"f{n}": "x" for n in range(8)})
    (repository.path / "x.log").write_text("ignored")
    assert stage(stager, repository).exit == 0
    (repository.path / "new\n.py").write_text("x")
    done = stage(stager, repository, None, "v2")
    assert_refused(done, "not committed", "new\\n.py", "commit them", f"deployer deploy --path {repository.path}")
    for number in range(8):
        (repository.path / f"f{number}").write_text("changed")
    repository.git("mv", "app.py", "moved.py")
    done = stage(stager, repository, "main", "v2")
    assert_refused(done, "f0", " and 5 more")
    assert done.error is not None
    assert done.error["cause"].count(",") == 4
    stager.assert_nothing_left(releases=("v1",), mirror=True)
    as_is = stager.run(Directory(path=str(repository.path)), "v2")
    assert as_is.exit == 0


@pytest.mark.parametrize("place", [".deployer", "var/deployer"])
def test_root_in_the_work_tree_is_no_change(repository: Repository, place: str) -> None:
    """`git = "."` with ROOT beside deployer.toml, not ignored."""
    inside = Stager(repository.path, repository.path / place)
    for name in ("v1", "v2"):
        assert inside.run(Git(url="."), name).exit == 0
    (repository.path / "stray").write_text("x")
    assert_refused(inside.run(Git(url="."), "v3"), "stray")


def test_looking_writes_nothing_into_the_users_repository(stager: Stager, repository: Repository) -> None:
    """No index refresh, no lock, no fetch head."""
    os.utime(repository.path / "app.py", (1, 1))  # `git status` would like to write the index now
    before = tree_digest(repository.path / ".git")
    assert stage(stager, repository).exit == 0
    assert tree_digest(repository.path / ".git") == before


def test_links_modes_odd_names_and_attributes(stager: Stager, repository: Repository) -> None:
    """The export is the commit: exec bits, links as links, any name; export-ignore is respected."""
    top = os.fsencode(repository.path)
    for name in (b"with space", b"line\nbreak", b"caf\xe9", b"x" * 200, b"run"):
        with open(top + b"/" + name, "w") as file:
            file.write("x")
    os.chmod(top + b"/run", 0o755)
    deep = b"/".join([b"d" * 50] * 5)
    os.makedirs(top + b"/" + deep)
    with open(top + b"/" + deep + b"/caf\xe9", "w") as file:
        file.write("x")
    for link, target in ((b"l1", b"app.py"), (b"l2", b"/etc/hostname"), (b"l3", b"../outside"), (b"l4", b"\xfe")):
        os.symlink(target, top + b"/" + link)
    repository.commit("Odd")
    done = stage(stager, repository)
    assert done.exit == 0, done.error
    copy = stager.run(Directory(path=str(repository.path)), "v2")
    assert done.result is not None
    assert copy.result is not None
    assert done.result["tree_digest"] == copy.result["tree_digest"]
    assert os.access(stager.release() / "run", os.X_OK)
    assert os.readlink(stager.release() / "l2") == "/etc/hostname"
    assert (stager.release() / "run").stat().st_mode & 0o022 == 0
    assert (stager.release() / "run").stat().st_uid == os.geteuid()
    (repository.path / ".gitattributes").write_text("run export-ignore\n")
    repository.commit("Attributes")
    stage(stager, repository, None, "v3")
    assert not (stager.release("v3") / "run").exists()


def test_excluded_paths_are_not_exported(stager: Stager, repository: Repository) -> None:
    """A directory goes with all it holds; the defaults for directories do not apply to what is committed."""
    (repository.path / "docs").mkdir()
    (repository.path / "docs/page").write_text("x")
    (repository.path / ".venv").write_text("committed on purpose")
    repository.commit("Docs", a__log="x")
    stager.run(Git(url=str(repository.path), exclude=["docs", "*.log"]))
    assert sorted(os.listdir(stager.release())) == [".deployer.json", ".venv", "app.py"]


def test_a_commit_of_the_same_tree_is_the_same(stager: Stager, repository: Repository) -> None:
    """By digest: another commit with the same files needs no rollout."""
    first = stage(stager, repository).result
    assert first is not None
    repository.commit("Only words")
    again = stager.run(Git(url=str(repository.path)), "v2", live_digest=first["tree_digest"]).result
    assert again is not None
    assert (again["outcome"], again["subject"]) == ("same", "Only words")
    stager.assert_nothing_left(releases=("v1",), mirror=True)


def test_a_hooks_variables_do_not_redirect_git(stager: Stager, repository: Repository) -> None:
    """`deployer deploy` in a post-receive hook inherits GIT_DIR and more."""
    stranger = Repository(repository.path.with_name("stranger"))
    stranger.commit("Not this", app__py="wrong")
    stager.env |= {
        "GIT_DIR": str(stranger.path / ".git"),
        "GIT_INDEX_FILE": str(stranger.path / ".git/index"),
        "GIT_WORK_TREE": str(stranger.path),
        "GIT_OBJECT_DIRECTORY": str(stranger.path / ".git/objects"),
        "GIT_CONFIG_PARAMETERS": "'core.bare=true'",
    }
    assert stage(stager, repository, "main").exit == 0
    assert app(stager) == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a repository away")
def test_a_repository_of_another_user_is_explained(stager: Stager, repository: Repository) -> None:
    """git's safe.directory, with the command that allows it; which then works."""
    for path in (repository.path, *repository.path.rglob("*")):
        os.chown(path, 65534, 65534)
    stager.env["HOME"] = str(stager.directory)
    done = stage(stager, repository)
    allow = "git config --global --add safe.directory"
    hint = f"{allow} {repository.path} && {allow} {repository.path}/.git"
    assert_refused(done, "belongs to another user", "runs as root", hint)
    stager.assert_nothing_left()
    subprocess.run(hint, shell=True, env=stager.env, check=True)
    assert stage(stager, repository).exit == 0


def test_litter_of_a_killed_fetch_is_no_obstacle(stager: Stager, repository: Repository) -> None:
    """Locks and half a pack are swept."""
    stage(stager, repository)
    mirror = stager.layout.mirror
    litter = ("packed-refs.lock", "refs/heads/main.lock", "objects/pack/tmp_pack_x", "config.lock")
    for name in litter:
        (mirror / name).touch()
    shutil.copytree(mirror, stager.layout.root / "mirror.git.partial")
    repository.commit("Second", app__py="2")
    done = stage(stager, repository, "main", "v2")
    assert done.exit == 0, done.error
    assert app(stager, "v2") == "2"
    assert not any((mirror / name).exists() for name in litter)
    stager.assert_nothing_left(releases=("v1", "v2"), mirror=True)


def test_a_damaged_mirror_is_made_anew(stager: Stager, repository: Repository) -> None:
    """A power cut: no HEAD; or empty objects."""
    stage(stager, repository)
    (stager.layout.mirror / "HEAD").unlink()
    assert stage(stager, repository, "main", "v2").exit == 0
    for path in (stager.layout.mirror / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"")
    repository.commit("Next", app__py="next")
    done = stage(stager, repository, "main", "v3")
    assert done.exit == 0, done.error
    assert app(stager, "v3") == "next"


def test_git_that_is_not_installed(stager: Stager, repository: Repository, tmp_path: Path) -> None:
    """A directory is staged without it; a repository says what to install."""
    stager.env["PATH"] = str(tmp_path / "nothing")
    assert_refused(stage(stager, repository, "main"), "git is not installed", "apt-get install git")
    assert stager.run(Directory(path=str(repository.path))).exit == 0


def test_a_server_that_never_answers_is_given_up(
    stager: Stager, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is shortened here, in this process; git and its helper are gone afterwards."""
    from deployer.releases.sources import gitcommand

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        git = gitcommand.GitCommand(stager.directory)
        with pytest.raises(gitcommand.GitFailedError, match="gave no answer"):
            git.run("ls-remote", "--", url, timeout_s=0.5)
    wait_until(lambda: not running(url))


def test_a_helper_that_outlives_git_is_killed(stager: Stager) -> None:
    """git has ended, its helper holds the pipes: nobody else would end it."""
    from deployer.releases.sources import gitcommand

    helper = stager.directory / "helper"
    helper.write_text("#!/bin/sh\necho $$\nexec sleep 300\n")
    helper.chmod(0o755)
    git = gitcommand.GitCommand(stager.directory)
    with contextlib.suppress(InterruptedError), git.stream("-c", f"alias.linger=!{helper} &", "linger") as output:
        pid = int(output.readline())
        wait_until(lambda: not alive(os.getpgid(pid)))  # git leads the group
        assert alive(pid)
        raise InterruptedError  # the reader gives up
    wait_until(lambda: not alive(pid))


def running(word: str) -> list[str]:
    """Processes with this in their command. A killed one may go while it is looked at."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
