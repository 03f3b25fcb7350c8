"""What the manager and its staging child say to each other: one request in, lines of JSON out."""

from __future__ import annotations

from typing import Annotated

import msgspec

from deployer.config.model import Config
from deployer.wire.schema import Changes, Problem

ReleaseName = Annotated[str, msgspec.Meta(pattern=r"^(v|dev-)[1-9][0-9]*\Z")]


class Directory(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="directory"):
    """Copy a directory as it is now, without what .gitignore names unless `include` names it too. `path` is relative
    to `StageRequest.directory`."""

    path: str
    include: list[str] = []
    exclude: list[str] = []


class Git(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="git"):
    """Export a commit. `url` may be a path, relative to `StageRequest.directory`; no `ref` = remote HEAD."""

    url: str
    ref: str | None = None
    submodules: bool = True
    lfs: bool = False
    exclude: list[str] = []


class Artifact(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="artifact"):
    """Unpack a tar or zip: a path, relative to `StageRequest.directory`, or a URL, which needs `sha256`."""

    location: str
    sha256: str | None = None
    exclude: list[str] = []


class Package(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="package"):
    """Install "name==version" from an index. `index_url` may hold ${VARIABLE}: the child fills it in, so that a
    token is in no request, journal or log."""

    requirement: str
    index_url: str | None = None


Source = Directory | Git | Artifact | Package


class Again(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="again"):
    """Take what a release that is there was made from; only its environment is read anew. The rest is what is known
    of that release, and of the new one."""

    release: str
    config: Config
    source: str
    tree_digest: str
    commit: str | None = None
    subject: str | None = None
    author: str | None = None
    ref: str | None = None
    files: int = 0
    bytes: int = 0


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What the disk must take: judged before anything is fetched or built."""

    expected_bytes: int | None = None  # of the last release of this source; None: there was none
    previous: str | None = None  # the release whose unchanged files need no room again
    could_go: list[str] = []  # releases that a person might give up


class Development(msgspec.Struct, frozen=True, kw_only=True):
    """A save, not a release: what is different about it."""

    stop_signal: str | None = None  # instead of [worker] stop_signal
    reload: str | None = None  # URL of the event stream that open pages listen to: DEPLOYER_RELOAD of its workers


class StageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Make `releases/<name>` under `root` from `source`.

    The `live_*` fields are those of the release that serves: what equals them is not staged again
    unless `force`. With `live_settings` None the tree alone decides.
    `parent` is the manager's process id: the child refuses to start when that is not its parent any more.
    """

    root: str  # absolute
    name: ReleaseName
    source: Directory | Git | Artifact | Package | Again
    directory: str  # absolute; where deployer.toml lies
    host_config: Config
    live_digest: str | None = None
    live_settings: str | None = None
    force: bool = False
    parent: int | None = None
    room: Room | None = None
    dry_run: bool = False  # look what it would be, keep nothing
    development: Development | None = None  # it is made for a watch


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was staged; with outcome "same" nothing was, and the rest tells what it would have been."""

    outcome: str  # staged | same
    name: str
    source: str  # for people: "git https://host/x.git", "path /srv/shop"; credentials masked
    tree_digest: str
    settings_digest: str  # of what the workers run with: [worker], [health], environment
    commit: str | None
    subject: str | None
    author: str | None
    ref: str | None  # the branch or tag that was asked for or is the default; None for a bare commit id
    files: int
    bytes: int
    config: Config  # the host's, overlaid by the release's own deployer.toml
    env: dict[str, str]  # frozen for the release's life; secrets: never log it
    seconds: float
    environment: str | None = None  # its Python environment: a name in ROOT/envs
    warnings: list[str] = []  # odd, but no reason to stop
    files_changed: Changes | None = None  # of a dry run: against the live release


class StageLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the child's output; exactly one field is set."""

    progress: str | None = None
    result: StageResult | None = None
    error: Problem | None = None


_lines = msgspec.json.Decoder(StageLine)
_requests = msgspec.json.Decoder(StageRequest)


def encode_request(request: StageRequest) -> bytes:
    return msgspec.json.encode(request)


def decode_request(data: bytes) -> StageRequest:
    """Raises msgspec.DecodeError (ValidationError is one) when this is no request."""
    return _requests.decode(data)


def decode_line(line: bytes) -> StageLine:
    """Raises msgspec.DecodeError when the child wrote something else."""
    return _lines.decode(line)
