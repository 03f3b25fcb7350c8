"""`deployer events`: the record of what happened, and what happens now."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Annotated

import typer

from deployer.cli.lines import timestamped
from deployer.cli.session import Session
from deployer.client.follow import Follower, decode_event, flatten
from deployer.wire.schema import Event


def run(
    session: Session,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only what came after this number.")] = 0,
    rollout: Annotated[int | None, typer.Option(metavar="ID", help="Only those of this rollout.")] = None,
) -> int:
    """Show what happened, event by event."""
    out = session.out
    for event in _events(session, follow, after, rollout):
        if out.style.json:
            out.result_json(flatten(event))
        else:
            number = f"#{event.rollout}" if event.rollout is not None else out.glyphs.dash
            out.result(f"{event.seq:>6} {number:>5} {timestamped(event, out.glyphs)}")
    return 0


def _events(session: Session, follow: bool, after: int, rollout: int | None) -> Iterable[Event]:
    if follow:
        return Follower(session.client, after=after, rollout=rollout)
    with closing(session.client.events(after=after, rollout=rollout)) as stream:
        lines = iter(lambda: stream.readline(session.client.timeout), None)
        return [decode_event(line) for line in lines if line.strip()]
