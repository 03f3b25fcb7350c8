"""From how a worker ended to words: the Failure of a rollout and the LastExit of a slot."""

from __future__ import annotations

import time

from deployer.clock import uptime
from deployer.health.probe import Answer
from deployer.osutil.process import describe_exit
from deployer.rollout.events import Failure
from deployer.rollout.numbers import Judgement, Verdict
from deployer.units import format_duration
from deployer.wire.schema import LastExit
from deployer.workers.worker import Worker

FAILURE_TAIL = 30  # log lines that go with a failure


def failure_of_exit(worker: Worker) -> Failure:
    """A worker ended that should have lived."""
    code, name, text = describe_exit(worker.exit.code if worker.exit else None)
    before = "" if worker.ready_at else ", before it was ready"
    ended = f"exited with code {code}" if code is not None else text
    what = f"{worker.name} of {worker.release.name} {ended} after {_age(worker)}{before}"
    return Failure(
        reason="worker_signal" if name else "worker_exit",
        what=what,
        cause=_cause(worker, code, name),
        hint=f"deployer logs --release {worker.release.name}",
        slot=worker.slot,
        tail=tuple(worker.tail)[-FAILURE_TAIL:],
    )


def failure_of_health(worker: Worker, answer: Answer) -> Failure:
    health = worker.release.config.health
    return Failure(
        reason="health",
        what=f"{worker.name} of {worker.release.name} is unhealthy: GET {health.http} should answer {health.expect}",
        cause=f"it answered: {answer.describe()}" if answer.status else answer.describe(),
        hint=f"deployer logs --release {worker.release.name}",
        slot=worker.slot,
        tail=tuple(worker.tail)[-FAILURE_TAIL:],
    )


def failure_of_warmup(worker: Worker, path: str, answer: Answer) -> Failure:
    return Failure(
        reason="health",
        what=f"{worker.name} of {worker.release.name} failed its warm-up: GET {path}",
        cause=f"it answered: {answer.describe()}" if answer.status else answer.describe(),
        hint=f"deployer logs --release {worker.release.name}",
        slot=worker.slot,
        tail=tuple(worker.tail)[-FAILURE_TAIL:],
    )


def failure_of_end(worker: Worker, reason: str, text: str) -> Failure:
    """It runs, and is to be replaced: too large, too old, hung."""
    return Failure(
        reason=reason,
        what=f"{worker.name} of {worker.release.name} {'hangs' if reason == 'hung' else 'has served its time'}",
        cause=text,
        hint=f"deployer logs --release {worker.release.name}",
        slot=worker.slot,
        tail=tuple(worker.tail)[-FAILURE_TAIL:],
    )


def failure_of_silence(worker: Worker, seconds: float) -> Failure:
    return Failure(
        reason="health",
        what=f"{worker.name} of {worker.release.name} says it is ready but accepts no connection on its socket",
        cause=f"a connection waited {format_duration(seconds)}: does it listen on a port of its own?",
        hint="let [worker] command use {fd} (the inherited socket), then deploy again",
        slot=worker.slot,
        tail=tuple(worker.tail)[-FAILURE_TAIL:],
    )


def failure_of_numbers(worker: Worker, judged: Judgement, last_error: str) -> Failure:
    """The canary is worse than its peers; or nobody can say, where that is no reason to go on. `last_error`: what its
    application raised last, "" when it did not."""
    assert judged.reason is not None
    what, cause = f"{worker.name} of {worker.release.name} {judged.text}", None
    hint = f"deployer logs --release {worker.release.name}"
    if judged.verdict is Verdict.INCONCLUSIVE:
        what = f"{worker.name} of {worker.release.name} was not proven by visitors: {judged.text}"
        hint = 'deploy while there are visitors, or lower [rollout] min_samples, or set inconclusive = "promote"'
    elif judged.reason == "latency":
        hint = "raise [rollout] max_latency_ratio if it is meant to be slower (0: latency is not compared)"
    elif last_error:
        cause = f"its last error: {last_error}"
    return Failure(
        reason=judged.reason,
        what=what,
        cause=cause,
        hint=hint,
        slot=worker.slot,
        tail=tuple(worker.tail)[-FAILURE_TAIL:],
    )


def last_exit(worker: Worker) -> LastExit:
    code, name, text = describe_exit(worker.exit.code if worker.exit else None)
    return LastExit(
        at=time.time(),
        pid=worker.pid,
        release=worker.release.name,
        code=code,
        signal=name,
        text=text,
        tail=list(worker.tail)[-FAILURE_TAIL:],
    )


def _age(worker: Worker) -> str:
    return format_duration(uptime() - worker.spawned_at)


def _cause(worker: Worker, code: int | None, name: str | None) -> str | None:
    if code == 0:
        return "a worker serves until it is told to stop; this one ended by itself"
    if code in (126, 127) and not worker.ready_at:
        return "its program could not be run"
    if name == "SIGKILL":
        return "if nobody sent it, the kernel did: out of memory (see dmesg)"
    return None
