"""`ROOT/mirror.git`: a bare copy of the remote's branches and tags, made aside and moved into place when whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from deployer.releases.sources.base import Progress
from deployer.releases.sources.credentials import mask
from deployer.releases.sources.gitcommand import TRANSFER_TIMEOUT_S, GitCommand, GitFailedError

REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")

_NO_SHALLOW = re.compile("does not support shallow")  # plain files behind http, without a git to cut them
_CORRUPT = re.compile(
    r"corrupt|bad object|missing (blob|tree|commit|object)|unable to read|is empty|bad config|not a git repository:"
    r"|did not send all necessary objects|unresolved deltas|cannot lock ref|bad signature"
)


class Mirror:
    """The mirror of one remote. Only one staging runs at a time, so what a killed one left may be swept."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self._aside = path.with_name(f"{path.name}.partial")
        self._url = url
        self.git = GitCommand(path.parent, git_dir=path)

    @property
    def is_shallow(self) -> bool:
        return (self.path / "shallow").is_file()

    def starts_shallow(self) -> bool:
        """Whether only what is wanted is to be fetched: the mirror is new, or has only been used so."""
        return self.is_shallow or not self._usable()

    def update(self, progress: Progress) -> None:
        """Have all branches and tags as the remote has them now, with their history; forced moves and removals too.

        Raises GitFailedError and OSError; a mirror that was there stays usable, one that was not is not left behind.
        """
        whole = ("--prune", *(["--unshallow"] if self.is_shallow else []), "--", self._url, *REFSPECS)
        self._update(progress, whole, ("--prune", "--", self._url, *REFSPECS))

    def fetch_ref(self, full: str, progress: Progress) -> None:
        """Have one branch or tag. The first time its last commit alone; then what came since. Raises as `update`."""
        anew = ("--depth=1", "--", self._url, f"+{full}:{full}")
        known = self._usable() and self.git.run("rev-parse", "--verify", "--quiet", full).status == 0
        self._update(progress, anew[1:] if known else anew, anew)

    def have_commit(self, sha: str, progress: Progress, *, shallow: bool) -> bool:
        """Whether the commit is here, fetched when it was not: by itself when the remote allows that, else with all
        branches and tags. Raises as `update`."""
        if self._usable() and self._has(sha):
            return True
        if shallow and self.starts_shallow():
            if not self._usable():
                remove_any(self._aside)
                self._make_anew(())
            if self.fetch_commit(sha, shallow=True):
                return True
        self.update(progress)
        return self._has(sha) or self.fetch_commit(sha)

    def _has(self, sha: str) -> bool:
        return self.git.run("cat-file", "-e", f"{sha}^{{commit}}").status == 0

    def _update(self, progress: Progress, arguments: tuple[str, ...], anew: tuple[str, ...]) -> None:
        remove_any(self._aside)
        if self._usable():
            try:
                self._fetch_in_place(arguments)
                return
            except GitFailedError as error:
                if not _CORRUPT.search(error.stderr):
                    raise
                progress(f"the mirror is damaged ({error.cause}): fetching everything anew")
        self._make_anew(anew)

    def fetch_commit(self, sha: str, *, shallow: bool = False) -> bool:
        """Try for a commit that no branch or tag reaches; whether it is here now. Servers may refuse that."""
        depth = ("--depth=1",) if shallow else ()
        arguments = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *depth, "--", self._url, sha)
        return self.git.run(*arguments, timeout_s=TRANSFER_TIMEOUT_S).status == 0

    def _usable(self) -> bool:
        """A mirror of another remote is not: its commits must not answer for this one's."""
        if not self.path.is_dir():
            return False
        url = self.git.run("config", "--get", "remote.origin.url")
        bare = self.git.run("rev-parse", "--is-bare-repository")
        return url.status == 0 and url.text == mask(self._url) and bare.text == "true"

    def _fetch_in_place(self, arguments: tuple[str, ...]) -> None:
        self._sweep()
        try:
            _fetch(self.git, arguments)
        except BaseException:
            self._sweep()
            raise

    def _make_anew(self, arguments: tuple[str, ...]) -> None:
        aside = self._aside
        try:
            GitCommand(aside.parent).check("init", "--quiet", "--bare", "--template=", "--", str(aside))
            git = GitCommand(aside.parent, git_dir=aside)
            git.check("config", "remote.origin.url", mask(self._url))  # what tells remotes apart; no secret on disk
            if arguments:
                _fetch(git, arguments)
            remove_any(self.path)
            aside.rename(self.path)
        except BaseException:
            remove_any(aside)
            raise

    def _sweep(self) -> None:
        for path in _litter(self.path):
            path.unlink(missing_ok=True)


def remove_any(path: Path) -> None:
    """Remove a directory that is not a release."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fetch(git: GitCommand, arguments: tuple[str, ...]) -> None:
    command = ("fetch", "--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    try:
        git.check(*command, *arguments, timeout_s=TRANSFER_TIMEOUT_S)
    except GitFailedError as error:
        if not _NO_SHALLOW.search(error.stderr):
            raise
        whole = [argument for argument in arguments if argument != "--depth=1"]
        git.check(*command, *whole, timeout_s=TRANSFER_TIMEOUT_S)


def _litter(mirror: Path) -> Iterator[Path]:
    """Locks and half-written packs of a git that was killed: it would refuse to go on, or the disk would fill."""
    yield from mirror.glob("*.lock")
    yield from mirror.glob("refs/**/*.lock")
    yield from mirror.glob("objects/pack/tmp_*")
    yield from mirror.glob("objects/pack/.tmp-*")
    yield from mirror.glob("objects/[0-9a-f][0-9a-f]/tmp_obj_*")
