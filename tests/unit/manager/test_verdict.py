"""How a worker ended, in the words that people and machines get."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.config.model import Config, Health
from deployer.config.model import Worker as WorkerConfig
from deployer.health.probe import Answer
from deployer.manager import verdict
from deployer.releases.release import Release
from deployer.rollout.numbers import Figures, Judgement, Verdict
from deployer.workers.worker import Exit, State, Worker


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "uptime", lambda: 103.4)


def worker(code: int | None = 1, *, slot: int = 2, ready: bool = True) -> Worker:
    config = Config(name="shop", worker=WorkerConfig(command="serve"), health=Health(http="/healthz"))
    made = Worker(
        id=1,
        slot=slot,
        generation=7,
        release=Release("v7", Path("/"), config, {}),
        listeners=(),
        pid=4711,
        ticks=0,
        pidfd=-1,
        spawned_at=100.0,
        state=State.READY if ready else State.STARTING,
        ready_at=101.0 if ready else None,
        exit=Exit(code),
    )
    made.tail.extend(f"line {number}" for number in range(40))
    return made


@pytest.mark.parametrize(
    ("code", "ready", "reason", "what", "cause"),
    [
        (1, True, "worker_exit", "worker 2 of v7 exited with code 1 after 3.4s", None),
        (1, False, "worker_exit", "worker 2 of v7 exited with code 1 after 3.4s, before it was ready", None),
        (
            0,
            True,
            "worker_exit",
            "worker 2 of v7 exited with code 0 after 3.4s",
            "a worker serves until it is told to stop; this one ended by itself",
        ),
        (
            127,
            False,
            "worker_exit",
            "worker 2 of v7 exited with code 127 after 3.4s, before it was ready",
            "its program could not be run",
        ),
        (127, True, "worker_exit", "worker 2 of v7 exited with code 127 after 3.4s", None),
        (-11, True, "worker_signal", "worker 2 of v7 killed by SIGSEGV after 3.4s", None),
        (
            -9,
            True,
            "worker_signal",
            "worker 2 of v7 killed by SIGKILL after 3.4s",
            "if nobody sent it, the kernel did: out of memory (see dmesg)",
        ),
        (-77, True, "worker_signal", "worker 2 of v7 killed by signal 77 after 3.4s", None),
        (None, True, "worker_exit", "worker 2 of v7 ended while nobody could see how after 3.4s", None),
    ],
)
def test_an_exit_is_told_with_its_age_and_what_it_may_mean(
    code: int | None, ready: bool, reason: str, what: str, cause: str | None
) -> None:
    failure = verdict.failure_of_exit(worker(code, ready=ready))
    assert (failure.reason, failure.what, failure.cause) == (reason, what, cause)
    assert failure.hint == "deployer logs --release v7"
    assert failure.slot == 2


def test_the_last_thirty_lines_go_with_a_failure() -> None:
    for failure in (
        verdict.failure_of_exit(worker()),
        verdict.failure_of_health(worker(), Answer(500, "sick", None)),
        verdict.failure_of_silence(worker(), 5.0),
    ):
        assert failure.tail == tuple(f"line {number}" for number in range(10, 40))


def test_the_preflight_worker_is_called_by_its_name() -> None:
    assert verdict.failure_of_exit(worker(slot=0)).what.startswith("the preflight worker of v7 exited with code 1")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Answer(500, "sick", None), "it answered: 500 'sick'"),
        (Answer(503, "", None), "it answered: 503"),
        (Answer(None, "no answer within 2 s", None), "no answer within 2 s"),
    ],
)
def test_a_bad_health_check_says_what_was_asked_and_what_came(answer: Answer, cause: str) -> None:
    failure = verdict.failure_of_health(worker(), answer)
    assert failure.reason == "health"
    assert failure.what == "worker 2 of v7 is unhealthy: GET /healthz should answer 200"
    assert failure.cause == cause


def test_a_worker_that_serves_on_another_port_is_asked_about_it() -> None:
    failure = verdict.failure_of_silence(worker(), 5.0)
    assert failure.reason == "health"
    assert failure.what == "worker 2 of v7 says it is ready but accepts no connection on its socket"
    assert failure.cause == "a connection waited 5.0s: does it listen on a port of its own?"
    assert "{fd}" in (failure.hint or "")


def judged(verdict_: Verdict, reason: str, text: str) -> Judgement:
    figures = Figures(answers=0, errors=0, timed=0, slow=0, p95_s=None)
    return Judgement(verdict=verdict_, reason=reason, text=text, canary=figures, peers=figures, slow_s=None)


def test_a_canary_that_is_worse_than_its_peers_is_told_with_the_numbers_and_its_last_error() -> None:
    bad = judged(Verdict.BAD, "error_ratio", "answered 12 of 80 requests with 5xx (15 %), its peers 0 of 310")
    failure = verdict.failure_of_numbers(worker(), bad, "KeyError: 'price'")
    assert failure.reason == "error_ratio"
    assert failure.what == "worker 2 of v7 answered 12 of 80 requests with 5xx (15 %), its peers 0 of 310"
    assert failure.cause == "its last error: KeyError: 'price'"
    assert failure.hint == "deployer logs --release v7"
    assert len(failure.tail) == 30
    assert verdict.failure_of_numbers(worker(), bad, "").cause is None


def test_a_slow_canary_and_an_unproven_one_say_what_to_set() -> None:
    slow = verdict.failure_of_numbers(worker(), judged(Verdict.BAD, "latency", "took long"), "an error of no matter")
    assert (slow.reason, slow.what, slow.cause) == ("latency", "worker 2 of v7 took long", None)
    assert "max_latency_ratio" in (slow.hint or "")
    few = judged(Verdict.INCONCLUSIVE, "inconclusive", "too few requests to judge: 4 of 20")
    unproven = verdict.failure_of_numbers(worker(), few, "")
    assert unproven.reason == "inconclusive"
    assert unproven.what == "worker 2 of v7 was not proven by visitors: too few requests to judge: 4 of 20"
    assert "min_samples" in (unproven.hint or "")


def test_the_last_exit_of_a_slot_keeps_code_or_signal() -> None:
    died, killed = verdict.last_exit(worker(3)), verdict.last_exit(worker(-11))
    assert (died.pid, died.release, died.code, died.signal, died.text) == (4711, "v7", 3, None, "exit code 3")
    assert (killed.code, killed.signal, killed.text) == (None, "SIGSEGV", "killed by SIGSEGV")
    assert len(died.tail) == 30
