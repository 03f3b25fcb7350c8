"""`deployer releases`: what can be gone back to; one of them in full; keep one for good."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from deployer.cli.output import Output, table
from deployer.cli.session import Session
from deployer.units import format_duration, format_size
from deployer.wire.schema import PinRequest, ReleaseDetail, ReleaseInfo

Name = Annotated[str, typer.Argument(metavar="vN", help="The release.")]


def run(session: Session) -> int:
    """List the releases, newest first.

    Pinned ones are never removed; of the others retention keeps [release] keep good ones and keep_failed others.
    """
    out = session.out
    releases = session.client.releases()
    if out.style.json:
        out.result_json(releases)
        return 0
    if out.style.quiet:
        for release in releases:
            out.result(release.name)
        return 0
    head = ("RELEASE", "STATE", "COMMIT", "SUBJECT", "AUTHOR", "AGE", "SIZE", "BY", "SOURCE")
    for line in table(head, (_row(release, out) for release in releases), width=_width(out)):
        out.result(line)
    if not releases:
        out.note("no release yet: deployer deploy")
    return 0


def show(session: Session, release: Name) -> int:
    """Show all that is known of one release; of its environment only the names."""
    out = session.out
    detail = session.client.release(release)
    if out.style.json:
        out.result_json(detail)
        return 0
    for key, value in _facts(detail, out):
        if value:
            out.result(f"{key.ljust(12)} {value}")
    for rollout in detail.rollouts:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(rollout.started_at))
        out.result(f"{'rollout'.ljust(12)} {rollout.id} {rollout.kind} {when} {rollout.outcome or rollout.phase}")
    for warning in detail.warnings:
        out.result(f"{'warning'.ljust(12)} {warning}")
    return 0


def pin(session: Session, release: Name) -> int:
    """Keep a release for good: retention does not remove it."""
    return _pin(session, release, pinned=True)


def unpin(session: Session, release: Name) -> int:
    """Let retention remove a release again."""
    return _pin(session, release, pinned=False)


VERBS = {"show": show, "pin": pin, "unpin": unpin}


# Private.


def _pin(session: Session, release: str, *, pinned: bool) -> int:
    detail = session.client.pin(release, PinRequest(who=session.who, pinned=pinned))
    if session.out.style.json:
        session.out.result_json(detail.info)
    else:
        session.out.result(f"{detail.info.name} is {'pinned' if pinned else 'not pinned'}.")
    return 0


def state(release: ReleaseInfo) -> str:
    """superseded, pinned; failed (build); superseded, removed."""
    words = [release.state if not release.reason else f"{release.state} ({release.reason})"]
    words += ["pinned"] if release.pinned else []
    words += ["removed"] if release.removed_at is not None else []
    return ", ".join(words)


def _row(release: ReleaseInfo, out: Output) -> tuple[str, ...]:
    dash = out.glyphs.dash
    return (
        release.name,
        state(release),
        (release.commit or "")[:7] or dash,
        release.message or release.subject or dash,
        release.author or dash,
        _age(release.staged_at),
        format_size(release.size_bytes),
        release.who,
        release.source,
    )


def _facts(detail: ReleaseDetail, out: Output) -> list[tuple[str, str | None]]:
    info = detail.info
    env = ", ".join(detail.env_keys)
    return [
        ("release", f"{info.name}  {state(info)}"),
        ("source", info.source),
        ("commit", " ".join(text for text in (info.commit, f"({detail.ref})" if detail.ref else None) if text)),
        ("subject", info.subject),
        ("author", info.author),
        ("deployed by", f"{info.who}, {_age(info.staged_at)} ago"),
        ("message", info.message),
        ("live since", _age(info.promoted_at) + " ago" if info.promoted_at else None),
        ("size", f"{format_size(info.size_bytes)}, {detail.files} files"),
        ("directory", detail.directory if info.removed_at is None else None),
        ("environment", detail.environment),
        ("tree", info.tree_digest),
        ("settings", detail.settings_digest),
        ("variables", f"{env} (values are not shown)" if env else None),
    ]


def _age(at: float) -> str:
    return format_duration(max(0.0, time.time() - at))


def _width(out: Output) -> int | None:
    return out.width if out.stdout.isatty() else None
