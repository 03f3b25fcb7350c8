"""`deployer rollback`: back to the release before, or to the one named."""

from __future__ import annotations

from typing import Annotated

import typer

from deployer.cli import plan, turns
from deployer.cli.session import Session
from deployer.cli.turns import DryRun, Queue, Supersede
from deployer.cli.watching import watch
from deployer.errors import UsageError
from deployer.wire.schema import RollbackRequest


def run(
    session: Session,
    release: Annotated[str | None, typer.Argument(metavar="[vN]", help="Else the last good one.")] = None,
    to_commit: Annotated[
        str | None, typer.Option("--to-commit", metavar="SHA", help="The newest good release of this commit.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "--reason", "-m", help="Why, for the history.")] = None,
    queue: Queue = False,
    supersede: Supersede = False,
    dry_run: DryRun = False,
) -> int:
    """Go back to an earlier release.

    Code, environment and configuration go back together; the rules of a deploy hold: one worker at a time.
    Nothing is fetched or built. Without a name it is the last one that was live and good and differs from this one.
    """
    if release is not None and to_commit is not None:
        raise UsageError(f"{release} and --to-commit both name a release", hint=f"deployer rollback {release}")
    turns.check(queue=queue, supersede=supersede)
    request = RollbackRequest(
        who=session.who, release=release, commit=to_commit, message=message, queue=queue, supersede=supersede
    )
    if dry_run:
        return plan.show(session, session.client.plan_rollback(request))
    turns.refuse_in_own_hook(
        session, queue=queue, supersede=supersede, hint="let an after_canary hook exit 1: that puts all back"
    )
    return watch(session, session.client.rollback(request), mine=True)
