"""How a soak ends, by a clock that nobody waits for and numbers that are given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployer.config import model
from deployer.manager import soak
from deployer.releases.release import Release
from deployer.rollout.events import Failure
from deployer.rollout.machine import Kind, Phase, Rollout, Step
from deployer.rollout.numbers import Figures, Judgement, Verdict

NOBODY = Figures(answers=0, errors=0, timed=0, slow=0, p95_s=None)
TEXT = "too few requests to judge: 4 of 20"
Events = list[tuple[float, str, dict[str, Any]]]


def judgement(verdict: Verdict, reason: str | None = None, text: str = TEXT) -> Judgement:
    return Judgement(verdict=verdict, reason=reason, text=text, canary=NOBODY, peers=NOBODY, slow_s=None)


FEW = judgement(Verdict.INCONCLUSIVE, "inconclusive")
GOOD = judgement(Verdict.GOOD, None, "answered 0 of 80")
BAD = judgement(Verdict.BAD, "error_ratio", "answered 12 of 80 requests with 5xx (15 %), its peers 0 of 310")


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        assert self.now < 1000, "the soak has no end"


@pytest.fixture
def soaked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Failure | None, float, Events]]:
    """(why it failed, seconds, events) of a soak in which `judged(now)` is what the numbers say."""

    def run(judged: Callable[[float], Judgement | None], last_error: str = "", **limits: Any) -> Any:
        clock, events = Clock(), Events()
        compared = SimpleNamespace(look=lambda canary: judged(clock.now), last_error=last_error)
        monkeypatch.setattr(soak, "time", clock)
        monkeypatch.setattr(soak, "asyncio", SimpleNamespace(sleep=clock.sleep))
        monkeypatch.setattr(soak, "Comparison", lambda *_: compared)
        worker = model.Worker(app="shop:app")
        config = model.Config(name="shop", worker=worker, rollout=model.Rollout(**{"soak": "3s"} | limits))
        release = Release("v8", Path("/"), config, {})
        canary = SimpleNamespace(id=1, slot=1, generation=8, release=release, listeners=(), name="worker 1", tail=["x"])
        store: Any = SimpleNamespace(emit=lambda event, **data: events.append((clock.now, event, data)))
        pool: Any = SimpleNamespace(workers={1: canary})
        steps = {1: Step.STARTING, 2: Step.OLD}
        rollout = Rollout(id=8, kind=Kind.DEPLOY, phase=Phase.SOAKING, slots=steps, target=8, previous=7)
        return asyncio.run(soak.Soak(store, pool, rollout, release).watch()), clock.now, events

    return run


def told(events: Events) -> list[tuple[str, str | None]]:
    return [(event, data.get("verdict")) for _, event, data in events]


def test_a_good_canary_passes_at_the_end_and_it_is_told_with_its_numbers(soaked: Callable[..., Any]) -> None:
    failure, seconds, events = soaked(lambda now: GOOD)
    assert (failure, seconds) == (None, 3.0)
    assert told(events) == [("canary.judged", "good")]
    expected = {"slot": 1, "release": "v8", "reason": None, "text": GOOD.text, "canary": NOBODY, "peers": NOBODY}
    assert expected.items() <= events[0][2].items()


def test_a_bad_one_fails_at_the_look_that_finds_it(soaked: Callable[..., Any]) -> None:
    failure, seconds, events = soaked(lambda now: BAD if now >= 20 else FEW, "ValueError: no price", soak="5m")
    assert seconds <= 20 + soak.NUMBERS_S
    assert told(events) == [("canary.judged", "bad")]
    assert failure.reason == "error_ratio"
    assert failure.what == "worker 1 of v8 answered 12 of 80 requests with 5xx (15 %), its peers 0 of 310"
    assert failure.cause == "its last error: ValueError: no price"
    assert (failure.slot, failure.tail) == (1, ("x",))


def test_nothing_is_told_where_there_is_nothing_to_compare(soaked: Callable[..., Any]) -> None:
    for setting in model.Inconclusive:
        assert soaked(lambda now: None, inconclusive=setting) == (None, 3.0, [])


def test_too_few_requests_promote_unless_something_else_is_said(soaked: Callable[..., Any]) -> None:
    failure, seconds, events = soaked(lambda now: FEW)
    assert (failure, seconds) == (None, 3.0)
    assert told(events) == [("canary.judged", "inconclusive")]
    assert events[0][2]["text"] == TEXT


def test_too_few_requests_can_halt(soaked: Callable[..., Any]) -> None:
    failure, seconds, events = soaked(lambda now: FEW, inconclusive=model.Inconclusive.REVERT)
    assert seconds == 3.0
    assert told(events) == [("canary.judged", "inconclusive")]
    assert failure.reason == "inconclusive"
    assert failure.what == f"worker 1 of v8 was not proven by visitors: {TEXT}"


@pytest.mark.parametrize(("last", "passes"), [(GOOD, True), (BAD, False)])
@pytest.mark.parametrize("length", ["50ms", "3s", "12s"])
def test_too_few_requests_can_be_waited_out(
    soaked: Callable[..., Any], last: Judgement, passes: bool, length: str
) -> None:
    failure, seconds, events = soaked(
        lambda now: last if now >= 60 else FEW, inconclusive=model.Inconclusive.EXTEND, soak=length
    )
    assert (failure is None) == passes
    assert 60 <= seconds <= 61 + 1e-9
    *extensions, (_, event, data) = events
    assert (event, data["verdict"]) == ("canary.judged", last.verdict)
    assert {name for _, name, _ in extensions} == {"soak.extended"}
    times = [at for at, _, _ in extensions]
    assert all(later - before > 4.99 for before, later in pairwise(times))
    assert extensions[0][2]["text"] == TEXT
