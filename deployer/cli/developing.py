"""Holds a watch: begins it, shows what comes of each save, does what is typed, and ends it.

The manager watches; this process is its holder, and the watch ends with it however that ends.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec

from deployer.cli import keys
from deployer.cli.down import await_end, hold
from deployer.cli.feed import Connection, Feed, Item, Typed
from deployer.cli.interrupt import Interrupted, raise_on_signals
from deployer.cli.logs import CATCH_UP_LINES, log_lines
from deployer.cli.saves import Saves, web_address
from deployer.cli.savescreen import SaveScreen
from deployer.cli.session import Session
from deployer.cli.up import start
from deployer.client.follow import FINISHED, Follower, past_events
from deployer.config.load import Loaded
from deployer.errors import DeployerError, Exit, UnavailableError
from deployer.releases.release import is_dev
from deployer.wire.schema import (
    Event,
    LogLine,
    Status,
    StopRequest,
    WatchAgain,
    WatchBack,
    WatchInfo,
    WatchRequest,
    WatchStop,
)

if TYPE_CHECKING:
    from deployer.cli.browser import Browser


class Quit(Exception):  # noqa: N818 - not an error: q was typed
    """The watch is to end."""


def develop(
    session: Session, loaded: Loaded, request: WatchRequest, *, browser: bool, all_workers: bool, port_hint: str | None
) -> int:
    """Until q, a signal, or the end of the watch. `port_hint`: for a program that binds a port of its own."""
    with ExitStack() as stack:
        pages = _open_pages(session, loaded, stack) if browser else None
        if pages is not None:
            request = msgspec.structs.replace(request, reload=pages[1])
        status, own = _start(session, loaded)
        one = own and not all_workers
        request = msgspec.structs.replace(request, own=own, workers=1 if one else None)
        began, after = time.time(), _newest_event(session)
        info = _begin(session, request)
        watching = Watching(session, info, status, own=own, pages=pages and pages[0], port_hint=port_hint)
        stack.callback(watching.screen.close)
        return watching.run(after, began)


class Watching:
    """One watch that was begun, until it ends."""

    def __init__(
        self,
        session: Session,
        info: WatchInfo,
        status: Status,
        *,
        own: bool,
        pages: Browser | None,
        port_hint: str | None,
    ) -> None:
        style = session.out.style
        self.session = session
        self.info = info
        self.own = own
        self.pages = pages
        self.prints = not (style.quiet or style.json)
        self.saves = Saves(
            info.id,
            session.out.glyphs,
            root=status.root,
            address=web_address(status.listen),
            path=info.path,
            prints=self.prints,
        )
        if port_hint is not None:
            self.saves.port_hint = port_hint
        self.screen = SaveScreen(session.out, self.saves)
        self.feed = Feed()
        self._ours = False  # an event of this watch has come: what was before it is over

    def run(self, after: int, began: float) -> int:
        """Show what comes after event `after`, and what is printed after `began` (seconds since the epoch)."""
        follower = Follower(self.session.client, after=after, waiting=self.feed.connection, patient=True)
        try:
            self.feed.events(follower)
            if self.prints:
                self.feed.logs(lambda since: log_lines(self.session, True, CATCH_UP_LINES, since=since), began)
            if sys.stdin is not None and self.feed.keys(sys.stdin.fileno()):
                self.session.out.note(keys.TEXT)
            for item in self.feed:
                self._take(item)
                if self.saves.ended is not None:
                    raise _ended(self.saves.ended)
        except Quit:
            return self._stop(Exit.OK)
        except Interrupted as interrupted:
            if self.session.out.live:
                self.session.out.tell("")  # after the ^C of the terminal
            return self._stop(interrupted.exit_code)
        raise AssertionError("a feed has no end")

    # Private.

    def _take(self, item: Item) -> None:
        if isinstance(item, Event):
            self._ours = self._ours or item.data.get("watch") == self.info.id
            if self._ours:
                self.screen.event(item)
                self._reload(item)
        elif isinstance(item, LogLine):
            self.screen.line(item)
        elif isinstance(item, Connection):
            self.screen.waiting(item.lost)
        else:
            self._typed(item)

    def _reload(self, event: Event) -> None:
        if self.pages is not None and event.event == FINISHED and event.data.get("outcome") == "promoted":
            self.pages.reload(str(event.data.get("release")))

    def _typed(self, typed: Typed) -> None:
        key = keys.meaning(typed.text)
        who = self.session.who
        try:
            if key == keys.QUIT:
                raise Quit
            if key == keys.AGAIN:
                self.session.client.watch_again(WatchAgain(who=who))
            elif key == keys.BACK:
                self.session.client.watch_back(WatchBack(who=who))
            elif key == keys.HELP:
                self.screen.say(keys.TEXT)
        except DeployerError as error:
            self.screen.error(error)

    def _stop(self, code: Exit) -> int:
        """End the watch, and what was started for it. A second Ctrl-C does not wait for that."""
        session = self.session
        self.screen.close()
        raise_on_signals()
        try:
            with ExitStack() as stack:
                processes = list(hold(session.client.status(), stack)) if self.own else []
                session.client.watch_stop(WatchStop(who=session.who))
                if self.own:
                    await_end(session, processes)
        except UnavailableError:  # it was killed just now: the next one sees that its holder has ended
            session.out.note("the supervisor does not answer; the watch ends with this command")
            return int(code)
        except Interrupted as again:
            session.out.tell("it goes on stopping without you: `deployer status`")
            again.told = True
            raise
        if self.own:
            session.out.note(f"stopped watching; {session.app} is down")
        else:
            self._say_what_serves()
        return int(code)

    def _say_what_serves(self) -> None:
        release = self.session.client.status().release
        self.session.out.note(f"stopped watching; {release or 'nothing'} serves on")
        if release is not None and is_dev(release):
            self.session.out.note("hint: deployer deploy")


def _open_pages(session: Session, loaded: Loaded, stack: ExitStack) -> tuple[Browser, str]:
    """What tells open pages of new releases, and its URL. Imported only here: it is a server."""
    module = import_module("deployer.cli.browser")
    pages: Browser = module.Browser(module.port_for(loaded.root))
    stack.callback(pages.close)
    url = pages.start()
    if loaded.config.worker.app is None:
        session.out.note(f"a page reloads itself with this in it: {module.script_tag(url)}")
    return pages, url


def _start(session: Session, loaded: Loaded) -> tuple[Status, bool]:
    try:
        return start(session, loaded)
    except Interrupted as interrupted:
        session.out.tell("the cluster may have been started: `deployer status`, `deployer down`")
        interrupted.told = True
        raise


def _begin(session: Session, request: WatchRequest) -> WatchInfo:
    """What was started for a watch that does not begin is not left behind."""
    try:
        return session.client.watch(request)
    except (DeployerError, Interrupted):
        if request.own:
            session.client.stop(StopRequest(who=session.who))
        raise


def _newest_event(session: Session) -> int:
    """The last one of the last rollout: few come after it that are older than what begins now."""
    for last in session.client.rollouts(limit=1, saves=True):
        if events := past_events(session.client, last.id):
            return events[-1].seq
    return 0


def _ended(why: str) -> DeployerError:
    return DeployerError(
        f"the watch ended: {why}", hint="deployer status", exit_code=Exit.UNAVAILABLE, reason="unavailable"
    )
