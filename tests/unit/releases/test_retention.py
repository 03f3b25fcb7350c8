"""What retention takes, over all there may be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployer.releases.retention import GOOD, Kept, promoted, removable


def kept(number: int, state: str = "superseded", *, at: float | None = None, pinned: bool = False) -> Kept:
    return Kept(f"v{number}", number, state, float(number) if at is None else at, pinned)


def test_the_newest_by_promotion_stay_not_those_with_the_highest_numbers() -> None:
    """v1 was gone back to last: it is the freshest of the good ones."""
    releases = [kept(1, at=9.0), kept(2), kept(3), kept(4, "live")]
    assert removable(releases, keep=1, keep_failed=0, used=()) == ["v2", "v3"]


def test_failed_ones_have_a_quota_of_their_own() -> None:
    releases = [kept(1), kept(2, "bad"), kept(3, "failed"), kept(4, "reverted"), kept(5, "live")]
    assert removable(releases, keep=1, keep_failed=2, used=()) == ["v2"]
    assert removable(releases, keep=1, keep_failed=0, used=()) == ["v2", "v3", "v4"]


def test_what_is_used_stays_in_its_place_and_what_is_pinned_takes_none() -> None:
    releases = [kept(1), kept(2), kept(3, pinned=True), kept(4), kept(5, "live")]
    assert removable(releases, keep=1, keep_failed=0, used={"v1"}) == ["v2"]


def test_what_a_deploy_and_a_rollback_would_leave() -> None:
    """The release that a rollback left counts as one of the failed; one gone forward from stays good."""
    releases = [kept(1), kept(2), kept(3, "live")]
    deployed = promoted(releases, "v3", None)
    assert {release.name: release.state for release in deployed} == dict.fromkeys(("v1", "v2", "v3"), "superseded")
    back = promoted(releases, "v3", "v2")
    assert {release.name: release.state for release in back} == {"v1": "superseded", "v2": "live", "v3": "reverted"}
    forward = promoted([kept(1, "live"), kept(2)], "v1", "v2")
    assert {release.name: release.state for release in forward} == {"v1": "superseded", "v2": "live"}


STATES = st.sampled_from(["staging", "staged", "live", "superseded", "failed", "reverted", "bad"])
RELEASES = st.lists(st.tuples(STATES, st.none() | st.floats(0, 100), st.booleans()), max_size=12).map(
    lambda rows: [Kept(f"v{n}", n, *row) for n, row in enumerate(rows, 1)]
)


@given(RELEASES, st.integers(0, 5), st.integers(0, 5), st.sets(st.sampled_from([f"v{n}" for n in range(1, 13)])))
def test_what_must_stay_stays_and_no_more_goes_than_may(
    releases: list[Kept], keep: int, keep_failed: int, used: set[str]
) -> None:
    gone = set(removable(releases, keep=keep, keep_failed=keep_failed, used=used))
    stay = [release for release in releases if release.name not in gone]
    assert not any(r.name in gone for r in releases if r.state == "live" or r.pinned or r.name in used)
    free = [r for r in stay if not (r.state == "live" or r.pinned or r.name in used)]
    assert sum(r.state in GOOD for r in free) <= keep
    assert sum(r.state not in GOOD for r in free) <= keep_failed
    total = sum(r.state in GOOD and r.state != "live" and not r.pinned for r in releases)
    assert sum(r.state in GOOD and r.state != "live" and not r.pinned for r in stay) >= min(keep, total)
    after = set(removable(stay, keep=keep, keep_failed=keep_failed, used=used))
    assert not after, "a second look finds nothing more"
