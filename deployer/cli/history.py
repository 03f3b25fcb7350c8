"""`deployer history`: who changed what, when, and how it ended."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from deployer.cli.lines import release_change
from deployer.cli.output import Output, table
from deployer.cli.session import Session
from deployer.cli.traffic import cut_words, still_draining
from deployer.units import format_duration
from deployer.wire.schema import RolloutInfo


def run(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those of `deployer watch`: one for each save.")
    ] = False,
) -> int:
    """List the rollouts, newest first."""
    out = session.out
    rollouts = session.client.rollouts(limit=limit, saves=everything)
    if out.style.json:
        out.result_json(rollouts)
        return 0
    head = ("ID", "WHEN", "KIND", "RELEASE", "OUTCOME", "EXIT", "TOOK", "BY", "WHY")
    rows = [_row(rollout, out) for rollout in rollouts]
    for line in table(head, rows, width=out.width if out.stdout.isatty() else None):
        out.result(line)
    for rollout in rollouts:
        if rollout.cut is not None:
            out.result(f"{rollout.id}: {cut_words(rollout.cut)}")
        if rollout.draining:
            out.result(f"{rollout.id}: {still_draining(rollout.draining)}")
    if not rows:
        out.note("no rollout yet: deployer deploy")
    return 0


def _row(rollout: RolloutInfo, out: Output) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(rollout.started_at))
    end = rollout.finished_at or time.time()
    outcome = rollout.outcome or rollout.phase
    reason = f" ({rollout.reason})" if rollout.reason else ""
    return (
        str(rollout.id),
        when,
        rollout.kind,
        release_change(rollout.previous, rollout.release, out.glyphs),
        f"{outcome}{reason}",
        out.glyphs.dash if rollout.exit_code is None else str(rollout.exit_code),
        format_duration(max(0.0, end - rollout.started_at)),
        rollout.who,
        rollout.message or "",
    )
