"""`deployer follow`: back to a rollout after Ctrl-C, --detach or --timeout."""

from __future__ import annotations

from typing import Annotated

import typer

from deployer.cli.deploy import duration
from deployer.cli.session import Session
from deployer.cli.watching import watch
from deployer.client.follow import FINISHED, past_events
from deployer.wire.schema import Event, RolloutInfo


def run(
    session: Session,
    rollout: Annotated[
        int | None, typer.Argument(metavar="[ROLLOUT]", help="Its number; else the one that runs, or the last.")
    ] = None,
    timeout: Annotated[str | None, typer.Option(metavar="5m", help="Stop watching after this long.")] = None,
) -> int:
    """Watch a rollout that runs, or see how the last one went.

    Ends with the exit code that the command which started it would have ended with.
    """
    limit = duration(timeout)
    info = _find(session, rollout)
    if info is None:
        session.out.note("there has been no rollout yet")
        return 0
    return watch(session, info, timeout=limit, history=_before_abort(session, info))


def _before_abort(session: Session, info: RolloutInfo) -> list[Event]:
    """A held rollout that is being aborted has ended once: what came until then is not to be followed."""
    if info.outcome is not None:
        return []
    events = past_events(session.client, info.id)
    ends = [number for number, event in enumerate(events, 1) if _is_held(event)]
    return events[: ends[-1]] if ends else []


def _is_held(event: Event) -> bool:
    return event.event == FINISHED and event.data.get("outcome") == "held"


def _find(session: Session, rollout: int | None) -> RolloutInfo | None:
    if rollout is not None:
        return session.client.rollout(rollout)
    running = session.client.status().rollout
    if running is not None:
        return running
    return next(iter(session.client.rollouts(limit=1)), None)
