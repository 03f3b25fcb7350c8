"""When another rollout runs: the options that wait for it or take over, and leaving the queue by Ctrl-C."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deployer.cli.session import Session
from deployer.errors import BusyError, DeployerError, UsageError
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


def refuse_in_own_hook(session: Session, *, queue: bool, supersede: bool, hint: str) -> None:
    """A hook that waited for its own rollout, which waits for the hook, would do so until its timeout. BusyError."""
    stage, rollout = session.env.get("DEPLOYER_STAGE"), session.env.get("DEPLOYER_ROLLOUT")
    root = session.env.get("DEPLOYER_ROOT")
    if not (queue or supersede) or not (stage and rollout and root):
        return
    if os.path.realpath(root) != os.path.realpath(session.layout.root):
        return  # another cluster: its rollouts wait for nobody here
    running = session.client.status().rollout
    if running is None or str(running.id) != rollout:
        return  # the rollout is over, and left this process behind
    option = "--supersede" if supersede else "--queue"
    raise BusyError(
        f"{option} is refused in the {stage} hook of rollout {rollout}, which is running",
        cause="it would wait for the end of that rollout, and the rollout waits for its hook",
        hint=hint,
    )


def leave(session: Session, rollout: int) -> bool:
    """Take a rollout that waits out of the queue; False when it has begun meanwhile, or nobody answers."""
    try:
        session.client.abort(AbortRequest(who=session.who, rollout=rollout, waiting=True))
    except DeployerError:
        return False
    return True
