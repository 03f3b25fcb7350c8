"""A watch as its events tell it, one calm line a save. Pure: events and log lines in, what there is to say out.

A save is a rollout that the watch began. One that a newer save took the place of is passed over in silence. What a
release prints before it is live is held back until it is: if it never is, its last lines go with the failure, and a
traceback is not shown twice.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployer.cli.lines import describe, named_files, stamp, timestamped
from deployer.cli.output import Glyphs, clean
from deployer.errors import DeployerError
from deployer.releases.release import is_dev
from deployer.units import format_duration
from deployer.wire.schema import Event, LogLine

HELD_LINES = 1000
"""Of one release that is not live yet."""

_PORT_IN_USE = re.compile(r"EADDRINUSE|Address already in use|Only one usage of each socket address", re.IGNORECASE)
_PYTHON_FRAME = r'File "(?:{path}/)?([^/"<][^"]*)", line (\d+)'
_PACKAGES = "site-packages/"  # of an environment that lies in the source
_ANY_PLACE = r"{path}/([^\s:()\"']+):(\d+)"


@dataclass(frozen=True)
class Told:
    """Something to say: a line, and of a failure what was printed last, the problem, and what serves meanwhile."""

    text: str
    colour: str | None = None
    good: bool = False  # a result; else it is said beside the results
    tail: Sequence[str] = ()
    problem: DeployerError | None = None
    after: str | None = None


@dataclass
class Save:
    """A rollout of the watch that runs."""

    kind: str
    release: str | None
    previous: str | None
    files: list[str]
    since: float  # of the last change, where there was one; else of the rollout's start
    promoting: float | None = None
    failure: dict[str, Any] | None = None


@dataclass
class Saves:
    """Feed it events with `apply` and log lines with `line`. `busy` is what is under way."""

    watch: int
    glyphs: Glyphs
    root: str  # ROOT: releases lie below it, and an editor wants the file that they were copied from
    address: str = ""
    prints: bool = True  # what workers print is shown as it comes
    port_hint: str = "serve on the socket that is passed down: {fd} in `command`, or LISTEN_FDS"
    path: str = ""
    directories: int = 0
    mode: str | None = None
    live: str | None = None
    ended: str | None = None  # why, once the watch is over
    begun: bool = False  # the first rollout of the watch has ended
    crashed: str | None = None  # the release that died while it was live
    running: dict[int, Save] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)  # dev releases that have been live
    held: dict[str, deque[LogLine]] = field(default_factory=dict)
    counts: dict[tuple[str, ...], int] = field(default_factory=dict)  # of files in a save, where not all are named

    @property
    def busy(self) -> str | None:
        """What is under way."""
        for save in self.running.values():
            return f"{save.release or 'a save'} starting"
        return None

    def apply(self, event: Event) -> list[Told | LogLine]:
        handle = _HANDLERS.get(event.event)
        return [] if handle is None else handle(self, event)

    def line(self, line: LogLine) -> list[Told | LogLine]:
        if is_dev(line.release) and line.release not in self.shown:
            self.held.setdefault(line.release, deque(maxlen=HELD_LINES)).append(line)
            return []
        return [line]

    def serves(self, release: str | None) -> list[LogLine]:
        """`release` is live: what it has printed so far may be shown."""
        self.live = release
        if release is None:
            return []
        self.shown.add(release)
        return list(self.held.pop(release, ()))


def milliseconds(seconds: float) -> str:
    """74 ms, 1.2s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else format_duration(seconds)


def web_address(listen: Sequence[str]) -> str:
    """The first address as a browser takes it."""
    return listen[0].replace("tcp://", "http://", 1) if listen else ""


def in_source(lines: Sequence[str], root: str, release: str | None, path: str) -> list[str]:
    """The lines with the files of a release called as those they were copied from."""
    return [line.replace(f"{root}/releases/{release}/", f"{path}/") for line in lines] if release and path else [*lines]


def place(lines: Sequence[str], path: str) -> str | None:
    """FILE:LINE of the source that a traceback is about: its last frame there, or the first place that is named."""
    text, quoted = "\n".join(lines), re.escape(path)
    frames = re.findall(_PYTHON_FRAME.format(path=quoted), text)
    if own := [frame for frame in frames if _PACKAGES not in frame[0]]:
        return ":".join(own[-1])
    named = re.search(_ANY_PLACE.format(path=quoted), text)
    return f"{named[1]}:{named[2]}" if named else None


# Private: one function an event.


def _watch_started(saves: Saves, event: Event) -> list[Told | LogLine]:
    data = event.data
    if data.get("watch") != saves.watch:
        return []
    changed = saves.mode is not None and data.get("mode") != saves.mode
    saves.path, saves.mode = data.get("path") or saves.path, data.get("mode")
    saves.directories = data.get("directories") or 0
    if not changed:
        return []
    how = "by looking again and again (polling)" if saves.mode == "poll" else "by word of the kernel"
    return [Told(f"{_stamp(event)} watching {how} from now on")]


def _watch_fault(saves: Saves, event: Event) -> list[Told | LogLine]:
    data = event.data
    if data.get("watch") != saves.watch:
        return []
    problem = DeployerError(str(data.get("what")), cause=data.get("cause"), hint=data.get("hint"))
    return [Told(f"{_stamp(event)} the watch is in trouble and goes on", "warn", problem=problem)]


def _watch_saved(saves: Saves, event: Event) -> list[Told | LogLine]:
    if event.data.get("watch") == saves.watch:
        files = tuple(event.data.get("files") or [])
        saves.counts[files] = event.data.get("count") or len(files)
    return []


def _watch_ended(saves: Saves, event: Event) -> list[Told | LogLine]:
    if event.data.get("watch") == saves.watch:
        saves.ended = event.data.get("why") or "nobody said why"
    return []


def _rollout_started(saves: Saves, event: Event) -> list[Told | LogLine]:
    data = event.data
    if data.get("watch") != saves.watch:
        return [Told(clean(timestamped(event, saves.glyphs)))]
    number = event.rollout or 0
    saves.running[number] = Save(
        kind=data.get("kind") or "deploy",
        release=data.get("release"),
        previous=data.get("previous"),
        files=list(data.get("files") or []),
        since=data.get("saved_at") or event.ts,
    )
    return [*saves.serves(data.get("previous"))]


def _staged(saves: Saves, event: Event) -> list[Told | LogLine]:
    if save := saves.running.get(event.rollout or 0):
        save.release = event.data.get("release") or save.release
    return []


def _phase(saves: Saves, event: Event) -> list[Told | LogLine]:
    save = saves.running.get(event.rollout or 0)
    if save is not None and event.data.get("phase") == "promoting":
        save.promoting = event.ts
    return []


def _failed(saves: Saves, event: Event) -> list[Told | LogLine]:
    if save := saves.running.get(event.rollout or 0):
        save.failure = event.data
    return []


def _finished(saves: Saves, event: Event) -> list[Told | LogLine]:
    save = saves.running.pop(event.rollout or 0, None)
    if save is None:
        known = [*saves.serves(event.data.get("serving"))]
        return [Told(clean(timestamped(event, saves.glyphs))), *known]
    data = event.data
    save.release = data.get("release") or save.release
    outcome = data.get("outcome")
    if outcome == "promoted":
        printed = saves.serves(save.release)
        told: list[Told | LogLine] = [*printed, _live(saves, save, event), *_warnings(event)]
    elif outcome in ("unchanged", "same"):
        known = saves.serves(data.get("serving") or save.release)
        asked = save.files or not saves.begun  # else a manager, or the process that watches, has looked by itself
        told = [_same(saves, save, event), *known] if asked else [*known]
    elif data.get("reason") in ("superseded", "aborted"):
        return []  # a newer save has its place
    else:
        told = [_broken(saves, save, event)]
    saves.held.clear()
    saves.counts.clear()
    saves.begun = True
    return told


def _exited(saves: Saves, event: Event) -> list[Told | LogLine]:
    """A worker of what is live; one of a release that is tried out is the failure of its rollout."""
    data = event.data
    release = data.get("release")
    if data.get("expected", True) or data.get("slot", 0) < 1 or release != saves.live:
        return []
    saves.crashed = release
    tail = [] if saves.prints else in_source(data.get("tail") or [], saves.root, release, saves.path)
    return [Told(clean(f"{_stamp(event)} {describe(event, saves.glyphs)}"), "bad", tail=tail)]


def _live(saves: Saves, save: Save, event: Event) -> Told:
    took = milliseconds(max(0.0, (save.promoting or event.ts) - save.since))
    if save.kind == "rollback":
        crashed = saves.crashed is not None and saves.crashed == save.previous
        why = f"{save.previous} crashed: " if crashed else ""
        after = "fix and save" if crashed else None
        text = f"{_stamp(event)} {why}back to {save.release} in {took}"
        return Told(clean(text), "warn" if crashed else "good", good=True, after=after)
    text = f"{_head(saves, save, event)}{save.release} live in {took}{_watching(saves)}"
    return Told(clean(text), "good", good=True)


def _same(saves: Saves, save: Save, event: Event) -> Told:
    release = save.release or event.data.get("serving")
    if not saves.begun:
        return Told(clean(f"{_stamp(event)} {release} is what is on disk{_watching(saves)}"), "good", good=True)
    return Told(clean(f"{_stamp(event)} {_what(saves, save)}: the same as {release}"), good=True)


def _broken(saves: Saves, save: Save, event: Event) -> Told:
    data, failure = event.data, save.failure or {}
    tail = data.get("tail") or failure.get("tail") or []
    printed = [line.line for line in saves.held.get(save.release or "", ())]
    if len(printed) > len(tail):
        tail = printed  # the event has the last lines only
    tail = in_source(tail, saves.root, save.release, saves.path)
    where = place(tail, saves.path) if saves.path else None
    serving = data.get("serving")
    after = f"still serving {serving}; fix and save" if serving else "nothing serves yet; fix and save"
    if not saves.begun:
        after = f"{_watching(saves).removeprefix(', ')}\n{after}"
    said = [save.release, "failed", where and f"at {where}"]
    text = _head(saves, save, event) + " ".join(word for word in said if word)
    problem = _problem(saves, data.get("problem") or failure, tail)
    return Told(clean(text), "bad", tail=tail, problem=problem, after=after.lstrip("\n"))


def _problem(saves: Saves, told: dict[str, Any], tail: Sequence[str]) -> DeployerError:
    what, cause, hint = told.get("what") or "it did not go live", told.get("cause"), told.get("hint")
    if _PORT_IN_USE.search("\n".join([*tail, cause or ""])):
        cause = "the old and the new one run side by side for a moment, and both bind the same port"
        hint = saves.port_hint
    elif tail and (hint or "").startswith("deployer logs"):
        hint = None  # it is all here
    return DeployerError(what, cause=cause, hint=hint)


def _warnings(event: Event) -> list[Told]:
    """What went wrong without changing the outcome."""
    texts = list(event.data.get("warnings") or [])
    if problem := event.data.get("problem"):
        texts.append(problem.get("what") or "?")
    return [Told(clean(f"warning: {text}"), "warn") for text in texts]


def _head(saves: Saves, save: Save, event: Event) -> str:
    what = _what(saves, save)
    return f"{_stamp(event)} {what} {saves.glyphs.arrow} " if what else f"{_stamp(event)} "


def _what(saves: Saves, save: Save) -> str:
    return named_files(save.files, saves.counts.get(tuple(save.files)))


def _watching(saves: Saves) -> str:
    """Said once, at the end of the first line."""
    if saves.begun or not saves.path:
        return ""
    many = "y" if saves.directories == 1 else "ies"
    polls = ", polling" if saves.mode == "poll" else ""
    where = f", {saves.address}" if saves.address else ""
    return f", watching {saves.path} ({saves.directories} director{many}{polls}){where}"


def _stamp(event: Event) -> str:
    return stamp(event.ts, millis=False)


_HANDLERS: dict[str, Callable[[Saves, Event], list[Told | LogLine]]] = {
    "watch.started": _watch_started,
    "watch.fault": _watch_fault,
    "watch.saved": _watch_saved,
    "watch.ended": _watch_ended,
    "rollout.started": _rollout_started,
    "release.staged": _staged,
    "rollout.phase": _phase,
    "rollout.failed": _failed,
    "rollout.finished": _finished,
    "worker.exited": _exited,
}
