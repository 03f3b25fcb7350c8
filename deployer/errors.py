"""What can go wrong, classed by what the caller does about it, and the exit codes that tell so."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command: each says what serves now (DESIGN.md, "Command line")."""

    OK = 0
    BUG = 1
    USAGE = 2
    HALTED = 3
    REVERTED = 4
    HELD = 5
    NOT_STARTED = 6
    PARTIAL = 7
    TIMEOUT = 8
    LIVE_WITH_WARNINGS = 9
    UNAVAILABLE = 69
    BUSY = 75
    DENIED = 77
    CONFIG = 78
    INTERRUPTED = 130
    TERMINATED = 143


class DeployerError(Exception):
    """Something a person must read: what happened, why, and one command to type next.

    `reason` is the stable machine word (`source`, `disk`, `config`, ...) that `--json` prints.
    """

    exit_code: Exit = Exit.BUG
    reason: str = "error"

    def __init__(
        self,
        what: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        exit_code: Exit | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code
        if reason is not None:
            self.reason = reason


class UsageError(DeployerError):
    """The command's words are wrong; nothing was tried."""

    exit_code = Exit.USAGE
    reason = "usage"


class ConfigError(DeployerError):
    """deployer.toml cannot be used; `what` starts with file:line where it is known."""

    exit_code = Exit.CONFIG
    reason = "config"


class SourceError(DeployerError):
    """The source of a release cannot be had (unknown ref, unreachable remote, dirty tree)."""

    exit_code = Exit.NOT_STARTED
    reason = "source"


class BuildError(DeployerError):
    """A release cannot be made runnable: its Python environment or a command of [build] failed.

    `tail` is what the failed command printed last.
    """

    exit_code = Exit.NOT_STARTED
    reason = "build"
    tail: tuple[str, ...] = ()


class DiskError(DeployerError):
    """No room, or the disk refused; the half-made release was removed."""

    exit_code = Exit.NOT_STARTED
    reason = "disk"


class BusyError(DeployerError):
    """Another rollout runs."""

    exit_code = Exit.BUSY
    reason = "busy"


class UnavailableError(DeployerError):
    """No supervisor answers here."""

    exit_code = Exit.UNAVAILABLE
    reason = "unavailable"


class DeniedError(DeployerError):
    """The system does not allow it."""

    exit_code = Exit.DENIED
    reason = "denied"
