"""`deployer check`: everything that can be known before a deploy, as lines of ok and not ok."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deployer.cli.output import clean
from deployer.cli.session import Session
from deployer.cli.source import is_remote
from deployer.config.command import split
from deployer.config.load import Loaded, load
from deployer.errors import DeployerError, Exit, UsageError
from deployer.paths import Layout
from deployer.sockets.address import Address, parse
from deployer.sockets.bind import bind
from deployer.units import format_size
from deployer.wire.schema import Status

LOW_DISK_BYTES = 200 * 1024 * 1024
"""Less than this and a release of usual size may not fit."""


@dataclass(frozen=True)
class Finding:
    """`state` is ok, warn or bad; `hint` is what to do about it."""

    state: str
    subject: str
    text: str
    hint: str | None = None


@dataclass(frozen=True)
class Import(Finding):
    """What `--preload` found."""

    interpreter: str | None = None
    output: tuple[str, ...] = ()  # the application's own traceback


def run(
    session: Session,
    preload: Annotated[
        bool, typer.Option("--preload", help="Import the application of [worker] app, as a worker would.")
    ] = False,
) -> int:
    """Look whether the configuration and this machine are fit for a deploy."""
    loaded = load(session.file)
    if preload and loaded.config.worker.app is None:
        cause = f"{loaded.path.name} has a `command`, which is not ours to import"
        raise UsageError("--preload imports the application of [worker] app", cause=cause, hint="deployer check")
    findings = list(_findings(session, loaded))
    findings += [_import(session, loaded)] if preload else []
    bad = [finding for finding in findings if finding.state == "bad"]
    if session.out.style.json:
        session.out.result_json(
            {"ok": not bad, "checks": [finding.__dict__ for finding in findings], "config": str(loaded.path)}
        )
    else:
        _print(session, findings)
    return int(Exit.CONFIG) if bad else 0


def _print(session: Session, findings: list[Finding]) -> None:
    out = session.out
    signs = {
        "ok": (out.glyphs.good, "good", "ok"),
        "warn": (out.glyphs.warn, "warn", "warning"),
        "bad": (out.glyphs.bad, "bad", "problem"),
    }
    for finding in findings:
        sign, colour, word = signs[finding.state]
        if out.style.quiet and finding.state == "ok":
            continue
        sign = out.paint(sign, colour, stream=out.stdout)
        out.result(f"{sign} {word.ljust(7)} {finding.subject.ljust(8)} {clean(finding.text)}")
        if finding.hint:
            out.result(f"{' ' * 19}hint: {clean(finding.hint)}")
        for line in finding.output if isinstance(finding, Import) else ():
            out.result(f"  {out.glyphs.bar} {clean(line)}".rstrip())


def _findings(session: Session, loaded: Loaded) -> Iterator[Finding]:
    yield Finding("ok", "config", f"{loaded.path} ({loaded.config.name})")
    status = _status(session)
    app = loaded.config.worker.app
    yield _command(loaded) if app is None else Finding("ok", "app", f"{app}, served by deployer's own runtime")
    for listen in loaded.config.listen:
        yield _address(parse(listen.address, loaded.directory), listen.address, status)
    yield _source(loaded)
    yield _root(loaded.root)
    yield _disk(loaded.root)
    if status is not None:
        yield Finding("ok", "cluster", f"runs, serves {status.release or 'nothing yet'}")


def _import(session: Session, loaded: Loaded) -> Import:
    if loaded.source_dir is None or not loaded.source_dir.is_dir():
        return Import("warn", "preload", "there is no directory of the source here to import it from")
    from deployer.cli.preload import preload  # all that a build needs comes with it

    try:
        found = preload(loaded, session.env)
    except DeployerError as error:
        return Import("bad", "preload", error.what, error.hint)
    return Import("ok" if found.ok else "bad", "preload", found.text, found.hint, found.interpreter, found.output)


def _status(session: Session) -> Status | None:
    try:
        return session.client.status()
    except DeployerError:
        return None  # not running, or not ours: `status` says which


def _command(loaded: Loaded) -> Finding:
    """The program of [worker] command, sought where the worker will seek it."""
    worker = loaded.config.worker
    program = split(worker.command or "")[0]
    if "{" in program:
        return Finding("ok", "command", f"{program} is known when a worker starts")
    path = worker.env.get("PATH", os.environ.get("PATH", os.defpath))
    if "/" not in program:
        found = shutil.which(program, path=path)
        if found:
            return Finding("ok", "command", f"{program} is {found}")
        hint = f"install it, or write its path in `command` of {loaded.path.name}"
        return Finding("bad", "command", f"{program}: no such program on PATH", hint)
    if loaded.source_dir is None and not program.startswith("/"):
        return Finding("ok", "command", f"{program} is looked for in each release")
    file = (loaded.source_dir or loaded.directory) / program
    if not file.exists():
        return Finding("bad", "command", f"{file}: no such program", "correct `command` in [worker]")
    if not os.access(file, os.X_OK):
        return Finding("bad", "command", f"{file} is not executable", f"chmod +x {file}")
    return Finding("ok", "command", str(file))


def _address(address: Address, written: str, status: Status | None) -> Finding:
    if status is not None and str(address) in status.listen:
        return Finding("ok", "listen", f"{address} is served by this cluster")
    try:
        sock = bind(address, 1)
    except DeployerError as error:
        return Finding(
            "bad", "listen", error.what if error.cause is None else f"{error.what}: {error.cause}", error.hint
        )
    except OSError as error:
        return Finding("bad", "listen", f"{written}: {error.strerror or error}", "correct `address` in [[listen]]")
    sock.close()
    if address.kind == "unix":
        Path(address.path).unlink(missing_ok=True)
    return Finding("ok", "listen", f"{address} is free")


def _source(loaded: Loaded) -> Finding:
    source = loaded.config.source
    if source.git is not None:
        ref = f" at {source.ref}" if source.ref else ""
        local = loaded.directory / Path(source.git).expanduser()
        if is_remote(source.git) or local.exists():
            return Finding("ok", "source", f"git {source.git}{ref} (looked at when deploying)")
        return Finding("bad", "source", f"{local}: no such repository", "correct `git` in [source]")
    if source.artifact is not None:
        file = loaded.directory / Path(source.artifact).expanduser()
        if "://" in source.artifact or file.is_file():
            return Finding("ok", "source", f"artifact {source.artifact} (looked at when deploying)")
        return Finding("bad", "source", f"{file}: no such file", "correct `artifact` in [source]")
    if source.package is not None:
        return Finding("ok", "source", f"package {source.package} (looked at when deploying)")
    assert loaded.source_dir is not None
    if loaded.source_dir.is_dir():
        return Finding("ok", "source", str(loaded.source_dir))
    return Finding("bad", "source", f"{loaded.source_dir}: no such directory", "correct `path` in [source]")


def _root(root: Path) -> Finding:
    """ROOT, or the nearest directory above it that exists, has to be writable."""
    place = _existing(root)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("bad", "root", f"{place} is not writable for you", f"ls -ld {place}")
    length = len(os.fsencode(Layout(root).control_socket))
    return Finding("ok", "root", f"{root} (control socket: {length} of 107 bytes)")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(_existing(root)).free
    text = f"{format_size(free)} free for {root}"
    if free < LOW_DISK_BYTES:
        return Finding("warn", "disk", text, "deployer releases")
    return Finding("ok", "disk", text)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
