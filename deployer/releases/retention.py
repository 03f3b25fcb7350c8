"""Which releases may go. Pure: nothing is removed here.

Good ones are kept for a rollback, a few failed ones for inspection; what anybody still uses stays whatever the numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

GOOD = frozenset({"live", "superseded"})


@dataclass(frozen=True)
class Kept:
    """A release whose files are on disk, as far as retention needs it."""

    name: str
    number: int
    state: str
    promoted_at: float | None
    pinned: bool


def removable(releases: Sequence[Kept], *, keep: int, keep_failed: int, used: Collection[str]) -> list[str]:
    """Names of those that go, oldest first. `keep` good ones stay beside the live one, `keep_failed` of the others.

    `used`: what a worker (a draining one too), a rollout or a waiting rollback needs; it stays whatever its place.
    Pinned ones take no place that another could have had.
    """
    free = [release for release in releases if not release.pinned and release.state != "live"]
    good = sorted((r for r in free if r.state in GOOD), key=lambda r: (r.promoted_at or 0.0, r.number), reverse=True)
    others = sorted((r for r in free if r.state not in GOOD), key=lambda r: r.number, reverse=True)
    gone = [release for release in (*good[keep:], *others[keep_failed:]) if release.name not in used]
    return [release.name for release in sorted(gone, key=lambda release: release.number)]


def promoted(releases: Sequence[Kept], live: str | None, target: str | None) -> list[Kept]:
    """How things will stand when `target` (None: a release to come) has taken the place of `live`."""
    left = next((release for release in releases if release.name == live), None)
    back = next((release for release in releases if release.name == target), None)
    state = "reverted" if left and back and left.number > back.number else "superseded"
    after = []
    for release in releases:
        if release.name == target:
            after.append(replace(release, state="live"))
        elif release.name == live:
            after.append(replace(release, state=state))
        else:
            after.append(release)
    return after
