"""Each event as one plain line: for pipes, build logs and `deployer events`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from deployer.cli.output import Glyphs, clean
from deployer.cli.traffic import counted, draining
from deployer.units import format_duration
from deployer.wire.schema import BLANK_SLOT, PREFLIGHT_SLOT, TEMPLATE_SLOT, WARM_SLOT, Event

KIND_WORDS = {
    "deploy": "deploying",
    "rollback": "rolling back",
    "restart": "restarting",
    "scale": "scaling",
}
FORKING: dict[Any, str] = {
    TEMPLATE_SLOT: "template",
    WARM_SLOT: "warm template",
    BLANK_SLOT: "template to come",
}
"""What workers are forked from, by its slot."""
Fields = dict[str, Any]
_CUT = (("cut_requests", "request"), ("cut_connections", "connection"))


def stamp(ts: float, *, millis: bool = True) -> str:
    """Local time of day, as in 12:00:01.204."""
    clock = time.strftime("%H:%M:%S", time.localtime(ts))
    return f"{clock}.{int(ts * 1000) % 1000:03d}" if millis else clock


def timestamped(event: Event, glyphs: Glyphs) -> str:
    text = describe(event, glyphs)
    lines = text.split("\n") if event.event in ("hook.output", "release.progress") else [text]
    return "\n".join(f"{stamp(event.ts)} {clean(line)}" for line in lines)


def describe(event: Event, glyphs: Glyphs) -> str:
    """What happened, in words (a hook's output in several lines); what this version does not know, with all fields."""
    handle = _LINES.get(event.event)
    if handle is None:
        fields = " ".join(f"{key}={value}" for key, value in event.data.items())
        return f"{event.event} {fields}".rstrip()
    return handle(event.data, glyphs)


def who_slot(data: Fields) -> str:
    slot = data.get("slot")
    if slot == PREFLIGHT_SLOT:
        return "preflight"
    return FORKING.get(slot, f"slot {slot}")


def seconds(data: Fields) -> str:
    value = data.get("seconds")
    return "" if value is None else format_duration(value)


def named_files(files: Sequence[str], count: int | None = None) -> str:
    """app/views.py and 3 more; empty without a file. `count`: how many there are, where not all are named."""
    if not files:
        return ""
    more = max(count or 0, len(files)) - 1
    return f"{files[0]} and {more} more" if more else files[0]


# Private: one function an event.


def _started(data: Fields, glyphs: Glyphs) -> str:
    word = KIND_WORDS.get(data.get("kind", ""), data.get("kind", ""))
    change = release_change(data.get("previous"), data.get("release"), glyphs)
    slots = len(data.get("slots") or [])
    parts = [word, change, f"({slots} slot{'' if slots == 1 else 's'})", f"by {data.get('who')}"]
    if data.get("message"):
        parts.append(f'"{data["message"]}"')
    return " ".join(part for part in parts if part)


def _queued(data: Fields, glyphs: Glyphs) -> str:
    behind = f" behind {data['behind']}" if data.get("behind") else ""
    return f"queued{behind}: place {data.get('place')}"


def release_change(previous: str | None, release: str | None, glyphs: Glyphs) -> str:
    """v6 -> v7; only what is known of it."""
    if previous and release and previous != release:
        return f"{previous} {glyphs.arrow} {release}"
    return release or (f"from {previous}" if previous else "")


def _progress(data: Fields, glyphs: Glyphs) -> str:
    """A build tells what it printed several lines at a time."""
    return "\n".join(f"stage: {line}" for line in str(data.get("text")).split("\n"))


def _staged(data: Fields, glyphs: Glyphs) -> str:
    parts = [f"staged {data.get('release')}"]
    if data.get("commit"):
        parts.append(data["commit"][:7])
    if data.get("subject"):
        parts.append(f'"{data["subject"]}"')
    if data.get("files") is not None:
        parts.append(f"({data['files']} files)")
    return " ".join([*parts, seconds(data)]).rstrip()


def _preflight_passed(data: Fields, glyphs: Glyphs) -> str:
    checks = ", ".join(data.get("checks") or [])
    return f"preflight passed {seconds(data)}".rstrip() + (f": {checks}" if checks else "")


def _worker(what: str) -> Callable[[Fields, Glyphs], str]:
    def line(data: Fields, glyphs: Glyphs) -> str:
        text = f"{who_slot(data)}: {data.get('release')} pid {data.get('pid')} {what} {seconds(data)}"
        return text.rstrip()

    return line


def _exited(data: Fields, glyphs: Glyphs) -> str:
    worker = f"{who_slot(data)}: {data.get('release')} pid {data.get('pid')}"
    if data.get("expected", True) and data.get("slot") in FORKING:
        return f"{worker} stopped {seconds(data)}".rstrip()
    if data.get("expected", True):
        return f"{worker} stopped ({data.get('text')}) {seconds(data)}".rstrip() + _cut(data)
    after = f" after {seconds(data)}" if data.get("seconds") is not None else ""
    return f"{worker} died: {data.get('text')}{after}"


def _unsafe(data: Fields, glyphs: Glyphs) -> str:
    return f"template: none for {data.get('release')}, its workers boot one by one: {data.get('what')}"


def _cut(data: Fields) -> str:
    parts = [counted(data[key], what) for key, what in _CUT if data.get(key)]
    return f", cut {' and '.join(parts)}" if parts else ""


def _drain(data: Fields, glyphs: Glyphs) -> str:
    left = draining(data.get("requests", 0), data.get("connections", 0))
    return f"{who_slot(data)}: {data.get('release')} pid {data.get('pid')} {left}"


def _recycled(data: Fields, glyphs: Glyphs) -> str:
    worker = f"{who_slot(data)}: {data.get('release')} pid {data.get('pid')}"
    return f"{worker} is replaced ({data.get('reason')}): {data.get('text')}"


def _over_limit(data: Fields, glyphs: Glyphs) -> str:
    return f"{who_slot(data)}: warning: {data.get('release')} pid {data.get('pid')}: {data.get('text')}"


def _moved(data: Fields, glyphs: Glyphs) -> str:
    old, new = data.get("old_pid"), data.get("new_pid")
    text = f"{who_slot(data)}: "
    if new is None:
        text += f"pid {old} is gone, the slot is closed"
    elif old is None:
        text += f"{data.get('release')} pid {new} serves"
    else:
        text += f"pid {old} {glyphs.arrow} {new}, {data.get('release')} serves"
    return f"{text} {seconds(data)}".rstrip()


def _failed(data: Fields, glyphs: Glyphs) -> str:
    cause = f": {data['cause']}" if data.get("cause") else ""
    return f"failed: {data.get('what')}{cause}"


def _judged(data: Fields, glyphs: Glyphs) -> str:
    return f"canary, by numbers: {data.get('verdict')}: {judgement(data)}"


def _soak_extended(data: Fields, glyphs: Glyphs) -> str:
    return f"soak: goes on for {seconds(data)}: {data.get('text')}"


def judgement(data: Fields) -> str:
    """What was said of the canary; a good or bad one is named."""
    text = str(data.get("text"))
    return (
        text if data.get("verdict") == "inconclusive" else f"worker {data.get('slot')} of {data.get('release')} {text}"
    )


def _hook_started(data: Fields, glyphs: Glyphs) -> str:
    return f"{data.get('stage')}: {data.get('hook')} started (pid {data.get('pid')})"


def _hook_output(data: Fields, glyphs: Glyphs) -> str:
    """A line for each that the hook printed."""
    return "\n".join(f"{data.get('stage')} | {line}" for line in data.get("lines") or [])


def _hook_finished(data: Fields, glyphs: Glyphs) -> str:
    word = "failed" if data.get("failure") else "done"
    code = f" (exit {data['exit']})" if data.get("failure") and data.get("exit") is not None else ""
    return f"{data.get('stage')}: {data.get('hook')} {word}{code} {seconds(data)}".rstrip()


def _finished(data: Fields, glyphs: Glyphs) -> str:
    serving = f", {data['serving']} serves" if data.get("serving") else ""
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"finished: {data.get('outcome')}{reason}{serving} {seconds(data)}".rstrip()


def _watch_started(data: Fields, glyphs: Glyphs) -> str:
    many = "y" if data.get("directories") == 1 else "ies"
    why = " for a fix" if data.get("kind") == "heal" else ""
    polls = ", polling" if data.get("mode") == "poll" else ""
    return f"watching {data.get('path')}{why} ({data.get('directories')} director{many}{polls})"


def _watch_fault(data: Fields, glyphs: Glyphs) -> str:
    cause = f": {data['cause']}" if data.get("cause") else ""
    return f"watch: warning: {data.get('what')}{cause}"


def _watch_saved(data: Fields, glyphs: Glyphs) -> str:
    return f"saved {named_files(data.get('files') or [], data.get('count')) or 'something'}"


def _manager_started(data: Fields, glyphs: Glyphs) -> str:
    resumed = f", goes on with rollout {data['resumed']}" if data.get("resumed") else ""
    return f"manager pid {data.get('pid')} started, {data.get('adopted', 0)} workers adopted{resumed}"


_FORKING_LINES: dict[str, Callable[[Fields, Glyphs], str]] = {
    "starting": _worker("starting"),
    "ready": _worker("ready"),
    "draining": _worker("ending"),
    "exited": _exited,
}

_LINES: dict[str, Callable[[Fields, Glyphs], str]] = {
    "rollout.queued": _queued,
    "rollout.started": _started,
    "rollout.phase": lambda data, _: f"phase: {data.get('phase')}",
    "release.progress": _progress,
    "release.staged": _staged,
    "preflight.passed": _preflight_passed,
    "soak.started": lambda data, _: f"soak: the canary has to live {seconds(data)}",
    "soak.extended": _soak_extended,
    "canary.judged": _judged,
    "worker.starting": _worker("starting"),
    "worker.ready": _worker("ready"),
    "worker.draining": _worker("draining"),
    "worker.drain": _drain,
    "worker.exited": _exited,
    **{f"{kind}.{what}": line for kind in ("template", "warm", "blank") for what, line in _FORKING_LINES.items()},
    "template.unsafe": _unsafe,
    "worker.unhealthy": lambda data, _: f"{who_slot(data)}: pid {data.get('pid')} is unhealthy: {data.get('cause')}",
    "worker.recycled": _recycled,
    "worker.over_limit": _over_limit,
    "slot.moved": _moved,
    "rollout.failed": _failed,
    "hook.started": _hook_started,
    "hook.output": _hook_output,
    "hook.finished": _hook_finished,
    "rollout.finished": _finished,
    "watch.started": _watch_started,
    "watch.fault": _watch_fault,
    "watch.saved": _watch_saved,
    "watch.ended": lambda data, _: f"the watch ended: {data.get('why')}",
    "manager.started": _manager_started,
    "manager.stopped": lambda data, _: f"manager pid {data.get('pid')} stopped",
}
