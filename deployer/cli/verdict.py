"""The last words on a rollout: what became of it, what serves now, and what to type next."""

from __future__ import annotations

from typing import Any

from deployer.cli import github
from deployer.cli.output import Output, clean
from deployer.cli.traffic import cut_words, still_draining
from deployer.cli.view import RolloutView
from deployer.errors import DeployerError, Exit
from deployer.units import format_duration
from deployer.wire.schema import PREFLIGHT_SLOT, TEMPLATE_SLOT

TAIL_LINES = 20
"""Of the dead worker's last lines: a traceback with its cause, not a whole log."""

BUILD_TAIL_LINES = 30

_PHASE_WORDS = {
    "staging": "while staging",
    "canary": "at the canary",
    "soaking": "while the canary soaked",
    "rolling": "while rolling",
    "promoting": "while promoting",
    "held": "while held",
}
_PUT_BACK = frozenset({Exit.OK, Exit.HALTED, Exit.REVERTED, Exit.NOT_STARTED})


def exit_code(view: RolloutView, *, aborting: bool) -> int:
    """What the command exits with. Who asked for the abort is content when everything was put back."""
    fields = _finished(view)
    code = int(fields.get("exit_code", Exit.BUG))
    if not aborting:
        return code
    if fields.get("outcome") == "promoted":
        return int(Exit.LIVE_WITH_WARNINGS)
    return int(Exit.OK) if code in _PUT_BACK else code


def conclude(view: RolloutView, out: Output, app: str, *, aborting: bool, done: str | None = None) -> None:
    """Print the end: success on stdout, failure on stderr, annotations where a build system reads."""
    fields = _finished(view)
    if not out.style.json:
        if fields.get("outcome") in ("promoted", "unchanged"):
            _success(view, fields, out, app, done)
        elif aborting:
            serving = fields.get("serving")
            out.result(f"Aborted: {serving} serves." if serving else "Aborted: nothing is deployed.")
    if aborting and fields.get("outcome") == "promoted":
        out.error(_too_late(fields))
    elif not (aborting and exit_code(view, aborting=True) == Exit.OK):
        _failure(view, fields, out, app)
    _warnings(view, out)
    _drained(view, out)
    if out.github:
        github.summarise(view, out, app, headline(view))


def headline(view: RolloutView) -> str:
    """One line for a failure: where it ended, what was done about it, what serves."""
    fields = _finished(view)
    code = fields.get("exit_code")
    if code in (Exit.OK, Exit.LIVE_WITH_WARNINGS):
        return f"{fields.get('release')} is live."
    word = {"aborted": "ABORTED", "superseded": "SUPERSEDED"}.get(fields.get("reason") or "", "HALTED")
    serves = f"; {fields['serving']} serves." if fields.get("serving") else ". Nothing serves yet."
    if code == Exit.NOT_STARTED:
        return f"{'FAILED' if word == 'HALTED' else word} before any worker was started{serves}"
    if code == Exit.HELD:
        return f"HELD {_where(view)}. {_held(view, fields)}: a person is needed."
    if code == Exit.REVERTED:
        return f"{word} {_where(view)}. Every slot was put back{serves}"
    if code == Exit.HALTED:
        return f"{word} {_where(view)}. Nothing was replaced{serves}"
    return f"FAILED {_where(view)}{serves}"


# Private.


def _held(view: RolloutView, fields: dict[str, Any]) -> str:
    """What serves meanwhile: the worker that failed runs on, unless it was its end that failed it."""
    new = [row for row in view.slots.values() if row.new_release == view.release and row.new_pid]
    if all(row.new_pid == view.failed_pid for row in new):
        return f"{fields.get('serving')} serves on every slot"
    return "The slots run a mix of releases"


def _finished(view: RolloutView) -> dict[str, Any]:
    assert view.finished is not None, "concluded before rollout.finished"
    return view.finished


def _where(view: RolloutView) -> str:
    slot = view.failed_slot
    if slot in (PREFLIGHT_SLOT, TEMPLATE_SLOT) or (slot is None and view.step == "preflight"):
        return "at preflight"
    if slot is None:
        return _PHASE_WORDS.get(view.step, "before it began")
    return f"at slot {slot} of {len(view.slots)}"


def _success(view: RolloutView, fields: dict[str, Any], out: Output, app: str, done: str | None) -> None:
    release = fields.get("release") or fields.get("serving")
    if out.style.quiet:
        out.result(str(release))
        return
    if fields.get("outcome") == "unchanged":
        force = "  (--force renews the workers anyway)" if view.kind == "deploy" else ""
        out.result(f"{done or f'{app} {release} is live already'}: nothing to do.{force}")
        return
    commit = f" ({view.commit[:7]})" if view.commit else ""
    count = f"{len(view.slots)} worker{'' if len(view.slots) == 1 else 's'}"
    words = {
        "deploy": f"Deployed {app} {release}{commit}",
        "rollback": f"Rolled back {app} to {release}",
        "restart": f"Restarted {app} {release}, {count}",
        "scale": f"Scaled {app}",
    }
    spent = fields.get("seconds")
    took = f" in {format_duration(spent)}" if spent is not None else ""
    out.result(clean(f"{done or words.get(view.kind, view.kind)}{took}."))
    if view.judged and view.judged.get("verdict") == "inconclusive":
        out.result(clean(f"Its canary was not judged by numbers: {view.judged.get('text')}."))
    out.result("      ".join(_next_commands(view)))


def _next_commands(view: RolloutView) -> list[str]:
    undo = []
    if view.previous and view.kind in ("deploy", "rollback") and view.previous != view.release:
        undo = ["Undo: deployer rollback" + (f" {view.previous}" if view.kind == "rollback" else "")]
    return [*undo, "Logs: deployer logs -f"]


def _failure(view: RolloutView, fields: dict[str, Any], out: Output, app: str) -> None:
    """Also for what is live although something after it failed: it has a problem to tell."""
    problem = fields.get("problem") or _told(view)
    if not problem:
        if fields.get("exit_code") in (Exit.OK, None) or view.warnings:
            return
        problem = {"what": f"the {view.kind} of {app} ended as {fields.get('outcome')}"}
    if fields.get("outcome") != "promoted":
        text = headline(view)
        out.tell(out.paint(text, "warn" if fields.get("exit_code") == Exit.HELD else "bad"))
    if view.tail:
        _tail(view, out)
    hint = problem.get("hint") or _hint(view)
    error = DeployerError(problem.get("what", "?"), cause=problem.get("cause"), hint=hint)
    out.error(error)
    if out.github:
        github.annotate_failure(view, out, f"{app} {view.release or ''}".strip(), error, headline(view))


def _warnings(view: RolloutView, out: Output) -> None:
    for text in view.warnings:
        with out.untrusted():
            out.tell(f"{out.paint('warning:', 'warn')} {clean(text)}")
        if out.github:
            github.warn(out, text)


def _drained(view: RolloutView, out: Output) -> None:
    """What the old workers' ends took from visitors; and how many of them have not come to it yet."""
    if view.cut is not None:
        text = cut_words(view.cut)
        out.tell(f"{out.paint('warning:', 'warn')} {clean(text)}")
        if out.github:
            github.warn(out, text)
    if draining := _finished(view).get("draining"):
        out.note(still_draining(draining))


def _told(view: RolloutView) -> dict[str, Any] | None:
    """A problem from what was told on the way, where the end itself does not repeat it."""
    if view.finished and view.finished.get("exit_code") in (Exit.OK, Exit.LIVE_WITH_WARNINGS):
        return None
    return view.failure


def _tail(view: RolloutView, out: Output) -> None:
    reason = (view.failure or view.finished or {}).get("reason")
    lines = view.tail[-(BUILD_TAIL_LINES if reason == "build" else TAIL_LINES) :]
    slot = view.failed_slot
    if reason in ("hook", "build"):
        out.tell(f"\n  last output of the {reason}:")
        out.tail(lines)
        out.tell("")
        return
    names = {PREFLIGHT_SLOT: "the preflight worker", TEMPLATE_SLOT: "the template", None: "the worker"}
    worker = names.get(slot) or f"slot {slot}"
    pid = f" (pid {view.failed_pid})" if view.failed_pid else ""
    out.tell(f"\n  last output of {worker}{pid}:")
    out.tail(lines)
    out.tell("")


def _hint(view: RolloutView) -> str | None:
    if view.failed_slot is not None and view.release:
        return f"deployer logs --release {view.release}"
    return "deployer rollback" if _finished(view).get("exit_code") == Exit.HELD else None


def _too_late(fields: dict[str, Any]) -> DeployerError:
    return DeployerError(
        f"too late to abort: {fields.get('release')} was promoted already",
        cause="the last slot had been replaced when the abort came",
        hint="deployer rollback",
    )
