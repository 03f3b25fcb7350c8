"""`deployer restart`: new workers of the same release."""

from __future__ import annotations

from typing import Annotated

import typer

from deployer.cli.session import Session
from deployer.cli.watching import watch
from deployer.wire.schema import RestartRequest


def run(
    session: Session,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Why, for the history.")] = None,
) -> int:
    """Replace every worker by a new one of the same release.

    One at a time, and no request is lost. Each release keeps its variables: new ones need `deployer deploy --env-only`.
    """
    return watch(session, session.client.restart(RestartRequest(who=session.who, message=message)))
