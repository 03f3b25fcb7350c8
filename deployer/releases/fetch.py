"""Fills a new release from its source, sharing what did not change, and notes every file in the release's index."""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

from deployer.config.model import Config
from deployer.paths import Layout
from deployer.releases import links
from deployer.releases.digest import Summary
from deployer.releases.index import IndexWriter, place
from deployer.releases.request import Again, Artifact, Directory, Git, Package, StageRequest
from deployer.releases.sources import directory
from deployer.releases.sources.base import Origin, Progress
from deployer.releases.sources.writer import TreeWriter


@dataclass(frozen=True)
class Fetched:
    """What the source gave, before anything was built in it."""

    origin: Origin
    summary: Summary
    previous: Path | None = None  # the release before: what did not change is shared with it
    warnings: list[str] = field(default_factory=list)


def fetch(request: StageRequest, layout: Layout, into: Path, progress: Progress) -> Fetched:
    """Fill the empty directory `into`. Raises SourceError, and OSError for the disk."""
    index = IndexWriter(place(layout.release(request.name)))
    before = links.newest(layout.releases, layout.current, request.name)
    previous = _previous(request, layout, before)
    try:
        fetched = replace(_fill(request, layout, into, index, previous, progress), previous=before)
        index.close(durable=request.development is None)
        fetched.warnings.extend(previous.warnings())
    except sqlite3.Error as error:
        index.discard()
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), "the release's index") from error
    except BaseException:
        index.discard()
        raise
    finally:
        previous.close()
    return fetched


def separate(request: StageRequest, config: Config, layout: Layout, tree: Path, *, builds_environment: bool) -> None:
    """Before anything writes into the tree: no file of it is another release's any more. `config` is the release's
    own, known only now; the host's has been looked at before the fetch."""
    if _may_write(request, config, layout, tree) or (request.development is not None and builds_environment):
        links.separate(tree, place(layout.release(request.name)))


def _may_write(request: StageRequest, config: Config, layout: Layout, tree: Path | None = None) -> bool:
    if request.development is not None:
        return bool(config.build.run)  # no hooks, and an environment is built once for hundreds of saves
    return links.may_write(config, layout.root, tree)


def _previous(request: StageRequest, layout: Layout, before: Path | None) -> links.Previous:
    host = request.host_config
    may_link = not _may_write(request, host, layout)
    return links.Previous(before if host.source.link else None, may_link=may_link, shared=host.release.shared)


def _fill(
    request: StageRequest, layout: Layout, into: Path, index: IndexWriter, previous: links.Previous, progress: Progress
) -> Fetched:
    source, base = request.source, Path(request.directory)
    if isinstance(source, Directory):
        return Fetched(*directory.copy(source, base, layout.root, into, index, previous, progress))
    if isinstance(source, Again):
        from deployer.releases import again

        progress(f"copying {source.release} as its source was")
        summary, warnings = again.copy(source, layout, into, index)
        origin = Origin(source.source, source.commit, source.subject, source.author, source.ref)
        return Fetched(origin, summary, warnings=warnings)
    writer = TreeWriter(into, index, previous)
    if isinstance(source, Git):
        # Imported here: GitPython takes 60 ms and looks for git, which a directory deploy does without.
        from deployer.releases.sources import git

        origin = git.export(source, base, layout, writer, progress)
    elif isinstance(source, Artifact):
        from deployer.releases.sources import artifact  # with tarfile, zipfile and ssl

        return Fetched(*artifact.extract(source, base, layout, writer, progress))
    else:
        assert isinstance(source, Package)
        from deployer.releases.sources import package

        # A name that the next staging and the sweep remove, whatever became of this one.
        aside = into.with_name(f"{into.name}.partial")
        origin = package.install(source, aside, writer, progress)
    return Fetched(origin, writer.seal())
