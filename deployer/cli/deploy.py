"""`deployer deploy`: a new release, from the configured source or the one given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployer.cli import plan, turns
from deployer.cli.healing import heal
from deployer.cli.session import Session
from deployer.cli.source import Source, classify
from deployer.cli.turns import DryRun, Queue, Supersede
from deployer.cli.watching import watch
from deployer.client.follow import past_events
from deployer.config.load import load
from deployer.errors import UsageError
from deployer.units import parse_duration
from deployer.wire.schema import AbortRequest, DeployRequest, RolloutInfo


def run(
    session: Session,
    source: Annotated[
        str | None,
        typer.Argument(help="A directory, git repository, archive (path or URL), or NAME==VERSION; else [source]."),
    ] = None,
    path: Annotated[Path | None, typer.Option(metavar="DIR", help="Deploy this directory.")] = None,
    git: Annotated[str | None, typer.Option(metavar="URL", help="Deploy from this repository.")] = None,
    ref: Annotated[str | None, typer.Option(metavar="REF", help="Branch, tag or commit.")] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="DIGEST", help="What the archive's bytes must have.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Deploy even what is live already.")] = False,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Why, for the history.")] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="5m", help="Stop watching after this long; the rollout goes on.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and do not watch.")] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Stop the rollout that runs; put all back.")] = False,
    queue: Queue = False,
    supersede: Supersede = False,
    env_only: Annotated[
        bool, typer.Option("--env-only", help="The live release again, with env and env_file read anew.")
    ] = False,
    dry_run: DryRun = False,
    wait_for_fix: Annotated[
        bool, typer.Option("--watch", help="If it fails, hold it and watch the directory for a fix, which is deployed.")
    ] = False,
) -> int:
    """Put a new release live, one worker at a time; go back if it fails.

    The first replaced worker is the canary: if it crashes, is not ready in time or fails its checks, every
    slot goes back to the release before. Ctrl-C only stops watching; while the deploy waits its turn (--queue) it
    takes it out of the queue.
    """
    limit = duration(timeout)
    turns.check(queue=queue, supersede=supersede)
    if wait_for_fix:
        _refuse_beside_watch({"--detach": detach, "--dry-run": dry_run, "--abort": abort, "--env-only": env_only})
    if abort:
        if any((path, git, ref, force, detach, queue, supersede, env_only, dry_run)) or not _is_rollout(source):
            cause = "it takes no more than the number of a rollout that waits"
            raise UsageError("--abort stops what runs", cause=cause, hint="deployer deploy --abort")
        return _abort(session, limit) if source is None else _take_out(session, int(source))
    chosen = classify(source, path, git, ref, sha256)
    if env_only and chosen != Source():
        raise UsageError(
            "--env-only deploys what is live already: it takes no source", hint="deployer deploy --env-only"
        )
    watched = _watched(session, chosen) if wait_for_fix else None
    request = DeployRequest(
        who=session.who,
        path=chosen.path,
        git=chosen.git,
        ref=chosen.ref,
        artifact=chosen.artifact,
        sha256=chosen.sha256,
        package=chosen.package,
        force=force,
        message=message,
        env_only=env_only,
        queue=queue,
        supersede=supersede,
        watch=wait_for_fix,
    )
    if dry_run:
        return plan.show(session, session.client.plan_deploy(request))
    turns.refuse_in_own_hook(
        session, queue=queue and not detach, supersede=supersede, hint="deployer deploy --queue --detach"
    )
    info = session.client.deploy(request)
    if watched is not None:
        return heal(session, info, watched, limit)
    return detached(session, info) if detach else watch(session, info, timeout=limit, mine=True)


def duration(text: str | None) -> float | None:
    """Seconds of an option's "5m"."""
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}", hint="deployer deploy --timeout 5m") from error


def _refuse_beside_watch(others: dict[str, bool]) -> None:
    for option, given in others.items():
        if given:
            cause = "--watch stays and waits for a fix if the deploy fails"
            raise UsageError(f"--watch and {option} exclude each other", cause=cause, hint="deployer deploy --help")


def _watched(session: Session, source: Source) -> str:
    """The directory in which a fix would be saved; UsageError for what is none."""
    if source.path is not None:
        return source.path
    directory = load(session.file).source_dir if source == Source() else None
    if directory is None:
        cause = "what comes from a repository, an archive or an index is not where it is edited"
        raise UsageError("--watch needs a directory", cause=cause, hint="deployer deploy --watch --path .")
    return str(directory)


def detached(session: Session, info: RolloutInfo) -> int:
    """Say how to get back to what was started."""
    if session.out.style.json:
        session.out.result_json(info)
    elif session.out.style.quiet:
        session.out.result(str(info.id))
    else:
        word = "waits its turn" if info.place else "started"
        session.out.result(f"Rollout {info.id} {word}. Watch it: deployer follow {info.id}")
    return 0


def _is_rollout(source: str | None) -> bool:
    return source is None or source.isdecimal()


def _take_out(session: Session, number: int) -> int:
    """One that waits, by its number: `deployer status` shows it."""
    info = session.client.abort(AbortRequest(who=session.who, rollout=number, waiting=True))
    if session.out.style.json:
        session.out.result_json(info)
    else:
        session.out.result(f"Rollout {number} was taken out of the queue.")
    return 0


def _abort(session: Session, timeout: float | None) -> int:
    running = session.client.status().rollout
    history = past_events(session.client, running.id) if running is not None else []
    info = session.client.abort(AbortRequest(who=session.who))
    if running is not None and running.id != info.id:
        history = []
    return watch(session, info, timeout=timeout, history=history, aborting=True)
