"""The JSON that crosses the control API, the same for the CLI, scripts and the OpenAPI page."""

from __future__ import annotations

from typing import Any

import msgspec

PREFLIGHT_SLOT = 0
TEMPLATE_SLOT = -1
WARM_SLOT = -2
BLANK_SLOT = -3
"""Slots that no visitor is sent to: the preflight worker's, and those of the processes that workers are forked from:
one has imported the application, the other what the saves of a watch have in common. The last is of one that has
imported neither: it is to become a template."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Unknown fields are ignored: a client may be older than the manager it asks."""


class Problem(Message, frozen=True, kw_only=True):
    """An error as a person reads it; `exit` is the exit code the command ends with."""

    what: str
    cause: str | None = None
    hint: str | None = None
    exit: int = 1
    reason: str = "error"
    tail: list[str] = []  # what a failed build printed last


class WorkerInfo(Message, frozen=True, kw_only=True):
    slot: int
    pid: int | None
    release: str | None
    state: str  # starting | ready | recycling | unhealthy | hung | draining | backoff
    uptime_s: float
    restarts: int
    rss_bytes: int
    cpu_percent: float
    last_exit: LastExit | None = None
    traffic: Traffic | None = None  # of an `app` that deployer serves itself; None for plain commands
    why: str | None = None  # it is to be replaced, or what somebody should know of it
    recycled: Recycled | None = None  # the last one of the slot that was replaced for such a reason


class Traffic(Message, frozen=True, kw_only=True):
    """What a worker says of its visitors. Rates are of the last `window_s` seconds, totals of its life."""

    window_s: float
    requests_per_s: float
    p50_ms: float | None  # to the head of the answer; None without answers in the window
    p99_ms: float | None
    error_ratio: float | None  # 5xx among the answers of the window
    requests: int
    status_1xx: int
    status_2xx: int
    status_3xx: int
    status_4xx: int
    status_5xx: int
    broken: int  # answers that an error of the application ended before they were whole
    connections: int
    websockets: int  # of these
    in_flight: int  # requests that are being answered
    last_error: str | None
    last_error_at: float | None  # seconds since the epoch
    report: str | None  # what the application itself said by `deployer.runtime.report`


class Cut(Message, frozen=True, kw_only=True):
    """What was still under way when the time to drain was over, and was ended."""

    requests: int
    connections: int  # websockets, streams, answers that nobody fetched
    drain_timeout: str
    estimated: bool = False  # a worker was killed before it could count: what it last said was open


class Recycled(Message, frozen=True, kw_only=True):
    """A worker that came to a limit of `[worker]` and was replaced; that is no death of it."""

    at: float  # seconds since the epoch
    pid: int
    release: str
    reason: str  # memory | max_age | hung
    text: str


class LastExit(Message, frozen=True, kw_only=True):
    """How the last worker of a slot that died by itself ended."""

    at: float  # seconds since the epoch
    pid: int
    release: str
    code: int | None  # exit code, or None when a signal ended it or nobody could see
    signal: str | None
    text: str  # "exit code 1", "killed by SIGSEGV"
    tail: list[str]  # its last log lines


class TemplateInfo(Message, frozen=True, kw_only=True):
    """The process that workers of a release with `preload` are forked from."""

    release: str
    pid: int
    state: str  # starting | ready | draining
    rss_bytes: int
    standby_left_s: float | None  # of a release that is not live: how much longer it stays for a rollback at once


class ManagerInfo(Message, frozen=True, kw_only=True):
    pid: int
    uptime_s: float
    version: str


class KeeperInfo(Message, frozen=True, kw_only=True):
    pid: int | None  # None: the keeper is gone; `deployer up` starts a new one


class RolloutInfo(Message, frozen=True, kw_only=True):
    id: int
    kind: str  # deploy | rollback | restart | scale
    phase: str  # of the rollout; or queued: it waits its turn
    release: str | None  # target; None until staging has named it
    previous: str | None
    outcome: str | None  # promoted | reverted | held | failed | unchanged
    exit_code: int | None
    reason: str | None
    who: str
    message: str | None
    started_at: float
    finished_at: float | None
    problem: Problem | None = None
    serving: str | None = None  # release that serves after the end
    tail: list[str] = []  # last log lines of the worker, or of the hook, that failed
    warnings: list[str] = []  # what went wrong without changing the outcome
    place: int | None = None  # of a queued one: 1 is next
    cut: Cut | None = None  # by the ends of the workers that it retired; None: nothing was
    draining: int = 0  # workers that it retired and that are not through with their visitors
    watch: int | None = None  # the watch that began it


class Status(Message, frozen=True, kw_only=True):
    app: str
    release: str | None
    rollout: RolloutInfo | None  # the one that runs or is held
    listen: list[str]
    count: int
    manager: ManagerInfo
    keeper: KeeperInfo
    workers: list[WorkerInfo]
    config_file: str
    root: str
    queued: list[RolloutInfo] = []  # those that wait their turn, next first
    templates: list[TemplateInfo] = []
    watch: WatchInfo | None = None  # the one that looks for saves, or for the fix of a deploy


class WatchInfo(Message, frozen=True, kw_only=True):
    id: int
    kind: str  # dev: each save goes live | heal: a fix of the deploy that failed is waited for
    path: str
    mode: str | None  # kernel | poll; None: it does not watch yet
    directories: int
    who: str
    since: float  # seconds since the epoch
    saves: int  # that were heard of
    rollout: int | None = None  # heal: the one that failed


class ReleaseInfo(Message, frozen=True, kw_only=True):
    name: str
    state: str  # staging | staged | live | superseded | failed | reverted | bad
    source: str
    commit: str | None
    subject: str | None
    author: str | None
    staged_at: float
    promoted_at: float | None
    size_bytes: int
    who: str
    message: str | None
    reason: str | None = None
    tree_digest: str | None = None
    pinned: bool = False
    removed_at: float | None = None  # retention took its files


class ReleaseDetail(Message, frozen=True, kw_only=True):
    """All that is known of one release. Of its environment only the names of the variables: values are secrets."""

    info: ReleaseInfo
    directory: str
    ref: str | None
    files: int
    environment: str | None  # its Python environment: a name in ROOT/envs
    settings_digest: str | None
    env_keys: list[str]
    config: dict[str, Any]  # as `deployer.releases.settings` shows it: no values that may be secret
    warnings: list[str]
    rollouts: list[RolloutInfo]  # that had to do with it, newest first


class Changes(Message, frozen=True, kw_only=True):
    """Names of what differs, in order."""

    added: list[str] = []
    removed: list[str] = []
    changed: list[str] = []


class SettingsDiff(Message, frozen=True, kw_only=True):
    """What differs in the settings of two releases; never a value of the environment."""

    old: ReleaseDetail
    new: ReleaseDetail
    env: Changes
    config: Changes


class Plan(Message, frozen=True, kw_only=True):
    """What a deploy or a rollback would do."""

    kind: str
    source: str | None  # of a deploy: for people
    commit: str | None
    subject: str | None
    release: str | None  # of a rollback: the one it goes to
    live: str | None
    unchanged: bool  # it is live already: there would be nothing to do
    files: Changes
    env: Changes
    config: Changes
    slots: list[int]  # that would be replaced, in order
    removes: list[str]  # releases that retention would take afterwards
    warnings: list[str] = []


class LogLine(Message, frozen=True, kw_only=True):
    ts: float
    slot: int
    pid: int
    release: str
    stream: str  # stdout | stderr
    line: str


class Event(Message, frozen=True, kw_only=True):
    """What happened, in order; `seq` resumes a stream. `data` holds the event's own fields (see
    `deployer/events.py`); the stream prints it flattened into one object."""

    seq: int
    ts: float
    event: str
    rollout: int | None = None
    data: dict[str, Any] = {}


class Command(Message, frozen=True, kw_only=True):
    """What begins a rollout."""

    who: str
    key: str | None = None  # names this command: asked again, since no answer came, it is not done again


class DeployRequest(Command, frozen=True, kw_only=True):
    """Source fields override `[source]` of deployer.toml."""

    path: str | None = None
    git: str | None = None
    ref: str | None = None
    artifact: str | None = None  # a tar or zip: an absolute path, or a URL, which needs `sha256`
    sha256: str | None = None
    package: str | None = None  # "shop==1.2"
    force: bool = False
    message: str | None = None
    env_only: bool = False  # the live release's tree again, with the environment read anew
    queue: bool = False  # wait for the rollout that runs
    supersede: bool = False  # abort it
    watch: bool = False  # hold if it fails, and wait for a fix in its source


class RollbackRequest(Command, frozen=True, kw_only=True):
    """To `release`, to the newest release of `commit` (a prefix), or to the last good one."""

    release: str | None = None
    commit: str | None = None
    message: str | None = None
    queue: bool = False
    supersede: bool = False


class RestartRequest(Command, frozen=True, kw_only=True):
    message: str | None = None


class ScaleRequest(Command, frozen=True, kw_only=True):
    count: int


class AbortRequest(Message, frozen=True, kw_only=True):
    """`rollout`: this one only; one that waits its turn leaves the queue. `waiting`: not if it runs meanwhile."""

    who: str
    rollout: int | None = None
    waiting: bool = False


class PinRequest(Message, frozen=True, kw_only=True):
    who: str
    pinned: bool


class StopRequest(Message, frozen=True, kw_only=True):
    """`now` skips the drain."""

    who: str
    now: bool = False


class WatchRequest(Message, frozen=True, kw_only=True):
    """Every save goes live, until the process `holder` ends. Lists replace those of `[watch]`, but for `ignore`."""

    who: str
    holder: int  # pid of the command that shows it
    path: str | None = None  # absolute; None: the path of [source], else the directory of deployer.toml
    paths: list[str] = []
    ignore: list[str] = []  # beside those of [watch]
    extensions: list[str] = []
    settle: str | None = None  # a duration
    poll: str | None = None  # a duration: look so often, instead of asking the kernel
    signal: str | None = None  # instead of stop_signal
    reload: str | None = None  # URL of the event stream that open pages listen to
    workers: int | None = None  # where no release is live yet; else the cluster keeps its count. None: as configured
    own: bool = False  # the cluster was started for this watch, and stops with it


class WatchStop(Message, frozen=True, kw_only=True):
    who: str


class WatchAgain(Message, frozen=True, kw_only=True):
    """Deploy what is on disk, even if it is what is live."""

    who: str


class WatchBack(Message, frozen=True, kw_only=True):
    """Back to the save before the one that is live."""

    who: str
