"""Shows a rollout while it runs, in one of three ways: redrawn on a terminal, as plain lines, as JSON.

The three know nothing of connections or signals: `deployer.cli.watching` feeds them.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from deployer.cli.lines import KIND_WORDS, release_change, timestamped
from deployer.cli.output import Output, clean, shorten
from deployer.cli.traffic import draining
from deployer.cli.view import RolloutView, SlotView, StepView
from deployer.client.follow import flatten
from deployer.units import format_duration
from deployer.wire.schema import Event

TICK_S = 0.2
"""How often the seconds of what is under way are drawn again."""

_SLOT_SIGNS = {
    "waiting": ("idle", None),
    "starting": ("busy", "warn"),
    "ready": ("busy", "warn"),
    "draining": ("busy", "warn"),
    "moved": ("good", "good"),
    "put back": ("good", "warn"),
    "gone": ("good", "good"),
    "failed": ("bad", "bad"),
}
_STEP_SIGNS = {
    "waiting": ("idle", None),
    "running": ("busy", "warn"),
    "done": ("good", "good"),
    "failed": ("bad", "bad"),
}
_LABEL, _TEXT = 10, 56
_HOOKS_FIRST = ("before_stage", "after_build", "before_rollout")
_HOOKS_OF_CANARY = ("after_canary",)
_HOOKS_LAST = ("after_rollout", "after_rollback", "on_failure")


class Progress(Protocol):
    """Shows the event that the view has just taken in."""

    def show(self, event: Event) -> None: ...

    def waiting(self, lost: bool) -> None: ...

    def close(self) -> None: ...


def progress_for(out: Output, view: RolloutView, app: str) -> Progress:
    if out.style.json:
        return JsonProgress(out)
    if out.style.quiet:
        return NoProgress()
    if out.live and not out.style.verbose:
        return LiveProgress(out, view, app)
    return PlainProgress(out)


class NoProgress:
    """--quiet."""

    def show(self, event: Event) -> None: ...

    def waiting(self, lost: bool) -> None: ...

    def close(self) -> None: ...


class JsonProgress(NoProgress):
    """Every event as it came, one object a line, on stdout: it is the result."""

    def __init__(self, out: Output) -> None:
        self.out = out

    def show(self, event: Event) -> None:
        self.out.result_json(flatten(event))


class PlainProgress:
    """A line with the time for each event; under GitHub Actions staging is folded."""

    def __init__(self, out: Output) -> None:
        self.out = out
        self._group = False

    def show(self, event: Event) -> None:
        phase = event.data.get("phase") if event.event == "rollout.phase" else None
        if phase or event.event == "rollout.finished":
            self._end_group()
        if phase == "staging" and self.out.github:
            self.out.tell("::group::stage the release")
            self._group = True
        if event.event == "worker.drain" and not self.out.style.verbose:
            return  # that it began is told, and that it is over
        text = timestamped(event, self.out.glyphs)
        if event.event == "hook.output":
            with self.out.untrusted():
                self.out.tell(text)
        else:
            self.out.tell(text)

    def waiting(self, lost: bool) -> None:
        self.out.tell(_waiting_text(lost))

    def close(self) -> None:
        self._end_group()

    def _end_group(self) -> None:
        if self._group:
            self.out.tell("::endgroup::")
            self._group = False


class LiveProgress:
    """The view redrawn in place; the last drawing stays."""

    def __init__(self, out: Output, view: RolloutView, app: str) -> None:
        self.out = out
        self.view = view
        self.app = app
        self._drawn = 0
        self._lost = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()

    def show(self, event: Event) -> None:
        self._draw()

    def waiting(self, lost: bool) -> None:
        self._lost = lost
        self._draw()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._ticker.join()
            self._draw(whole=True)

    def _tick(self) -> None:
        while not self._closed.wait(TICK_S):
            self._draw()

    def _draw(self, *, whole: bool = False) -> None:
        with self._lock:
            lines = render(self.view, self.out, self.app, time.time())
            if self._lost:
                lines.append(_waiting_text(True))
            if not whole and len(lines) > self.out.height - 1:
                # What scrolled away cannot be drawn again: show only what fits until the end.
                hidden = len(lines) - (self.out.height - 2)
                lines = [f"  ... {hidden} more lines", *lines[hidden:]]
            up = f"\x1b[{self._drawn}A" if self._drawn else ""
            body = "".join(f"{line}\x1b[K\n" for line in lines)
            self.out.stderr.write(f"{up}\r{body}\x1b[J")
            self.out.stderr.flush()
            self._drawn = len(lines)


def render(view: RolloutView, out: Output, app: str, now: float) -> list[str]:
    """The view as lines no wider than the terminal: a head, the steps, a line for each slot."""
    if view.queued is not None:
        return [f"{app}: waiting for its turn ({view.queued}); Ctrl-C takes it out of the queue"]
    if view.started is None:
        return [f"{app}: waiting for the supervisor"]
    steps, slots = view.steps, [view.slots[number] for number in sorted(view.slots)]
    lines = [_head(view, out, app)]
    lines += [_step(steps["stage"], out, now)] if _shown(steps["stage"]) else []
    lines += _hooks(view, _HOOKS_FIRST, out, now)
    lines += [_step(steps["preflight"], out, now)] if _shown(steps["preflight"]) else []
    for number, row in enumerate(slots):
        lines.append(_slot(row, view, out, now))
        lines += _drains(view, row.slot, out)
        if number == 0 and _shown(steps["soak"]):
            lines.append(_step(steps["soak"], out, now))
        if number == 0:
            lines += _hooks(view, _HOOKS_OF_CANARY, out, now)
    return lines + _hooks(view, _HOOKS_LAST, out, now)


# Private.


def _head(view: RolloutView, out: Output, app: str) -> str:
    word = KIND_WORDS.get(view.kind, view.kind).capitalize()
    count = len(view.slots)
    text = f"{word} {app}  {release_change(view.previous, view.release, out.glyphs)}"
    if view.subject or view.message:
        text += f'  "{clean(view.message or view.subject or "")}"'
    text += f"  {count} slot{'' if count == 1 else 's'}"
    return shorten(clean(text), out.width)


def _drains(view: RolloutView, slot: int, out: Output) -> list[str]:
    """Workers of the slot that are on their way out and not through."""
    if view.finished is not None:
        return []  # the last words say how many there are
    left = {pid: drain for pid, drain in view.drains.items() if drain.slot == slot}
    sign = _SLOT_SIGNS["draining"]
    return [_line(sign, "", f"pid {pid} {draining(d.requests, d.connections)}", None, out) for pid, d in left.items()]


def _hooks(view: RolloutView, stages: tuple[str, ...], out: Output, now: float) -> list[str]:
    return [_step(view.hooks[stage], out, now) for stage in stages if stage in view.hooks]


def _shown(step: StepView) -> bool:
    return step.state != "waiting"


def _step(step: StepView, out: Output, now: float) -> str:
    seconds = step.seconds
    if step.state == "running" and step.since is not None:
        seconds = now - step.since
    return _line(_STEP_SIGNS[step.state], step.name, step.text, seconds, out)


def _slot(row: SlotView, view: RolloutView, out: Output, now: float) -> str:
    seconds = row.seconds
    if seconds is None and row.since is not None and view.finished is None:
        seconds = now - row.since
    return _line(_SLOT_SIGNS[row.state], f"slot {row.slot}", slot_text(row, out), seconds, out)


def slot_text(row: SlotView, out: Output) -> str:
    """v6 pid 8121 -> v7 pid 9004  ready 1.8s."""
    if row.state == "waiting":
        return f"{_pid(row.old_release, row.old_pid)} serves" if row.old_release else "empty"
    if row.state == "gone":
        return f"{_pid(row.old_release, row.old_pid)} is gone"
    old = f"{_pid(row.old_release, row.old_pid)} {out.glyphs.arrow} " if row.old_release else ""
    new = _pid(row.new_release, row.new_pid)
    word = row.state if row.state != "moved" else ""
    if row.ready_s is not None and row.state in ("moved", "ready", "draining"):
        word = f"ready {format_duration(row.ready_s)}" + (", old draining" if word == "draining" else "")
    elif row.state == "failed":
        word = row.note
    return f"{old}{new}  {word}".rstrip()


def _pid(release: str | None, pid: int | None) -> str:
    return f"{release or '?'} pid {pid}" if pid is not None else f"{release or '?'}"


def _line(sign: tuple[str, str | None], label: str, text: str, seconds: float | None, out: Output) -> str:
    glyph, colour = sign
    spent = "" if seconds is None else format_duration(max(0.0, seconds))
    room = max(16, min(_TEXT, out.width - _LABEL - 4 - 9))
    body = f"{label.ljust(_LABEL)} {shorten(clean(text), room).ljust(room)} {spent:>7}".rstrip()
    return f"  {out.paint(getattr(out.glyphs, glyph), colour)} {body}"


def _waiting_text(lost: bool) -> str:
    if lost:
        return "connection to the supervisor lost; the rollout is safe in its journal, waiting ..."
    return "connected again"
