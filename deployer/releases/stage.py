"""`python -m deployer.releases.stage`: makes one release, or leaves nothing behind.

A process of its own because git and copying may hang, grow or have to be killed while the manager goes on. It reads a
StageRequest from stdin and writes JSON lines (`request.StageLine`); the exit status is 0 or that of the Problem.
What only some releases need (environments, builds) is imported where it is used: a deploy waits for every import.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deployer.config import environment, load
from deployer.config.model import Config
from deployer.errors import BuildError, ConfigError, DeployerError, DiskError, Exit, SourceError
from deployer.osutil.files import fsync_directory
from deployer.paths import Layout
from deployer.releases import envfiles, manifest, packaged, process, room, shared, tree
from deployer.releases.development import shaped
from deployer.releases.fetch import Fetched, fetch, separate
from deployer.releases.request import Again, Directory, Git, StageRequest, StageResult, decode_request
from deployer.units import format_size
from deployer.wire.schema import Changes, Problem

if TYPE_CHECKING:
    from deployer.releases.python import Environment

_FULL = (errno.ENOSPC, errno.EDQUOT)


def main() -> int:
    process.prepare_environment()
    process.die_with_parent()
    process.raise_on_stop()
    gc.freeze()  # what was imported stays: no collection need look at it again
    return perform(lambda: decode_request(sys.stdin.buffer.read()), Conditions(), of_manager=True)


class Conditions:
    """What a staging has to see to beside its own work: of a deploy, nothing."""

    def take(self, copy: Callable[[], Fetched]) -> Fetched:
        """Fill the release by `copy`, which begins anew when it is called again."""
        return copy()

    def accept(self, taken: Taken) -> None:
        """Raise DeployerError for a tree that cannot work."""


@dataclass(frozen=True)
class Taken:
    """A tree before anything is built in it."""

    layout: Layout
    name: str
    tree: Path
    previous: Path | None  # the release that it shares files with
    config: Config
    env: dict[str, str]
    environment: Environment | None
    development: bool


def perform(ask: Callable[[], StageRequest], conditions: Conditions, *, of_manager: bool = False) -> int:
    """Stage what is asked for, and write all there is to say of it to stdout; the exit status.

    `of_manager`: the request names the process that must be the parent of this one.
    """
    try:
        request = ask()
        if of_manager and not process.parent_is(request.parent):
            return Exit.TERMINATED
        line = Staging(request, conditions).run()
    except (DeployerError, msgspec.DecodeError, process.Cancelled) as error:
        return _fail(_problem(error))
    except Exception as error:
        import traceback

        traceback.print_exc()  # a bug of ours: stderr goes to the manager's own log
        return _fail(Problem(what=f"staging failed: {error!r}", exit=Exit.BUG, reason="bug"))
    _write(line)
    return Exit.OK


class Staging:
    """One release on its way from `.vN.partial` to `vN`."""

    def __init__(self, request: StageRequest, conditions: Conditions) -> None:
        development = request.development
        if development is not None:
            host = shaped(request.host_config, development)
            request = msgspec.structs.replace(request, host_config=host)
        self._request = request
        self._conditions = conditions
        self._durable = development is None  # the next save makes another
        self._layout = Layout(Path(request.root))
        self._partial = self._layout.partial(request.name)
        self._release = self._layout.release(request.name)
        self._started = time.monotonic()
        self._wanted: Environment | None = None
        self._named = False  # a build has given it its real name already

    def run(self) -> bytes:
        """The result's line, which the caller writes when all is on disk. Raises DeployerError, process.Cancelled;
        neither the partial nor the release is then there."""
        free = "unknown"
        try:
            self._layout.releases.mkdir(parents=True, exist_ok=True)
            free = _free(self._layout.releases)
            request = self._request
            room.check(request, self._layout)
            self._clear()
            result = self._complete(self._make())
            # Encoded before the commit: a result that cannot be told must not leave a release.
            line = _encode_result(result)
            if result.outcome == "staged" and not request.dry_run:
                self._commit(result.files)
            else:
                process.ignore_stop()
                tree.remove(self._partial)
            return line
        except OSError as error:
            self._undo()
            raise self._disk_error(error, free) from error
        except BaseException:
            self._undo()
            raise

    def _clear(self) -> None:
        """Make way for the partial. A whole release of this name is somebody's: it is not touched."""
        tree.abandon(self._layout, self._request.name)
        if os.path.lexists(self._release):
            raise SourceError(
                f"release {self._request.name} exists already",
                cause=f"{self._release} is there",
                hint="deploy again: the next release gets the next number",
            )
        tree.remove(self._partial)
        self._partial.mkdir(mode=0o755)

    def _complete(self, result: StageResult) -> StageResult:
        if self._request.dry_run:
            return self._looked_at(result)
        return self._build(result) if result.outcome == "staged" else result

    def _make(self) -> StageResult:
        request, directory = self._without_env_files(), Path(self._request.directory)
        fetched = self._conditions.take(self._copy(request))
        origin, summary = fetched.origin, fetched.summary
        config = self._config()
        env = environment.freeze(config, directory)
        if request.development is not None and request.development.reload is not None:
            env["DEPLOYER_RELOAD"] = request.development.reload
        wanted = self._wanted = self._environment(config)
        built = wanted is not None and not wanted.is_whole(self._layout.envs)
        separate(request, config, self._layout, self._partial, builds_environment=built)
        self._conditions.accept(self._taken(fetched, config, env))
        settings = _settings_digest(config, env, wanted.name if wanted else None)
        # What the app wrote into the live release is no reason for another one.
        same_tree = isinstance(request.source, Again) or summary.digest == request.live_digest
        unchanged = same_tree and request.live_settings in (None, settings)
        if built:
            unchanged = False  # somebody removed it: the live release's next worker would not start
            room.check_environment(request, self._layout)
        return StageResult(
            outcome="same" if unchanged and not request.force else "staged",
            name=request.name,
            source=_utf8(origin.description),
            tree_digest=summary.digest,
            settings_digest=settings,
            commit=origin.commit,
            subject=origin.subject,
            author=origin.author,
            ref=origin.ref,
            files=summary.files,
            bytes=summary.bytes,
            config=config,
            env=packaged.activate(env, self._partial, self._release),
            seconds=round(time.monotonic() - self._started, 3),
            environment=wanted.name if wanted is not None else None,
            warnings=[*fetched.warnings, *environment.readable_by_others(config, directory), *self._committed(config)],
        )

    def _copy(self, request: StageRequest) -> Callable[[], Fetched]:
        def copy() -> Fetched:
            if any(self._partial.iterdir()):
                self._clear()
            return fetch(request, self._layout, self._partial, _progress)

        return copy

    def _taken(self, fetched: Fetched, config: Config, env: dict[str, str]) -> Taken:
        return Taken(
            layout=self._layout,
            name=self._request.name,
            tree=self._partial,
            previous=fetched.previous,
            config=config,
            env=env,
            environment=self._wanted,
            development=self._request.development is not None,
        )

    def _environment(self, config: Config) -> Environment | None:
        if config.build.python == "none":
            return None
        from deployer.releases import python

        return python.plan(self._partial, config.build.python, self._layout.envs)

    def _build(self, result: StageResult) -> StageResult:
        """All that comes after the fetch, each in need of what stands before it; the manifest is the last file."""
        layout, config = self._layout, result.config
        unindexed = None
        if config.build.run:
            from deployer.releases import again

            unindexed = again.unindexed(self._partial)
        never_live = self._request.live_digest is None
        linked = shared.link(config, self._partial, layout.shared, _progress, never_live=never_live)
        warnings = [_utf8(text) for text in linked]
        for text in warnings:
            _progress(f"warning: {text}")
        result = msgspec.structs.replace(result, warnings=[*result.warnings, *warnings])
        if config.build.run or self._wanted is not None:
            from deployer.releases.build import Build

            build = Build(result.name, layout, config, env=result.env, environment=self._wanted, tell=_progress)
            self._named = build.run()
        manifest.write(result, self._wanted, self._release if self._named else self._partial, unindexed)
        return msgspec.structs.replace(result, seconds=round(time.monotonic() - self._started, 3))

    def _without_env_files(self) -> StageRequest:
        """The request, with a source that leaves out what is secret."""
        request, base = self._request, Path(self._request.directory)
        if not isinstance(request.source, Directory):
            return request
        config, path = request.host_config, base / os.path.expanduser(request.source.path) / "deployer.toml"
        with contextlib.suppress(ConfigError):  # told when its copy is read
            config = load.overlay(config, path)
        root, shared = self._layout.root, config.release.shared
        source = envfiles.leave_out(request.source, config, base, root, _progress, shared=shared)
        return msgspec.structs.replace(request, source=source)

    def _committed(self, config: Config) -> list[str]:
        source, base = self._request.source, Path(self._request.directory)
        return envfiles.committed(config, base, source.url, self._partial) if isinstance(source, Git) else []

    def _looked_at(self, result: StageResult) -> StageResult:
        """A dry run: what differs from the live release, and no more."""
        live = self._request.room and self._request.room.previous
        if isinstance(self._request.source, Again):
            return msgspec.structs.replace(result, files_changed=Changes())
        from deployer.releases.sourcediff import source_changes

        changes = source_changes(self._layout.release(live) if live else None, self._release, self._partial)
        return msgspec.structs.replace(result, files_changed=changes)

    def _config(self) -> Config:
        """The host's configuration, overlaid by the release's own; errors name the file, not its temporary place."""
        request, path = self._request, self._partial / "deployer.toml"
        try:
            if isinstance(request.source, Again):
                from deployer.releases import again

                return again.config(request.source, request.host_config, Path(request.directory), self._partial)
            config = load.overlay(request.host_config, path)
            return shaped(config, request.development) if request.development is not None else config
        except ConfigError as error:
            told = f"deployer.toml of {self._request.name}"
            error.what = error.what.replace(str(path), told)
            error.cause = error.cause and error.cause.replace(str(path), told)
            raise

    def _commit(self, files: int) -> None:
        """Bring it to the disk, then give it its name: the point from which a stop signal comes too late."""
        if self._durable:
            _progress("writing to disk")
            if self._named:
                tree.sync(self._release, tree.FSYNC_FILES + 1)  # nobody counted what the build made
            else:
                tree.sync(self._partial, files)
        process.ignore_stop()
        if not self._named:
            os.rename(self._partial, self._release)
        try:
            if self._named:
                tree.finish(self._layout, self._request.name)
            elif self._durable:
                fsync_directory(self._layout.releases)
        except OSError:
            tree.remove(self._release)
            raise

    def _undo(self) -> None:
        process.ignore_stop()
        try:
            tree.remove(self._partial)
            tree.abandon(self._layout, self._request.name)
        except OSError as error:
            print(f"cannot remove {self._partial}: {error}", file=sys.stderr)  # the next staging tries again

    def _disk_error(self, error: OSError, free: str) -> DiskError:
        serves = "the old release serves" if self._request.live_digest else "nothing was replaced"
        name, root = self._request.name, self._layout.root
        if error.errno in _FULL:
            return DiskError(
                f"the disk is full: release {name} was removed, {serves}",
                cause=f"{error.strerror}; before staging {free} were free in {root}",
                hint=f"make room there, then deploy again: df -h {root}",
            )
        where = f" ({error.filename})" if error.filename else ""
        return DiskError(
            f"cannot write release {name} in {root}: it was removed, {serves}",
            cause=f"{error.strerror or error}{where}",
            hint=f"ls -ld {root}",
        )


def _free(path: Path) -> str:
    found = os.statvfs(path)
    size = format_size(found.f_bavail * found.f_frsize)
    return f"{size} and {found.f_favail} inodes" if found.f_files else size


def _settings_digest(config: Config, env: dict[str, str], wanted: str | None) -> str:
    """What a worker runs with beside its tree. [rollout], [source] and the host's sections are not part of it: a
    change there needs no new workers."""
    built = [config.build.run, sorted(config.release.shared), wanted]
    parts: list[Any] = [config.worker, config.health, sorted(env.items()), built]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _encode_result(result: StageResult) -> bytes:
    return msgspec.json.encode({"result": result})


def _problem(error: BaseException) -> Problem:
    if isinstance(error, DeployerError):
        return Problem(
            what=_utf8(error.what),
            cause=error.cause and _utf8(error.cause),
            hint=error.hint and _utf8(error.hint),
            exit=error.exit_code,
            reason=error.reason,
            tail=[_utf8(line) for line in error.tail] if isinstance(error, BuildError) else [],
        )
    if isinstance(error, process.Cancelled):
        return Problem(what="staging was stopped", cause=str(error), exit=Exit.TERMINATED, reason="aborted")
    return Problem(what="this is no staging request", cause=str(error), exit=Exit.USAGE, reason="usage")


def _fail(problem: Problem) -> int:
    try:
        _write(msgspec.json.encode({"error": problem}))
    except BrokenPipeError:
        pass  # nobody listens any more; the exit status still tells
    return problem.exit


def _progress(text: str) -> None:
    _write(msgspec.json.encode({"progress": _utf8(text)}))


def _write(line: bytes) -> None:
    """One write a line, past any buffer: a line is never cut by an exit."""
    rest = memoryview(line + b"\n")
    while rest:
        rest = rest[os.write(1, rest) :]


def _utf8(text: str) -> str:
    """JSON is UTF-8; file names need not be."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # all is on the disk: taking the interpreter apart would take 10 ms of every deploy
