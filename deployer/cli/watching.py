"""From the answer to a command until the rollout's end: follow, show, conclude, exit code.

The rollout belongs to the manager. Whatever ends this viewer (Ctrl-C, a cancelled job, --timeout) leaves
it running, and the message says how to get back to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from time import monotonic

import msgspec

from deployer.cli import turns
from deployer.cli.interrupt import Interrupted
from deployer.cli.progress import Progress, progress_for
from deployer.cli.session import Session
from deployer.cli.verdict import conclude, exit_code
from deployer.cli.view import RolloutView
from deployer.client.follow import FINISHED, Follower, FollowTimeout, past_events
from deployer.errors import DeployerError, Exit
from deployer.units import format_duration
from deployer.wire.schema import Event, RolloutInfo

GOES_ON = "the rollout goes on: `deployer follow`, stop it with `deployer deploy --abort`"


def watch(
    session: Session,
    info: RolloutInfo,
    *,
    timeout: float | None = None,
    history: Sequence[Event] = (),
    aborting: bool = False,
    done: str | None = None,
    mine: bool = False,
) -> int:
    """Follow a rollout to its end and say how it went; `done` words the success. The rest is as of `follow`."""
    view = follow(session, info, timeout=timeout, history=history, mine=mine)
    conclude(view, session.out, session.app, aborting=aborting, done=done)
    return exit_code(view, aborting=aborting)


def follow(
    session: Session,
    info: RolloutInfo,
    *,
    timeout: float | None = None,
    history: Sequence[Event] = (),
    mine: bool = False,
) -> RolloutView:
    """Show a rollout until its end, whose last words are left to the caller.

    `timeout` counts from the start of the command, as its user's clock does. `history` was shown before
    or need not be: what comes after it is followed. `mine`: this command asked for the rollout; interrupted while it
    waits its turn, it takes it back.
    """
    out = session.out
    view = RolloutView(kind=info.kind, previous=info.previous, release=info.release)
    for event in history:
        view.apply(event)
    view.finished = None  # a held rollout ended once and goes on by the abort
    after = history[-1].seq if history else 0
    progress = progress_for(out, view, session.app)
    deadline = None if timeout is None else session.started + timeout
    try:
        with closing(progress):
            for event in _events(session, info, after, progress, deadline):
                view.apply(event)
                progress.show(event)
        if info.outcome is not None and view.finished is not None:  # what became of its old workers since then
            view.finished |= {"cut": info.cut and msgspec.to_builtins(info.cut), "draining": info.draining}
    except Interrupted as interrupted:
        left = mine and view.queued is not None and turns.leave(session, info.id)
        out.tell(turns.LEFT if left else GOES_ON)
        interrupted.told = True
        raise
    except FollowTimeout:
        raise timed_out(session) from None
    return view


def _events(
    session: Session, info: RolloutInfo, after: int, progress: Progress, deadline: float | None
) -> Iterable[Event]:
    if info.outcome is None or info.phase == "held":
        return Follower(session.client, rollout=info.id, after=after, deadline=deadline, waiting=progress.waiting)
    if info.outcome == "unchanged":
        return [_finished_event(info)]
    # Over already: its events may be too old to be kept, the row in the journal stays.
    events = past_events(session.client, info.id)
    ended = bool(events) and events[-1].event == FINISHED
    return events if ended else [*events, _finished_event(info)]


def timed_out(
    session: Session, what: str = "the rollout is not finished", goes_on: str = "the rollout"
) -> DeployerError:
    return DeployerError(
        f"{what} after {format_duration(monotonic() - session.started)}",
        cause=f"--timeout passed; {goes_on} goes on",
        hint="deployer follow",
        exit_code=Exit.TIMEOUT,
        reason="timeout",
    )


def _finished_event(info: RolloutInfo) -> Event:
    """The end of a rollout that was over before it could be followed (nothing to do)."""
    problem = info.problem
    data = {
        "outcome": info.outcome,
        "release": info.release,
        "serving": info.serving or info.release,
        "reason": info.reason,
        "exit_code": info.exit_code,
        "seconds": None if info.finished_at is None else round(info.finished_at - info.started_at, 3),
        "problem": problem and {"what": problem.what, "cause": problem.cause, "hint": problem.hint},
        "tail": info.tail,
        "warnings": info.warnings,
    }
    ts = info.finished_at or info.started_at
    return Event(seq=0, ts=ts, event=FINISHED, rollout=info.id, data=data)
