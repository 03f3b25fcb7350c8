"""`deployer watch`: every save goes live as a deploy would, or the old code serves on and the error is shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deployer.cli import adhoc, watchwords
from deployer.cli.developing import develop
from deployer.cli.session import Session
from deployer.config.load import CONFIG_VARIABLE, Loaded, find, load
from deployer.errors import ConfigError, UsageError
from deployer.wire.schema import WatchRequest

POLL = "1s"
PORT_HINT = 'deployer watch --listen tcp://127.0.0.1:8000 --exec "...", and serve on that socket: {fd}, or LISTEN_FDS'

Globs = list[str] | None


def run(
    session: Session,
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="What to watch; else the source.")] = None,
    watch: Annotated[Globs, typer.Option(metavar="GLOB", help="Only these files or directories.")] = None,
    ignore: Annotated[Globs, typer.Option("--ignore", "-i", metavar="GLOB", help="Not these; beats --watch.")] = None,
    ext: Annotated[str | None, typer.Option("--ext", "-e", metavar="py,html", help="Only files that end so.")] = None,
    execute: Annotated[
        str | None, typer.Option("--exec", "-x", metavar="CMD", help="Run this, without a deployer.toml.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The socket that --exec is given: tcp://127.0.0.1:8000.")
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--delay", "-d", metavar="20ms", help="How long all must be quiet after a save.")
    ] = None,
    signal: Annotated[
        str | None, typer.Option("--signal", "-s", metavar="SIGNAL", help="What tells old workers to stop.")
    ] = None,
    poll: Annotated[bool, typer.Option("--poll", help="Look again and again: network and container mounts.")] = False,
    poll_interval: Annotated[str | None, typer.Option(metavar="1s", help="How often; means --poll.")] = None,
    workers: Annotated[
        bool, typer.Option("--workers", help="As many as are configured; else one, if the cluster starts here.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Reload open pages when a save is live.")] = False,
) -> int:
    """Put every save live as a deploy would; what is broken stays out.

    Starts the cluster if none runs, and stops it again in the end. Broken code is shown with file and line while the
    old code serves on. Type rs + Enter to deploy again, r + Enter to go back to the save before, q + Enter to quit.
    """
    directory = None if path is None else _directory(path)
    request = WatchRequest(
        who=session.who,
        holder=os.getpid(),
        path=None if directory is None or execute is not None else str(directory),
        paths=watchwords.globs(watch, "--watch"),
        ignore=watchwords.globs(ignore, "--ignore"),
        extensions=watchwords.extensions(ext),
        settle=watchwords.duration(delay, "--delay"),
        poll=watchwords.duration(poll_interval, "--poll-interval") or (POLL if poll else None),
    )
    loaded = _load(session, directory, execute, listen)
    request = msgspec.structs.replace(request, signal=watchwords.stop_signal(signal, loaded.config))
    hint = None if execute is None else PORT_HINT
    return develop(session, loaded, request, browser=browser, all_workers=workers, port_hint=hint)


def _load(session: Session, directory: Path | None, execute: str | None, listen: str | None) -> Loaded:
    if execute is not None:
        if session.config is not None:
            cause = "--exec runs a program without a deployer.toml, --config names one"
            raise UsageError("--exec and --config exclude each other", cause=cause, hint="deployer watch --help")
        session.config = adhoc.write(directory or Path.cwd(), execute, listen)
        return load(session.file)
    if listen is not None:
        cause = "without it [[listen]] of deployer.toml says where to listen"
        raise UsageError("--listen goes with --exec", cause=cause, hint="deployer watch --help")
    if session.config is None:
        session.config = _find(directory, session.env.get(CONFIG_VARIABLE))
    return load(session.file)


def _find(directory: Path | None, named: str | None) -> Path:
    """The file that a deploy from here would use; else the one of the directory that is named."""
    try:
        return find(None, Path.cwd())
    except ConfigError as error:
        if named:
            raise
        if directory is None:
            hint = 'deployer init, or: deployer watch --exec "python app.py"'
            raise ConfigError(error.what, cause=error.cause, hint=hint) from None
    return find(None, directory)


def _directory(path: Path) -> Path:
    path = path.expanduser().absolute()
    if not path.is_dir():
        what = "not a directory" if path.exists() else "no such directory"
        raise UsageError(f"{path}: {what}", hint="deployer watch .")
    return path.resolve()
