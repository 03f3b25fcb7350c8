"""What is known of a rollout, made of its events alone: the live view draws it, the last words quote it.

Pure: the same events give the same view, whether they come live or from the history of a finished rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from deployer.wire.schema import PREFLIGHT_SLOT, Cut, Event


@dataclass
class SlotView:
    """One slot. `state`: waiting, starting, ready, draining, moved, failed, put back, gone."""

    slot: int
    state: str = "waiting"
    old_pid: int | None = None
    old_release: str | None = None
    new_pid: int | None = None
    new_release: str | None = None
    ready_s: float | None = None
    since: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass
class StepView:
    """A step that is not a slot's: stage, preflight, soak. `state`: waiting, running, done, failed."""

    name: str
    state: str = "waiting"
    text: str = ""
    since: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class DrainView:
    """What a worker that was told to go still has to do."""

    slot: int
    requests: int
    connections: int


@dataclass
class RolloutView:
    """Feed it events with `apply`."""

    kind: str = "deploy"
    release: str | None = None
    previous: str | None = None
    who: str = ""
    message: str | None = None
    commit: str | None = None
    subject: str | None = None
    phase: str = ""
    step: str = ""  # the last phase before a revert
    started: float | None = None
    slots: dict[int, SlotView] = field(default_factory=dict)
    steps: dict[str, StepView] = field(
        default_factory=lambda: {name: StepView(name) for name in ("stage", "preflight", "soak")}
    )
    hooks: dict[str, StepView] = field(default_factory=dict)  # by stage, in the order in which they ran
    failure: dict[str, Any] | None = None  # fields of rollout.failed
    failed_pid: int | None = None
    judged: dict[str, Any] | None = None  # fields of canary.judged
    finished: dict[str, Any] | None = None  # fields of rollout.finished
    drains: dict[int, DrainView] = field(default_factory=dict)  # by pid, the workers that are not through
    queued: str | None = None  # while it waits its turn: its place, for people

    @property
    def reverting(self) -> bool:
        return self.phase == "reverting"

    @property
    def failed_slot(self) -> int | None:
        """The slot whose worker failed; None before the first, `PREFLIGHT_SLOT` for the private one, `TEMPLATE_SLOT`
        for what workers are forked from."""
        return None if self.failure is None else self.failure.get("slot")

    @property
    def warnings(self) -> list[str]:
        """What went wrong without changing the outcome."""
        return list((self.finished or {}).get("warnings") or [])

    @property
    def tail(self) -> list[str]:
        """Last log lines of the worker, or of the hook, that failed."""
        for source in (self.finished, self.failure):
            if source and source.get("tail"):
                return list(source["tail"])
        return []

    @property
    def cut(self) -> Cut | None:
        """What the ends of the old workers cut, as far as the end of the rollout knew."""
        told = (self.finished or {}).get("cut")
        return None if told is None else msgspec.convert(told, Cut)

    def apply(self, event: Event) -> None:
        handle = _HANDLERS.get(event.event)
        if handle is not None:
            handle(self, event.data, event.ts)

    def is_replacement_of_old(self, data: dict[str, Any]) -> bool:
        """Whether the event tells of a worker of the release before, which died by itself meanwhile."""
        old = data.get("release") == self.previous and self.release not in (None, self.previous)
        return old and not self.reverting

    def slot(self, number: int) -> SlotView:
        return self.slots.setdefault(number, SlotView(number, old_release=self.previous))


# Private: one function an event.


def _queued(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    place = data.get("place") or 1
    view.queued = "next" if place == 1 else f"{place - 1} before it"


def _started(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.queued = None
    view.kind = data.get("kind", view.kind)
    view.release = data.get("release")
    view.previous = data.get("previous")
    view.who = data.get("who") or ""
    view.message = data.get("message")
    view.started = ts
    for number in data.get("slots") or []:
        view.slot(number)


_PHASE_STEPS = {"staging": "stage", "preflight": "preflight", "soaking": "soak"}


def _phase(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.phase = data.get("phase", "")
    if view.reverting:
        for row in view.slots.values():
            row.since = ts if row.since is not None else None  # the way back is timed by itself
    else:
        view.step = view.phase
    running = _PHASE_STEPS.get(view.phase)
    for name, step in view.steps.items():
        if name == running and step.state == "waiting":
            step.state, step.since = "running", ts
        elif name != running and step.state == "running" and not view.reverting:
            _end(step, "done", ts)


def _end(step: StepView, state: str, ts: float, seconds: float | None = None) -> None:
    if seconds is None and step.since is not None:
        seconds = ts - step.since
    step.state, step.seconds = state, seconds


def _progress(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.steps["stage"].text = (data.get("text") or "").rpartition("\n")[2]


def _staged(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.release = data.get("release") or view.release
    view.commit = data.get("commit")
    view.subject = data.get("subject")
    step = view.steps["stage"]
    files = data.get("files")
    count = f" {files} files" if files is not None else ""
    step.text = f"{view.release}{count}".strip()
    _end(step, "done", ts, data.get("seconds"))


def _preflight_passed(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    step = view.steps["preflight"]
    step.text = ", ".join(data.get("checks") or [])
    _end(step, "done", ts, data.get("seconds"))


def _soak_started(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    step = view.steps["soak"]
    step.state, step.since = "running", step.since or ts
    step.text = f"{data.get('seconds', 0):g}s"


def _soak_extended(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.steps["soak"].text = f"goes on: {data.get('text')}"


def _judged(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.judged = data
    view.steps["soak"].text = data.get("text") or ""


def _worker_starting(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    if data.get("slot") == PREFLIGHT_SLOT:
        view.steps["preflight"].text = f"pid {data.get('pid')} starting"
        return
    row = view.slot(data["slot"])
    if view.is_replacement_of_old(data):
        row.old_pid = data.get("pid")
        return
    row.new_pid, row.new_release = data.get("pid"), data.get("release")
    row.state, row.ready_s, row.note = "starting", None, ""
    row.since = ts if row.since is None else row.since


def _worker_ready(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    if data.get("slot") == PREFLIGHT_SLOT:
        view.steps["preflight"].text = f"pid {data.get('pid')} ready, checking"
        return
    row = view.slot(data["slot"])
    if row.new_pid == data.get("pid"):
        row.state, row.ready_s = "ready", data.get("seconds")


def _worker_draining(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    row = view.slots.get(data.get("slot", PREFLIGHT_SLOT))
    if row is None:
        return  # the preflight worker, or one that the rollout before left finishing its requests
    if data.get("pid") == row.new_pid:
        return  # a new worker that is taken back: its row already says why
    row.old_pid, row.old_release = data.get("pid"), data.get("release")
    if row.state in ("waiting", "starting", "ready"):
        row.state = "draining"
        row.since = ts if row.since is None else row.since


def _worker_drain(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.drains[data["pid"]] = DrainView(data["slot"], data.get("requests", 0), data.get("connections", 0))


def _worker_exited(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.drains.pop(data.get("pid", 0), None)
    if data.get("expected", True):
        _left(view, view.slots.get(data.get("slot", PREFLIGHT_SLOT)), data, ts)
        return
    view.failed_pid = data.get("pid")
    if data.get("slot") == PREFLIGHT_SLOT:
        step = view.steps["preflight"]
        step.text = f"pid {data.get('pid')} {data.get('text', 'ended')}"
        _end(step, "failed", ts)
        return
    row = view.slots.get(data["slot"])
    if row is None or view.is_replacement_of_old(data):
        return  # supervision puts another one in its place; the rollout is not concerned
    row.state, row.note, row.seconds = "failed", data.get("text") or "ended", data.get("seconds")
    row.new_pid, row.new_release = data.get("pid"), data.get("release")


def _template_starting(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    if _is_prepared(view, data):
        view.steps["preflight"].text = f"template pid {data.get('pid')} imports the application"


def _template_exited(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    if _is_prepared(view, data) and not data.get("expected", True):
        view.failed_pid = data.get("pid")
        view.steps["preflight"].text = f"template pid {data.get('pid')} {data.get('text', 'ended')}"


def _is_prepared(view: RolloutView, data: dict[str, Any]) -> bool:
    """Is this the template that the preflight waits for? That of the release before may come and go meanwhile."""
    return view.phase == "preflight" and data.get("release") == view.release


def _left(view: RolloutView, row: SlotView | None, data: dict[str, Any], ts: float) -> None:
    """A worker ended as it was told to; only two such ends say something of the slot."""
    if row is None:
        return
    if view.reverting and row.new_pid == data.get("pid"):
        row.state, row.new_pid = "waiting", None  # taken back before it replaced anything
    elif row.state == "draining" and row.new_pid is None and row.old_pid == data.get("pid"):
        row.state, row.seconds = "gone", ts - (row.since or ts)  # fewer slots from now on


def _slot_moved(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    row = view.slot(data["slot"])
    row.old_pid = data.get("old_pid") if data.get("old_pid") is not None else row.old_pid
    row.new_pid, row.new_release = data.get("new_pid"), data.get("release") or row.new_release
    row.seconds, row.note = data.get("seconds"), ""
    if row.new_pid is None:
        row.state = "gone"
    elif view.reverting:
        row.state, row.old_release = "put back", view.release
        row.seconds = ts - row.since if row.since is not None else None  # of the slot, not of the old worker
    else:
        row.state = "moved"


def _hook_started(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    step = view.hooks.setdefault(data["stage"], StepView(data["stage"]))
    step.state, step.since, step.seconds, step.text = "running", ts, None, data.get("hook") or ""


def _hook_output(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    step, lines = view.hooks.get(data["stage"]), data.get("lines") or []
    if step is not None and lines:
        step.text = lines[-1]


def _hook_finished(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    step = view.hooks.get(data["stage"])
    if step is not None:
        _end(step, "failed" if data.get("failure") else "done", ts, data.get("seconds"))


def _failed(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.failure = data
    for step in view.steps.values():
        if step.state == "running":
            _end(step, "failed", ts)
    number = data.get("slot") or PREFLIGHT_SLOT
    if number > PREFLIGHT_SLOT:
        row = view.slot(number)
        if row.state != "failed":
            row.state, row.note = "failed", data.get("what") or ""
            row.seconds = ts - row.since if row.since is not None else None


def _finished(view: RolloutView, data: dict[str, Any], ts: float) -> None:
    view.finished = data
    view.release = data.get("release") or view.release
    for step in view.steps.values():
        if step.state == "running":
            _end(step, "done" if data.get("exit_code") in (0, 9) else "failed", ts)


_HANDLERS: dict[str, Callable[[RolloutView, dict[str, Any], float], None]] = {
    "rollout.queued": _queued,
    "rollout.started": _started,
    "rollout.phase": _phase,
    "release.progress": _progress,
    "release.staged": _staged,
    "preflight.passed": _preflight_passed,
    "soak.started": _soak_started,
    "soak.extended": _soak_extended,
    "canary.judged": _judged,
    "worker.starting": _worker_starting,
    "worker.ready": _worker_ready,
    "worker.draining": _worker_draining,
    "worker.drain": _worker_drain,
    "worker.exited": _worker_exited,
    "template.starting": _template_starting,
    "template.exited": _template_exited,
    "slot.moved": _slot_moved,
    "hook.started": _hook_started,
    "hook.output": _hook_output,
    "hook.finished": _hook_finished,
    "rollout.failed": _failed,
    "rollout.finished": _finished,
}
