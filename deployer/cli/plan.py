"""What `--dry-run` prints: what would be staged, what differs, which slots would move, what would be removed."""

from __future__ import annotations

from typing import Any

import msgspec

from deployer.cli import changes
from deployer.cli.output import Output, clean
from deployer.cli.session import Session
from deployer.releases.compare import differences
from deployer.wire.schema import Plan


def show(session: Session, plan: Plan) -> int:
    """A rollback compares two trees that are there; of a deploy the manager has compared them."""
    out = session.out
    came, went = _commits(session, plan)
    if plan.kind == "rollback" and plan.release and plan.live:
        live, target = (changes.directory(str(session.layout.release(name))) for name in (plan.live, plan.release))
        if live is not None and target is not None:
            plan = msgspec.structs.replace(plan, files=changes.as_changes(differences(live, target)))
    if out.style.json:
        document: dict[str, Any] = msgspec.to_builtins(plan)
        out.result_json({"dry_run": True} | document | {"commits": came, "commits_taken_back": went})
        return 0
    out.result(_headline(plan, session.app, out))
    if not plan.unchanged:
        changes.show_commits(out, "commits", came or [])
        changes.show_commits(out, "commits taken back", went or [])
        changes.show_names(out, "files", plan.files)
        changes.show_names(out, "environment", plan.env, value="=***")
        changes.show_names(out, "configuration", plan.config)
        out.result(f"slots: {', '.join(map(str, plan.slots))}, one after the other; slot {plan.slots[0]} is the canary")
        out.result(f"removed afterwards: {', '.join(plan.removes) or 'nothing'}")
    for warning in plan.warnings:
        out.tell(f"{out.paint('warning:', 'warn')} {clean(warning)}")
    out.note("dry run: nothing was changed")
    return 0


def _headline(plan: Plan, app: str, out: Output) -> str:
    if plan.unchanged:
        return f"{app} {plan.live} is live already: there would be nothing to do."
    commit = f"{plan.commit[:7]} " if plan.commit else ""
    what = clean(f'{commit}"{plan.subject}"' if plan.subject else f"{commit}{plan.source or ''}".strip())
    if plan.kind == "rollback":
        return f"Would roll {app} back: {plan.live} {out.glyphs.arrow} {plan.release}  {what}"
    live = f"{plan.live} {out.glyphs.arrow} a new release" if plan.live else "the first release"
    return f"Would deploy {app}: {live}  {what}"


def _commits(session: Session, plan: Plan) -> tuple[list[changes.Commit] | None, list[changes.Commit] | None]:
    if plan.live is None or plan.commit is None or plan.unchanged:
        return None, None
    live = session.client.release(plan.live).info.commit
    return changes.commits(session.layout, live, plan.commit), changes.commits(session.layout, plan.commit, live)
