"""deployer.toml as frozen values: every key there is, with its default.

Durations and sizes stay text here ("3s") so that what is stored and shown is what was written;
`deployer.units` turns them into numbers where they are used, `deployer.config.load` refuses wrong ones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

Duration = Annotated[str, msgspec.Meta(description='a duration: "250ms", "3s", "5m", "1h"')]
Size = Annotated[str, msgspec.Meta(description='a size: "512M", "2G"')]


WATCHDOG = "60s"


class Ready(StrEnum):
    """How a worker shows that it serves."""

    NOTIFY = "notify"
    HTTP = "http"
    LISTEN = "listen"
    DELAY = "delay"


class OnFailure(StrEnum):
    REVERT = "revert"
    HOLD = "hold"


class Inconclusive(StrEnum):
    """What a soak leads to in which too few visitors came to judge the canary by numbers."""

    PROMOTE = "promote"
    EXTEND = "extend"
    REVERT = "revert"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of deployer.toml; unknown keys are errors."""


class Worker(Section, frozen=True, kw_only=True):
    """`command` or `app`: one of the two."""

    command: str | None = None  # any program; {fd}, {fd:NAME}, {worker}, {release} are filled in
    app: str | None = None  # "module:object" or "module:factory()": WSGI or ASGI, served by deployer's own runtime
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8  # of a WSGI `app`
    preload: bool = False  # import an `app` once, in a template, and fork the workers from it
    post_fork: str | None = None  # "module:function", called in each worker of an `app` before it serves
    count: Annotated[int, msgspec.Meta(ge=1, le=512)] | Literal["auto"] = "auto"
    env: dict[str, str] = {}
    env_file: list[str] = []
    user: str | None = None
    group: str | None = None
    ready: Ready | None = None  # "listen"; of an `app` "notify"
    ready_timeout: Duration = "60s"
    ready_delay: Duration = "1s"
    drain_timeout: Duration = "30s"
    stop_signal: str = "SIGTERM"
    memory_limit: Size | None = None  # of a worker with its children; more, and it is replaced, start-first
    max_age: Duration | None = None  # no worker serves longer; by slot some are replaced up to a tenth earlier
    watchdog: Duration | None = None  # "60s" of an `app`: stuck for longer, it is replaced; "0s" is off
    umask: str | None = None
    nice: Annotated[int, msgspec.Meta(ge=-20, le=19)] | None = None
    rlimits: dict[str, int] = {}

    @property
    def readiness(self) -> Ready:
        """`ready`, or what it is when nothing is said."""
        return self.ready or (Ready.NOTIFY if self.app is not None else Ready.LISTEN)

    @property
    def patience(self) -> Duration:
        """`watchdog`, or what it is when nothing is said. A `command` has no heartbeat that could be watched."""
        return (self.watchdog or WATCHDOG) if self.app is not None else "0s"


class Listen(Section, frozen=True, kw_only=True):
    address: str
    name: str | None = None
    backlog: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 2048


class Source(Section, frozen=True, kw_only=True):
    """One of `path`, `git`, `artifact` and `package`; none means the directory of deployer.toml."""

    path: str | None = None
    git: str | None = None
    ref: str | None = None
    submodules: bool = True
    lfs: bool = False
    artifact: str | None = None  # a .tar.gz, .tgz, .tar or .zip: a path or an https URL
    sha256: str | None = None  # of the artifact; required for a URL
    package: str | None = None  # "shop==1.2", from an index
    index_url: str | None = None  # may hold ${VARIABLE}: a token from the environment
    include: list[str] = []  # globs taken although .gitignore names them
    exclude: list[str] = []  # globs left out
    link: bool = True  # share unchanged files with the release before; false for an app that rewrites its own code


class Build(Section, frozen=True, kw_only=True):
    """What makes a release runnable, in its directory, before any worker of it starts."""

    python: Literal["uv", "pip", "none"] = "none"
    run: list[str] = []
    timeout: Duration = "15m"


class Release(Section, frozen=True, kw_only=True):
    keep: Annotated[int, msgspec.Meta(ge=1)] = 5  # good releases beside the live one
    keep_failed: Annotated[int, msgspec.Meta(ge=0)] = 3
    shared: list[str] = []  # linked from ROOT/shared into each release


class Hooks(Section, frozen=True, kw_only=True):
    """Commands, or executables `hooks/<stage>` in the release and in ROOT that are found by name."""

    before_stage: str | None = None
    after_build: str | None = None
    before_rollout: str | None = None
    after_canary: str | None = None
    after_rollout: str | None = None
    on_failure: str | None = None
    after_rollback: str | None = None
    timeout: Duration = "5m"


class Health(Section, frozen=True, kw_only=True):
    http: str | None = None
    expect: Annotated[int, msgspec.Meta(ge=100, le=599)] = 200
    interval: Duration = "5s"
    timeout: Duration = "2s"
    unhealthy_after: Annotated[int, msgspec.Meta(ge=1)] = 3


class Rollout(Section, frozen=True, kw_only=True):
    preflight: bool = True
    soak: Duration = "3s"
    batch: Annotated[int, msgspec.Meta(ge=1)] = 1
    warmup: list[str] = []  # paths that the preflight asks for, after the health check
    standby: Duration = "0s"  # how long the template of the release before stays, for a rollback at once
    on_failure: OnFailure = OnFailure.REVERT
    deadline: Duration = "30m"
    # The canary of an `app`, by what it answers to visitors in its soak (deployer.rollout.numbers):
    max_error_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02  # of 5xx, beyond that of the old workers
    max_latency_ratio: Annotated[float, msgspec.Meta(ge=0)] = 3.0  # of the old workers' p95, then it is slow; 0: never
    min_samples: Annotated[int, msgspec.Meta(ge=1)] = 20  # answers, of the canary and of the old workers
    inconclusive: Inconclusive = Inconclusive.PROMOTE  # where there are fewer


class Watch(Section, frozen=True, kw_only=True):
    """What a save is to `deployer watch`, and to a deploy that waits for its fix."""

    paths: list[str] = []  # globs or directories, relative to the source; none: all of it
    ignore: list[str] = []  # globs, beside what is never looked at
    extensions: list[str] = []  # "py", "html"; none: all
    settle: Duration = "20ms"  # how long all must be quiet after the last change
    build: list[str] = []  # commands for each save, instead of [build] run


class Config(Section, frozen=True, kw_only=True):
    name: str
    worker: Worker
    listen: list[Listen] = []
    root: str = ".deployer"
    source: Source = Source()
    health: Health = Health()
    rollout: Rollout = Rollout()
    build: Build = Build()
    release: Release = Release()
    hooks: Hooks = Hooks()
    watch: Watch = Watch()


HOST_SECTIONS = ("name", "root", "listen", "source")
"""What belongs to the host: a release's own deployer.toml does not override these."""
