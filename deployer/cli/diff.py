"""`deployer diff v6 v7`: commits between, changed files, changed settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deployer.cli import changes
from deployer.cli.session import Session
from deployer.errors import UsageError
from deployer.releases.compare import Difference, differences
from deployer.wire.schema import Changes, ReleaseInfo, SettingsDiff


def run(
    session: Session,
    old: Annotated[str | None, typer.Argument(metavar="[vN]", help="Else the release that was live before.")] = None,
    new: Annotated[str | None, typer.Argument(metavar="[vM]", help="Else the live one.")] = None,
) -> int:
    """Show what differs between two releases.

    Values of the environment are secrets and never shown; files that workers made in a release count as changed.
    """
    if old is None or new is None:
        old, new = _default(session.client.releases(), old)
    settings = session.client.diff(old, new)
    before, after = changes.directory(settings.old.directory), changes.directory(settings.new.directory)
    files = None if before is None or after is None else list(differences(before, after))
    came, went = _commits(session, settings)
    out = session.out
    if out.style.json:
        out.result_json(_document(settings, files, came, went))
        return 0
    arrow = out.glyphs.arrow
    one, other = settings.old.info, settings.new.info
    commits = f"  {one.commit[:7]} {arrow} {other.commit[:7]}" if one.commit and other.commit else ""
    out.result(f"{one.name} {arrow} {other.name}{commits}")
    changes.show_commits(out, "commits", came or [])
    changes.show_commits(out, "commits taken back", went or [])
    if files is None:
        gone = one.name if before is None else other.name
        out.note(f"files are not compared: those of {gone} were removed")
    changes.show_files(out, files or [])
    changes.show_names(out, "environment", settings.env, value="=***")
    changes.show_names(out, "configuration", settings.config)
    if not (files or came or went) and settings.env == settings.config == Changes() and files is not None:
        out.note(f"{one.name} and {other.name} are the same")
    return 0


def _default(releases: list[ReleaseInfo], old: str | None) -> tuple[str, str]:
    live = next((release for release in releases if release.state == "live"), None)
    if live is None:
        raise UsageError("no release is live: name two", hint="deployer diff v1 v2")
    if old is not None:
        return old, live.name
    at = live.promoted_at or 0.0
    before = [r for r in releases if r.promoted_at is not None and r.promoted_at < at and r.name != live.name]
    if not before:
        raise UsageError(f"there was no release before {live.name}", hint="deployer releases")
    return max(before, key=lambda release: release.promoted_at or 0.0).name, live.name


def _commits(
    session: Session, settings: SettingsDiff
) -> tuple[list[changes.Commit] | None, list[changes.Commit] | None]:
    old, new = settings.old.info.commit, settings.new.info.commit
    return changes.commits(session.layout, old, new), changes.commits(session.layout, new, old)


def _document(
    settings: SettingsDiff,
    files: list[Difference] | None,
    came: list[changes.Commit] | None,
    went: list[changes.Commit] | None,
) -> dict[str, Any]:
    return {
        "old": settings.old.info,
        "new": settings.new.info,
        "commits": came,
        "commits_taken_back": went,
        "files": files,
        "env": settings.env,
        "config": settings.config,
    }
