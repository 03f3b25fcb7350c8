"""From the words of a command to what is to be staged: deployer.toml as it is now, the source, the room it needs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from deployer.config.load import Loaded, load
from deployer.config.model import Config
from deployer.errors import ConfigError, DeployerError, Exit
from deployer.paths import Layout
from deployer.releases.catalog import Catalog
from deployer.releases.request import Again, Artifact, Directory, Git, Package, Room, StageRequest
from deployer.releases.retention import removable
from deployer.releases.settings import masked
from deployer.rollout.machine import Policy
from deployer.state.store import Store
from deployer.units import parse_duration
from deployer.wire.schema import DeployRequest

_PACKAGE_END = re.compile(r"[^A-Za-z0-9._-]")

Source = Directory | Git | Artifact | Package | Again


class NothingLiveError(DeployerError):
    exit_code = Exit.USAGE
    reason = "nothing_live"


class Requests:
    """Reads the configuration and the records; changes nothing."""

    def __init__(self, *, config_path: Path, store: Store, layout: Layout, catalog: Catalog) -> None:
        self._config_path, self._store, self._layout, self._catalog = config_path, store, layout, catalog

    def reload(self) -> Loaded:
        """deployer.toml as it is now: it counts from this deploy on. Sockets stay as they are."""
        loaded = load(self._config_path)
        running = msgspec.convert(self._store.get("config"), Config)
        if loaded.config.listen != running.listen:
            raise ConfigError(
                f"{self._config_path}: [[listen]] changed since the cluster was started",
                cause="sockets stay open from `up` to `down`, so that no connection is lost between releases",
                hint="put [[listen]] back, or: deployer down && deployer up",
            )
        if loaded.root != self._layout.root or loaded.config.name != running.name:
            raise ConfigError(
                f"{self._config_path}: `name` or `root` changed since the cluster was started",
                hint="put it back, or: deployer down && deployer up",
            )
        return loaded

    @property
    def directory(self) -> Path:
        """Of deployer.toml: what its paths are relative to."""
        return self._config_path.parent

    def config(self) -> Config:
        """deployer.toml as it is now, or, where that is no good, as it was at the last promotion."""
        try:
            return load(self._config_path).config
        except ConfigError:
            return msgspec.convert(self._store.get("config"), Config)

    def source(self, request: DeployRequest, loaded: Loaded) -> Source:
        """What the command names, else `[source]`, else the directory of deployer.toml."""
        if request.env_only:
            return self._again()
        default = os.path.relpath(loaded.source_dir or loaded.directory, loaded.directory)
        return named_source(request, loaded.config, default)

    def stage(self, request: DeployRequest, loaded: Loaded, source: Source, name: str) -> StageRequest:
        live: str | None = self._store.get("release")
        tree, settings = self._catalog.digests(live)
        room = Room(
            expected_bytes=self._catalog.expected_bytes(origin(source)), previous=live, could_go=self._could_go()
        )
        return StageRequest(
            root=str(self._layout.root),
            name=name,
            source=source,
            directory=str(loaded.directory),
            host_config=loaded.config,
            live_digest=tree,
            live_settings=settings,
            force=request.force,
            room=room,
        )

    def live(self, verb: str) -> str:
        live: str | None = self._store.get("release")
        if live is None:
            raise NothingLiveError(f"nothing to {verb}: no release is live", hint="deployer deploy")
        return live

    def _again(self) -> Again:
        return self._catalog.again(self.live("deploy again with a new environment"))

    def _could_go(self) -> list[str]:
        """Every release but the live one and those that are pinned."""
        return removable(self._catalog.kept(), keep=0, keep_failed=0, used=())


def label(source: Source) -> str:
    """A word for the source until staging knows better."""
    if isinstance(source, Again):
        return source.source
    if isinstance(source, Artifact):
        return masked(source.location)
    if isinstance(source, Package):
        return masked(source.requirement)
    return masked(source.url) if isinstance(source, Git) else source.path


def origin(source: Source) -> str:
    """The same text for deploys of one source, whatever their ref or version."""
    if isinstance(source, Again):
        return f"again {source.source}"
    if isinstance(source, Package):
        return f"package {_PACKAGE_END.split(source.requirement, maxsplit=1)[0]}"
    if isinstance(source, Artifact):
        return f"artifact {os.path.dirname(label(source))}"
    return f"{type(source).__name__.lower()} {label(source)}"


def refuse_to_watch(request: DeployRequest, source: Source) -> None:
    """A fix can be waited for only where somebody edits."""
    if request.watch and not isinstance(source, Directory):
        raise DeployerError(
            "only a directory can be watched for a fix",
            cause=f"the source is {label(source)}",
            hint="deploy without --watch, or: deployer deploy --watch --path DIR",
            exit_code=Exit.USAGE,
            reason="usage",
        )


def policy(config: Config, *, watch: bool = False) -> Policy:
    """`watch`: a fix is waited for, beside what failed."""
    rollout = config.rollout
    return Policy(
        preflight=rollout.preflight or config.worker.preload,  # which makes the template
        soak=parse_duration(rollout.soak) > 0,
        batch=rollout.batch,
        hold=watch or rollout.on_failure == "hold",
    )


def named_source(request: DeployRequest, config: Config, default: str) -> Directory | Git | Artifact | Package:
    """What the command names, else `[source]`; how it is fetched is always `[source]`'s to say."""
    source = config.source
    named = any((request.path, request.git, request.artifact, request.package))
    artifact = request.artifact or (None if named else source.artifact)
    package = request.package or (None if named else source.package)
    git = request.git or (None if named else source.git)
    if request.ref is not None and git is None:
        raise DeployerError(
            "--ref needs a git repository",
            cause="[source] names none",
            hint="deployer deploy --git URL --ref REF",
            exit_code=Exit.USAGE,
            reason="usage",
        )
    if artifact is not None:
        sha256 = request.sha256 or (None if request.artifact else source.sha256)
        return Artifact(location=artifact, sha256=sha256, exclude=source.exclude)
    if package is not None:
        return Package(requirement=package, index_url=source.index_url)
    if git is not None:
        ref = request.ref or source.ref
        return Git(url=git, ref=ref, submodules=source.submodules, lfs=source.lfs, exclude=source.exclude)
    path = request.path or source.path or default
    return Directory(path=path, include=source.include, exclude=source.exclude)
