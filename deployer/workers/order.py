"""What a worker is started with: its command, environment and limits, from the release's configuration (pure)."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import site
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deployer.config.command import fill, split
from deployer.config.model import Worker as WorkerConfig
from deployer.config.workerrules import rlimit
from deployer.paths import Layout
from deployer.releases.release import Release, activate, base_environment
from deployer.releases.served import program, warm
from deployer.wire.schema import BLANK_SLOT, TEMPLATE_SLOT, WARM_SLOT
from deployer.workers.shim import FIRST_FD
from deployer.workers.worker import Fit, Worker

OPEN_FILES = "DEPLOYER_OPEN_FILES"


def of(worker: Worker, slot: int, where: Mapping[str, str], base: Mapping[str, str], *, forked: bool) -> dict[str, Any]:
    """The part of the order that says what to run, and where; `slot` is what the worker is told. One that was forked
    has its sockets already, and no use for their numbers."""
    release, names = worker.release, [listener.name for listener in worker.listeners]
    assert worker.notify is not None
    own = {
        **where,
        "DEPLOYER_RELEASE": release.name,
        "DEPLOYER_WORKER": str(max(slot, 0)),
        "NOTIFY_SOCKET": worker.notify.getsockname(),
    }
    template = release.config.worker.command or ""
    sockets = [listener.sock.fileno() for listener in worker.listeners]
    if release.config.worker.app is not None:
        is_warm = worker.slot in (WARM_SLOT, BLANK_SLOT)
        argv = (
            warm(release.environment)
            if is_warm
            else program(release.config.worker, release.environment, template=worker.slot == TEMPLATE_SLOT)
        )
        own |= {
            "DEPLOYER_SCOREBOARD": str(Layout(Path(where["DEPLOYER_ROOT"])).scoreboard),
            "DEPLOYER_GENERATION": str(worker.generation),
        }
    else:
        argv = command(template, names=names, slot=worker.slot, release=release.name)
    return {
        "argv": argv,
        "env": environment(base, release, own, [] if forked else names),
        "cwd": str(release.directory),
        "sockets": sockets * 2 if "{fd" in template else sockets,
    }


def command(template: str, *, names: Sequence[str], slot: int, release: str) -> list[str]:
    """The argument list, with {fd}, {fd:NAME}, {worker} and {release} filled in.

    {fd} is a second descriptor of the socket, after those that LISTEN_FDS counts: a server that takes both what it
    is told and what systemd would pass (gunicorn) would otherwise use and close one descriptor twice.
    """
    first = FIRST_FD + len(names)
    fields = {"worker": str(slot), "release": release, "fd": str(first)}
    fields |= {f"fd:{name}": str(number) for number, name in enumerate(names, first)}
    return [fill(word, fields) for word in split(template)]


def environment(
    base: Mapping[str, str], release: Release | None, own: Mapping[str, str], names: Sequence[str]
) -> dict[str, str]:
    """Built anew for each worker: what was removed from a file or a release is gone."""
    env = base_environment(base)
    if release is not None:
        env = activate({**env, **release.env}, release.environment)
    env.update(own)
    if names:
        env["LISTEN_FDS"] = str(len(names))
        env["LISTEN_FDNAMES"] = ":".join(names)
    return env


def limits(config: WorkerConfig, base: Mapping[str, str]) -> dict[str, Any]:
    """The part of the shim's order that sets limits and user. OSError for a user that is not there.

    The keeper raised the limit of open files for itself and us; workers start from what it was.
    """
    open_files = [[resource.RLIMIT_NOFILE, int(base[OPEN_FILES])]] if OPEN_FILES in base else []
    return {
        "umask": None if config.umask is None else int(config.umask, 8),
        "nice": config.nice,
        "rlimits": [*open_files, *([rlimit(name), value] for name, value in config.rlimits.items())],
        **_user(config),
    }


def fit(release: Release, base: Mapping[str, str]) -> Fit:
    """A worker of the release may be forked from a warm template of the same fit. An environment of a release never
    changes; packages that are installed beside deployer itself are seen by the directories they lie in. OSError as
    from `limits`."""
    packages = () if release.environment is not None else tuple(map(_changed_at, _packages()))
    return Fit(release.environment, release.env, limits(release.config.worker, base), packages)


def _packages() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages()]


def _changed_at(directory: str) -> int:
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0  # there is none


def _user(config: WorkerConfig) -> dict[str, Any]:
    """User and group take effect only when we are root; the configuration check says so to others."""
    if os.geteuid() != 0 or (config.user is None and config.group is None):
        return {"uid": None, "gid": None, "groups": []}
    try:
        user = pwd.getpwnam(config.user) if config.user else None
        gid = grp.getgrnam(config.group).gr_gid if config.group else user.pw_gid if user else None
    except KeyError as error:
        raise OSError(errno.ENOENT, f"{error.args[0]} on this machine ([worker] user, group)") from error
    groups = os.getgrouplist(user.pw_name, user.pw_gid) if user else []
    return {"uid": user.pw_uid if user else None, "gid": gid, "groups": groups}
