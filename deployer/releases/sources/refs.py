"""From what a person calls a version (branch, tag, commit id, nothing) to one commit."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from deployer.errors import SourceError
from deployer.releases.sources.base import Progress
from deployer.releases.sources.credentials import mask
from deployer.releases.sources.gitcommand import ASK_TIMEOUT_S, GitCommand
from deployer.releases.sources.mirror import Mirror
from deployer.releases.sources.remote import Remote

SUGGESTIONS = 5

_COMMIT_ID = re.compile(r"[0-9a-fA-F]{4,64}")
_FULL_IDS = (40, 64)  # digits of SHA-1 and SHA-256
_SYMREF = re.compile(r"^ref: refs/heads/(\S+)\tHEAD$", re.MULTILINE)


@dataclass(frozen=True)
class Resolved:
    commit: str
    ref: str | None  # branch or tag; None for a commit id


@dataclass(frozen=True)
class _Listing:
    names: set[str]
    default: str | None


def check_name(ref: str | None) -> None:
    """Refuse what git could take for an option, before anything runs. Raises SourceError."""
    if ref is not None and (ref.startswith("-") or not ref.strip() or not ref.isprintable()):
        raise SourceError(
            f"{ref!r} is not a branch, tag or commit",
            cause='a ref is not empty, does not start with "-" and has no control characters',
            hint="deployer deploy --ref main",
        )


def fetch_ref(mirror: Mirror, remote: Remote, ref: str | None, progress: Progress) -> Resolved:
    """Have in the mirror what `ref` names (None: the remote's HEAD), and say which commit that is: a branch first,
    then a tag, then a commit id. A new mirror of a URL gets that commit alone, not the history.

    Raises SourceError that names the nearest refs, or says that the repository is empty; GitFailedError.
    """
    listing = _ask(GitCommand(mirror.path.parent), remote.url)
    wanted = listing.default if ref is None else ref
    shallow = remote.is_url and mirror.starts_shallow()
    if not shallow:
        mirror.update(progress)
    names = listing.names if shallow else _names(mirror.git)
    url = remote.shown
    if not names:
        raise SourceError(
            f"the repository {url} is empty",
            cause="it has no branch and no tag",
            hint="commit something and push it, then deploy again",
        )
    if wanted is None:
        wanted = _only_branch(names, url)
        progress(f"the repository has no default branch: using {wanted}, its only one")
    for full in (wanted, f"refs/heads/{wanted}", f"refs/tags/{wanted}"):
        if full in names:
            if shallow:
                mirror.fetch_ref(full, progress)
            return Resolved(_commit(mirror.git, full, wanted), full.split("/", 2)[2])
    if _COMMIT_ID.fullmatch(wanted):
        if shallow:
            _fetch_id(mirror, wanted, progress)
        return Resolved(_by_id(mirror, url, wanted, names), None)
    raise _unknown(url, wanted, names)


def _ask(git: GitCommand, url: str) -> _Listing:
    """The remote's branches, tags and HEAD: a branch, a commit id when it is detached, None when it names nothing."""
    answer = git.check("ls-remote", "--symref", "--", url, timeout_s=ASK_TIMEOUT_S).text
    names, head = set(), None
    for line in answer.splitlines():
        commit, _, name = line.partition("\t")
        if name == "HEAD" and not commit.startswith("ref: "):
            head = commit
        elif name.startswith(("refs/heads/", "refs/tags/")) and not name.endswith("^{}"):
            names.add(name)
    symbolic = _SYMREF.search(answer)
    return _Listing(names, symbolic[1] if symbolic else head)


def _fetch_id(mirror: Mirror, wanted: str, progress: Progress) -> None:
    """A full id by itself, where the server lets one ask so. For the first digits of one all history is needed."""
    if len(wanted) in _FULL_IDS and mirror.have_commit(wanted.lower(), progress, shallow=True):
        return
    if mirror.starts_shallow():
        progress("fetching the whole history, to find the commit")
        mirror.update(progress)


def _by_id(mirror: Mirror, url: str, ref: str, names: set[str]) -> str:
    found = mirror.git.run("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    if found.status != 0 and "ambiguous" in found.stderr:
        raise SourceError(
            f"the commit id {ref!r} is ambiguous in {mask(url)}",
            cause="several commits start with it",
            hint="write more of its digits",
        )
    if found.status != 0 and len(ref) in _FULL_IDS and mirror.fetch_commit(ref):
        found = mirror.git.run("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    if found.status != 0:
        raise _unknown(url, ref, names)
    return _id_of(found.text)


def _commit(git: GitCommand, full: str, ref: str) -> str:
    found = git.run("rev-parse", "--verify", "--end-of-options", f"{full}^{{commit}}")
    if found.status != 0:
        raise SourceError(f"the ref {ref!r} does not name a commit", hint="choose a branch or another tag")
    return _id_of(found.text)


def _id_of(text: str) -> str:
    """`rev-parse --end-of-options` of git before 2.43 may print that option too: the id is the last line."""
    return text.splitlines()[-1]


def _names(git: GitCommand) -> set[str]:
    listed = git.check("for-each-ref", "--format=%(refname)", "refs/heads/", "refs/tags/")
    return set(listed.text.splitlines())


def _only_branch(names: set[str], url: str) -> str:
    branches = sorted(name.removeprefix("refs/heads/") for name in names if name.startswith("refs/heads/"))
    if len(branches) == 1:
        return branches[0]
    raise SourceError(
        f"the repository {mask(url)} has no default branch",
        cause="its HEAD names a branch that does not exist",
        hint=f"name one with --ref or `ref` in [source]: {_listed(branches)}",
    )


def _unknown(url: str, ref: str, names: set[str]) -> SourceError:
    short = sorted(name.split("/", 2)[2] for name in names)
    near = difflib.get_close_matches(ref, short, SUGGESTIONS, cutoff=0.5)
    known = f"did you mean {_listed(near)}?" if near else f"it has {_listed(short)}"
    return SourceError(
        f"unknown ref {ref!r} in {mask(url)}",
        cause="no branch, tag or commit is called so there",
        hint=known,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SUGGESTIONS} more" if len(names) > SUGGESTIONS else ""
    return (", ".join(names[:SUGGESTIONS]) or "none") + more
