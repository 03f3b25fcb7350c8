"""What a worker is started with: its command, environment and limits, from the release's configuration (pure)."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
from collections.abc import Mapping, Sequence
from typing import Any

from deployer.config.command import fill, split
from deployer.config.model import Worker as WorkerConfig
from deployer.config.rules import rlimit
from deployer.releases.release import Release, activate, base_environment
from deployer.releases.served import program
from deployer.workers.shim import FIRST_FD

OPEN_FILES = "DEPLOYER_OPEN_FILES"


def command(template: str, *, names: Sequence[str], slot: int, release: str) -> list[str]:
    """The argument list, with {fd}, {fd:NAME}, {worker} and {release} filled in.

    {fd} is a second descriptor of the socket, after those that LISTEN_FDS counts: a server that takes both what it
    is told and what systemd would pass (gunicorn) would otherwise use and close one descriptor twice.
    """
    first = FIRST_FD + len(names)
    fields = {"worker": str(slot), "release": release, "fd": str(first)}
    fields |= {f"fd:{name}": str(number) for number, name in enumerate(names, first)}
    return [fill(word, fields) for word in split(template)]


def served(release: Release, *, template: bool = False) -> list[str]:
    """The argument list for `[worker] app`: deployer's runtime, on the release's own interpreter; or for the template
    that such workers are forked from."""
    return program(release.config.worker, release.environment, template=template)


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
