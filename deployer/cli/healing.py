"""`deployer deploy --watch`: a deploy that fails waits for its fix, from rollout to rollout until one is live.

The manager watches and deploys; this is its viewer. What fixes what is in the events: the rollout that a save began
names the first one that failed.
"""

from __future__ import annotations

from contextlib import closing
from time import monotonic

from deployer.cli.interrupt import Interrupted
from deployer.cli.lines import named_files, stamp, timestamped
from deployer.cli.output import clean
from deployer.cli.session import Session
from deployer.cli.verdict import conclude, exit_code
from deployer.cli.view import RolloutView
from deployer.cli.watching import follow, timed_out
from deployer.client.follow import Follower, FollowTimeout, flatten, past_events
from deployer.errors import Exit
from deployer.wire.schema import Event, RolloutInfo

BEGIN_LIMIT_S = 30.0
"""The manager begins the watch as the rollout fails; the next one does, if it was killed then."""

_LIVE = frozenset({Exit.OK, Exit.LIVE_WITH_WARNINGS})


def heal(session: Session, first: RolloutInfo, path: str, timeout: float | None) -> int:
    """Follow `first`, and every fix of it that is saved in `path`; the exit code of the last."""
    out = session.out
    fixes: Fixes | None = None
    info = first
    while True:
        view = follow(session, info, timeout=timeout, mine=info is first)
        reason = (view.finished or {}).get("reason")
        code = exit_code(view, aborting=False)
        overtaken = reason == "superseded" and info is not first  # by the fix of the fix
        if not overtaken:
            conclude(view, out, session.app, aborting=False)
            if code in _LIVE or reason in ("aborted", "superseded"):
                return code
        if fixes is None:
            fixes = Fixes(session, first.id, _first_event(session, first.id), timeout)
        number = _wait(fixes, view, path, quiet=overtaken)
        if number is None:
            return code
        info = session.client.rollout(number)


class Fixes:
    """The rollouts that fix the one that failed, of all events after `after`."""

    def __init__(self, session: Session, failed: int, after: int, timeout: float | None) -> None:
        self.session = session
        self.failed = failed
        self.after = after
        self.deadline = None if timeout is None else session.started + timeout
        self.watch: int | None = None  # once it has begun

    def next(self, watching: str | None) -> int | None:
        """The rollout that a save has begun; None when the watch is over, or never came to be. FollowTimeout.

        `watching` is said when it is so.
        """
        soon = monotonic() + BEGIN_LIMIT_S
        if self.watch is not None and watching:
            self.session.out.note(watching)
        while True:
            until = self.deadline if self.watch is not None else min(soon, self.deadline or soon)
            events = Follower(
                self.session.client, after=self.after, deadline=until, waiting=self._waiting, patient=True
            )
            try:
                with closing(iter(events)) as stream:  # a signal amid its end, left to the collector, would be lost
                    for event in stream:
                        self.after = event.seq
                        if event.event == "rollout.started" and event.data.get("fixes") == self.failed:
                            self._tell_files(event)
                            return event.rollout
                        if event.event == "watch.started" and event.data.get("kind") == "heal":
                            self._json(event)
                            if self.watch is None:
                                self.watch = event.data.get("watch")
                                if watching:
                                    self.session.out.note(watching)
                                break  # from now on only --timeout ends it
                        elif event.event in ("watch.fault", "watch.ended") and event.data.get("watch") == self.watch:
                            self._json(event)
                            self.session.out.note(timestamped(event, self.session.out.glyphs))
                            if event.event == "watch.ended":
                                return None
            except FollowTimeout:
                if until != soon:
                    raise
                self.session.out.note("no watch for a fix has begun")
                return None

    # Private.

    def _tell_files(self, event: Event) -> None:
        files = named_files(event.data.get("files") or [])
        self.session.out.note(clean(f"{stamp(event.ts, millis=False)} {files or 'a change'} was saved: a fix is tried"))

    def _json(self, event: Event) -> None:
        if self.session.out.style.json:
            self.session.out.result_json(flatten(event))

    def _waiting(self, lost: bool) -> None:
        text = "connection to the supervisor lost, waiting ..." if lost else "connected again"
        self.session.out.tell(text)


def _wait(fixes: Fixes, view: RolloutView, path: str, *, quiet: bool) -> int | None:
    session = fixes.session
    finished = view.finished or {}
    held = finished.get("outcome") == "held"
    leaves = "Ctrl-C leaves the deploy held" if held else "Ctrl-C ends this view of it"
    try:
        return fixes.next(None if quiet else clean(f"watching {path} for a fix; {leaves}"))
    except Interrupted as interrupted:
        stays = " and the deploy stays held" if held else ""
        serving = finished.get("serving") or "nothing"
        session.out.tell(clean(f"{serving} serves{stays}; {path} is watched on, and a fix goes live by itself"))
        session.out.tell("hint: deployer status, or to end it: deployer deploy --abort")
        interrupted.told = True
        raise
    except FollowTimeout:
        raise timed_out(session, "no fix is live", "the watch for one") from None


def _first_event(session: Session, rollout: int) -> int:
    """Of what came after it nothing may be missed: the watch may begin before the rollout has ended."""
    events = past_events(session.client, rollout)
    return events[0].seq if events else 0
