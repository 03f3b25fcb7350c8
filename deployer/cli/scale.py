"""`deployer scale N`: more workers or fewer."""

from __future__ import annotations

from typing import Annotated

import typer

from deployer.cli.session import Session
from deployer.cli.watching import watch
from deployer.wire.schema import ScaleRequest


def run(
    session: Session,
    count: Annotated[int, typer.Argument(metavar="N", min=1, max=512, help="How many workers.")],
) -> int:
    """Change the number of workers.

    The same number again is no error: there is nothing to do then.
    """
    info = session.client.scale(ScaleRequest(who=session.who, count=count))
    workers = f"{count} worker{'' if count == 1 else 's'}"
    done = f"{session.app} has {workers}" if info.outcome == "unchanged" else f"Scaled {session.app} to {workers}"
    return watch(session, info, done=done)
