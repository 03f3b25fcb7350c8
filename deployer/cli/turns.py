"""When another rollout runs: the options that wait for it or take over, and leaving the queue by Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from deployer.cli.session import Session
from deployer.errors import DeployerError, UsageError
from deployer.wire.schema import AbortRequest

Queue = Annotated[bool, typer.Option("--queue", help="Wait for the rollout that runs, first come first served.")]
Supersede = Annotated[
    bool, typer.Option("--supersede", help="Abort the rollout that runs, and those that wait; then begin.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]

LEFT = "it had not begun: it was taken out of the queue, and nothing was changed"


def check(*, queue: bool, supersede: bool) -> None:
    if queue and supersede:
        raise UsageError("--queue waits for what runs, --supersede aborts it: give one", hint="deployer deploy --help")


def leave(session: Session, rollout: int) -> bool:
    """Take a rollout that waits out of the queue; False when it has begun meanwhile, or nobody answers."""
    try:
        session.client.abort(AbortRequest(who=session.who, rollout=rollout, waiting=True))
    except DeployerError:
        return False
    return True
