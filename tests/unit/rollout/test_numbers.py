"""The canary against its peers: bad only beyond doubt, good only with enough to go by."""

from __future__ import annotations

import random
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.config.model import Rollout
from deployer.rollout.numbers import Sample, Verdict, at_least, at_most, clearly_more, judge
from deployer.runtime.histogram import BUCKETS, bucket

LIMITS = Rollout()
COUNTS = st.integers(0, 2000)


def latencies(*seconds: float) -> tuple[int, ...]:
    counts = [0] * BUCKETS
    for second in seconds:
        counts[bucket(second)] += 1
    return tuple(counts)


def sample(answers: int, failed: int = 0, *, each: float | None = 0.005, broken: int = 0) -> Sample:
    times = () if each is None else latencies(*[each] * answers)
    return Sample(answers=answers, failed=failed, broken=broken, latencies=times)


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, int]:
    of = draw(COUNTS)
    return draw(st.integers(0, of)), of


# The interval


@given(shares())
def test_the_share_that_was_seen_lies_within_its_bounds(share: tuple[int, int]) -> None:
    found, of = share
    low, high = at_least(found, of), at_most(found, of)
    assert -1e-9 <= low <= high <= 1
    if of:
        assert low - 1e-9 <= found / of <= high + 1e-9


def test_the_bounds_are_those_of_the_textbook() -> None:
    """z = 2.58, by hand: 3 of 3 is at least 3 / (3 + z²); 0 of 310 at most z² / (310 + z²)."""
    assert at_least(3, 3) == pytest.approx(3 / (3 + 2.58**2))
    assert at_most(0, 310) == pytest.approx(2.58**2 / (310 + 2.58**2))
    assert (at_least(0, 0), at_most(0, 0)) == (0, 1)


@given(shares(), shares(), st.floats(0, 1))
def test_two_cannot_both_be_worse_than_the_other(one: tuple[int, int], other: tuple[int, int], allowed: float) -> None:
    assert not (clearly_more(*one, *other, allowed) and clearly_more(*other, *one, allowed))


@given(shares(), st.integers(1, 50), st.floats(0, 1))
def test_who_has_the_same_share_is_not_worse_whoever_answered_more(
    share: tuple[int, int], times: int, allowed: float
) -> None:
    found, of = share
    assert not clearly_more(found, of, found * times, of * times, allowed)
    assert not clearly_more(found * times, of * times, found, of, allowed)


@given(shares(), shares(), st.floats(0, 1))
def test_what_is_bad_stays_bad_with_more_errors(one: tuple[int, int], peers: tuple[int, int], allowed: float) -> None:
    found, of = one
    if clearly_more(found, of, *peers, allowed):
        assert all(clearly_more(more, of, *peers, allowed) for more in (found, (found + of) // 2, of))
        assert clearly_more(found, of, 0, peers[1], allowed)


@pytest.mark.parametrize(("rate", "at_worst"), [(0.0, 0.0), (0.001, 1e-5), (0.01, 2e-4), (0.05, 2e-3), (0.2, 1e-2)])
def test_one_look_at_two_equal_releases_hardly_ever_finds_one_bad(rate: float, at_worst: float) -> None:
    """Not by trying: the exact chance, over all that could be seen."""
    for of, of_peers in ((5, 20), (20, 20), (20, 300), (60, 60), (100, 300)):
        own = [comb(of, k) * rate**k * (1 - rate) ** (of - k) for k in range(of + 1)]
        theirs = [comb(of_peers, k) * rate**k * (1 - rate) ** (of_peers - k) for k in range(of_peers + 1)]
        chance = 0.0
        for peers_found, likely in enumerate(theirs):
            least = next((k for k in range(of + 1) if clearly_more(k, of, peers_found, of_peers, 0.02)), of + 1)
            chance += likely * sum(own[least:])
        assert chance <= at_worst


@pytest.mark.parametrize("peers", [1, 3, 20])
@pytest.mark.parametrize(("rate", "at_worst"), [(0.01, 0), (0.3, 10)])
def test_a_soak_of_a_dozen_looks_hardly_ever_finds_one_bad(rate: float, at_worst: int, peers: int) -> None:
    source, bad = random.Random(7), 0
    for _ in range(500):
        found = of = peers_found = of_peers = 0
        for _ in range(12):
            of, of_peers = of + 8, of_peers + 8 * peers
            found += sum(source.random() < rate for _ in range(8))
            peers_found += sum(source.random() < rate for _ in range(8 * peers))
            if clearly_more(found, of, peers_found, of_peers, 0.02):
                bad += 1
                break
    assert bad <= at_worst


# Errors


def test_a_canary_that_always_fails_is_bad_after_three_requests() -> None:
    assert judge(sample(2, 2), sample(310), LIMITS).verdict is Verdict.INCONCLUSIVE
    found = judge(sample(3, 3), sample(310), LIMITS)
    assert (found.verdict, found.reason) == (Verdict.BAD, "error_ratio")
    assert found.text == "answered 3 of 3 requests with 5xx (100 %), its peers 0 of 310"


def test_the_numbers_are_in_the_text() -> None:
    found = judge(sample(80, 12), sample(310), LIMITS)
    assert found.text == "answered 12 of 80 requests with 5xx (15 %), its peers 0 of 310"
    assert (found.canary.errors, found.canary.answers, found.peers.errors, found.peers.answers) == (12, 80, 0, 310)
    cut = judge(sample(80, 2, broken=10), sample(310), LIMITS)
    assert cut.text == "answered 12 of 80 requests with 5xx or broken off (15 %), its peers 0 of 310"


def test_nothing_is_held_against_a_canary_whose_peers_fail_as_much_or_answered_nothing() -> None:
    assert judge(sample(50, 50), sample(300, 300), LIMITS).verdict is Verdict.GOOD
    assert judge(sample(50, 50), sample(0), LIMITS).verdict is Verdict.INCONCLUSIVE


def test_what_is_allowed_is_added_to_what_the_peers_have() -> None:
    canary, peers = sample(2000, 100), sample(20000)
    assert judge(canary, peers, LIMITS).verdict is Verdict.BAD
    assert judge(canary, peers, Rollout(max_error_ratio=0.05)).verdict is Verdict.GOOD
    assert judge(sample(50, 50), peers, Rollout(max_error_ratio=1)).verdict is Verdict.GOOD


# Latency


def test_a_canary_that_got_much_slower_is_bad() -> None:
    found = judge(sample(40, each=0.120), sample(300, each=0.005), LIMITS)
    assert (found.verdict, found.reason) == (Verdict.BAD, "latency")
    assert found.slow_s == pytest.approx(0.025, rel=0.15)
    assert "for 40 of 40 requests (100 %), its peers 0 of 300; p95 " in found.text
    assert judge(sample(40, each=0.120), sample(300, each=0.005), Rollout(max_latency_ratio=0)).verdict is Verdict.GOOD


def test_a_few_slow_requests_and_a_few_milliseconds_are_no_reason() -> None:
    few = Sample(answers=40, latencies=latencies(*[0.005] * 36, *[2.0] * 4))
    assert judge(few, sample(300, each=0.005), LIMITS).verdict is Verdict.GOOD
    assert judge(sample(40, each=0.010), sample(300, each=0.0005), LIMITS).verdict is Verdict.GOOD


def test_latency_is_judged_only_with_enough_of_both_that_were_timed() -> None:
    """Not all may be: the first of a new process are left out."""
    for canary, peers in (
        (sample(19, each=0.5), sample(310)),
        (sample(310, each=0.5), sample(19)),
        (Sample(answers=40, latencies=latencies(*[0.5] * 19)), sample(310)),
        (sample(40, each=0.5), sample(40, each=None)),
    ):
        assert judge(canary, peers, LIMITS).verdict is Verdict.INCONCLUSIVE
    assert judge(sample(20, each=0.5), sample(40), LIMITS).reason == "latency"
    assert judge(sample(20, each=None), sample(40, each=None), Rollout(max_latency_ratio=0)).verdict is Verdict.GOOD


@given(st.lists(st.floats(0.0001, 5), min_size=20, max_size=200), st.integers(1, 5))
def test_the_same_latencies_are_never_slower(times: list[float], copies: int) -> None:
    own = Sample(answers=len(times), latencies=latencies(*times))
    peers = Sample(answers=len(times) * copies, latencies=latencies(*times * copies))
    for found in (judge(own, peers, LIMITS), judge(peers, own, LIMITS)):
        assert found.verdict is Verdict.GOOD


def test_the_same_heavy_tail_is_hardly_ever_called_slower() -> None:
    source, bad = random.Random(3), 0
    for _ in range(200):
        own = latencies(*[source.lognormvariate(-5, 1.5) for _ in range(60)])
        peers = latencies(*[source.lognormvariate(-5, 1.5) for _ in range(120)])
        found = judge(Sample(answers=60, latencies=own), Sample(answers=120, latencies=peers), LIMITS)
        bad += found.verdict is Verdict.BAD
    assert bad == 0


# Enough


@pytest.mark.parametrize(
    ("canary", "peers", "text"),
    [
        (4, 310, "too few requests to judge: 4 of 20"),
        (310, 4, "too few requests to judge: 4 of 20 by the peers of the canary"),
        (0, 0, "too few requests to judge: 0 of 20"),
    ],
)
def test_too_few_requests_are_told_with_their_number(canary: int, peers: int, text: str) -> None:
    found = judge(sample(canary), sample(peers), LIMITS)
    assert (found.verdict, found.reason, found.text) == (Verdict.INCONCLUSIVE, "inconclusive", text)


def test_a_good_canary_is_told_with_its_numbers() -> None:
    found = judge(sample(80, each=0.004), sample(310, 1, each=0.004), LIMITS)
    assert (found.verdict, found.reason) == (Verdict.GOOD, None)
    assert found.text.startswith("answered 0 of 80 requests with 5xx, its peers 1 of 310; p95 ")
    assert judge(sample(4), sample(4), Rollout(min_samples=4)).verdict is Verdict.GOOD


@given(shares(), shares())
def test_every_judgement_is_one_of_three_and_has_a_text(canary: tuple[int, int], peers: tuple[int, int]) -> None:
    one, others = sample(canary[1], canary[0]), sample(peers[1], peers[0])
    found = judge(one, others, LIMITS)
    assert found.text
    enough = min(canary[1], peers[1]) >= LIMITS.min_samples
    assert found.verdict is not (Verdict.INCONCLUSIVE if enough else Verdict.GOOD)
